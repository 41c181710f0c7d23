//! The authorizer from its settings, and the refresh of its policy, keys and certificates.

use std::{net::SocketAddr, sync::Arc};

use super::{Error, reloaded_file::ReloadedFile};
use crate::{
    auth::{Authorizer, Expected, Policy, PolicyError, Tokens, VerificationKeys},
    config::{CallerSettings, ServerSettings},
    grpc,
    telemetry::POLICY_IN_USE,
    transport::tls::{Tls, TlsFiles, TlsSource},
};

/// The authorizer, with the policy, keys and certificates that are refreshed for it.
pub struct CallerAuth {
    authorizer: Authorizer,
    policy: Option<PolicyFile>,
    tls: Option<Arc<Tls>>,
    keys: Option<VerificationKeys>,
}

impl CallerAuth {
    /// Reads the files and URLs of the settings.
    ///
    /// # Errors
    /// One of them cannot be used, or the settings would admit every caller.
    pub async fn prepare(settings: &ServerSettings) -> Result<Self, Error> {
        let callers = &settings.callers;
        assert_secure(settings.listen_addr, callers)?;
        let tls = match (&callers.tls_cert, &callers.tls_key) {
            (Some(certificate), Some(key)) => {
                let files = TlsFiles {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    client_roots: callers.tls_client_ca.clone(),
                    client_revocations: callers.tls_client_crl.clone(),
                    requires_client: callers.jwks.is_none(),
                };
                Some(Arc::new(Tls::load(files)?))
            }
            _ => None,
        };
        let Some(path) = &callers.policy else {
            return Ok(Self {
                authorizer: Authorizer::open(),
                policy: None,
                tls,
                keys: None,
            });
        };
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Policy {
            path: path.clone(),
            source,
        };
        let file = ReloadedFile::read(path, "policy", POLICY_IN_USE).await;
        let file = file.map_err(|error| failed(error.into()))?;
        let policy = Policy::parse(&file.text, &grpc::methods());
        let policy = policy.map_err(|error| failed(error.into()))?;
        let tokens = read_keys(callers).await?;
        if tokens.is_none() && callers.tls_client_ca.is_none() {
            return Err(Error::NoIdentity);
        }
        let file = PolicyFile {
            file,
            takes_certificates: callers.tls_client_ca.is_some(),
            takes_tokens: tokens.is_some(),
        };
        file.report(&policy);
        let keys = tokens.as_ref().map(|(_, keys)| keys.clone());
        let tokens = tokens.map(|(expected, keys)| Tokens::new(expected, keys));
        Ok(Self {
            authorizer: Authorizer::new(policy, tokens),
            policy: Some(file),
            tls,
            keys,
        })
    }

    /// The authorizer.
    #[must_use]
    pub fn authorizer(&self) -> Authorizer {
        self.authorizer.clone()
    }

    /// Whether a caller can be admitted: `false` while all callers need tokens and the keys
    /// are not available.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let takes_certificates = self
            .tls
            .as_ref()
            .is_some_and(|tls| tls.takes_certificates());
        takes_certificates || self.keys.as_ref().is_none_or(VerificationKeys::are_known)
    }

    /// Whether callers may authenticate by tokens.
    #[must_use]
    pub fn verifies_tokens(&self) -> bool {
        self.keys.is_some()
    }

    /// The TLS configuration. `None`: no TLS.
    #[must_use]
    pub fn tls(&self) -> Option<TlsSource> {
        let tls = self.tls.clone()?;
        Some(Arc::new(move || tls.config()))
    }

    /// Refreshes the policy, certificates and keys. Never ends.
    pub async fn run_refresh(&self) {
        let follow_policy = async {
            match &self.policy {
                Some(file) => file.run_reload(&self.authorizer).await,
                None => std::future::pending().await,
            }
        };
        let follow_tls = async {
            match &self.tls {
                Some(tls) => tls.run_reload().await,
                None => std::future::pending().await,
            }
        };
        let follow_keys = async {
            match &self.keys {
                Some(keys) => keys.run_refresh().await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(follow_policy, follow_tls, follow_keys);
    }
}

/// The file with the policy.
struct PolicyFile {
    file: ReloadedFile,
    takes_certificates: bool,
    takes_tokens: bool,
}

impl PolicyFile {
    /// Uses a changed policy. Never ends.
    async fn run_reload(&self, authorizer: &Authorizer) {
        let adopt = |text: &str| {
            let policy = Policy::parse(text, &grpc::methods())?;
            self.report(&policy);
            authorizer.replace_policy(policy);
            Ok::<_, PolicyError>(())
        };
        self.file.run_reload(adopt).await;
    }

    /// Reports which callers of a policy cannot authenticate.
    fn report(&self, policy: &Policy) {
        if policy.knows_certificates() && !self.takes_certificates {
            tracing::warn!("the policy has callers with certificates, which need --tls-client-ca");
        }
        if policy.knows_tokens() && !self.takes_tokens {
            tracing::warn!("the policy has callers with tokens, which need --jwks");
        }
    }
}

fn assert_secure(addr: SocketAddr, callers: &CallerSettings) -> Result<(), Error> {
    if addr.ip().is_loopback() || callers.insecure {
        return Ok(());
    }
    let what = match (&callers.policy, &callers.tls_cert) {
        (None, _) => "policy",
        (Some(_), None) => "TLS",
        (Some(_), Some(_)) => return Ok(()),
    };
    Err(Error::Insecure { addr, what })
}

async fn read_keys(
    callers: &CallerSettings,
) -> Result<Option<(Expected, VerificationKeys)>, Error> {
    let (Some(from), Some(issuer), Some(audience)) =
        (&callers.jwks, &callers.jwt_issuer, &callers.jwt_audience)
    else {
        return Ok(None);
    };
    let keys = VerificationKeys::read(from.clone()).await;
    let keys = keys.map_err(|source| Error::Keys {
        from: from.clone(),
        source,
    })?;
    let expected = Expected {
        issuer: issuer.clone(),
        audience: audience.clone(),
        algorithms: callers.jwt_algorithms.clone(),
    };
    Ok(Some((expected, keys)))
}
