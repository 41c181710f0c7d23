//! The name that a client's certificate gives its owner.

use std::sync::Arc;

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::Refused;

/// The first URI among the certificate's alternative names (a SPIFFE id is one),
/// else the first DNS name.
///
/// # Errors
/// [`Refused::InvalidCredentials`]: there is neither.
pub fn name_of(certificate: &[u8]) -> Result<Arc<str>, Refused> {
    let invalid = |why: String| Refused::InvalidCredentials { why };
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| invalid(format!("the client's certificate: {error}")))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| invalid(format!("the client certificate's names: {error}")))?;
    let names = names.map(|names| names.value.general_names.as_slice());
    let names = names.unwrap_or_default();
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let dns = || {
        names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
    };
    uri.or_else(dns).map(Arc::from).ok_or_else(|| {
        invalid("the client's certificate has neither a URI nor a DNS name".to_owned())
    })
}
