//! The identity of this process for its peers: a certificate that it signs itself, and a token.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use super::{Fingerprint, PeerAddress, PeerToken};
use crate::transport::tls::HTTP2;

/// Name in the certificate. Clients verify the fingerprint instead.
const NAME: &str = "account-service-replica";

/// Reason why an identity cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The certificate cannot be signed.
    #[error("the certificate for other replicas cannot be signed: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate cannot be used.
    #[error("the certificate for other replicas cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// The identity of this process for its peers. It is new with every start of the process, and its
/// private key is only in memory.
pub struct PeerIdentity {
    fingerprint: Fingerprint,
    token: PeerToken,
    tls: Arc<ServerConfig>,
}

impl PeerIdentity {
    /// Makes a new identity.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn generate() -> Result<Self, IdentityError> {
        let signed = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
        let certificate = signed.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
        let fingerprint = Fingerprint::of(&certificate);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::from(key))?;
        tls.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(Self {
            fingerprint,
            token: PeerToken::random(),
            tls: Arc::new(tls),
        })
    }

    /// The TLS configuration of the server for peers.
    #[must_use]
    pub fn tls(&self) -> Arc<ServerConfig> {
        self.tls.clone()
    }

    /// The token that the server for peers accepts.
    #[must_use]
    pub fn token(&self) -> &PeerToken {
        &self.token
    }

    /// The address for the replica directory.
    #[must_use]
    pub fn address(&self, authority: String) -> PeerAddress {
        PeerAddress {
            authority,
            fingerprint: self.fingerprint,
            token: self.token.clone(),
        }
    }
}
