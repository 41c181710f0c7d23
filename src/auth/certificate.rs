//! Client certificates: the name of the caller, and the expiry of the certificate.

use std::sync::Arc;

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::Refused;

/// A client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The first URI of its alternative names (such as a SPIFFE id), else the first DNS name.
    pub name: Arc<str>,
    /// When it expires, in seconds since 1970.
    pub expires: u64,
}

impl Certificate {
    /// Reads a certificate that was verified, in DER.
    ///
    /// # Errors
    /// [`Refused::InvalidCredentials`]: it has no name, or one that is not valid.
    pub fn parse(der: &[u8]) -> Result<Self, Refused> {
        let invalid = |why: String| Refused::InvalidCredentials { why };
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| invalid(format!("the client's certificate: {error}")))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| invalid(format!("the client certificate's names: {error}")))?;
        let names = names.map(|names| names.value.general_names.as_slice());
        let name = first_name(names.unwrap_or_default()).ok_or_else(|| {
            invalid("the client's certificate has neither a URI nor a DNS name".to_owned())
        })?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            let why = "the name in the client's certificate is neither a URI nor a DNS name";
            return Err(invalid(why.to_owned()));
        }
        let expires = certificate.validity().not_after.timestamp();
        Ok(Self {
            name: name.into(),
            expires: u64::try_from(expires).unwrap_or(0),
        })
    }
}

fn first_name<'a>(names: &[GeneralName<'a>]) -> Option<&'a str> {
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
    uri.or_else(dns)
}
