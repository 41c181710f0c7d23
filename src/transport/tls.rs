//! TLS of the server. Certificates are read again when their files change.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
};

/// Interval of reading the files.
const POLL: Duration = Duration::from_secs(5);
/// The protocol within TLS: HTTP/2.
pub(crate) const HTTP2: &[u8] = b"h2";

/// The files of certificates and keys.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate and its intermediate certificates, in PEM.
    pub certificate: PathBuf,
    /// The certificate's private key, in PEM.
    pub key: PathBuf,
    /// The roots of clients' certificates, in PEM. `None`: the server requests no certificate
    /// of clients.
    pub client_roots: Option<PathBuf>,
    /// The revocation lists of clients' certificates, in PEM.
    pub client_revocations: Option<PathBuf>,
    /// Whether the TLS handshake rejects a client without a certificate.
    pub requires_client: bool,
}

/// Reason why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path:?} cannot be read: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file holds no PEM of the expected kind.
    #[error("{path:?} holds no {what} in PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// The expected kind.
        what: &'static str,
    },
    /// The certificate and its key do not match.
    #[error("the certificate and its key cannot be used: {0}")]
    Pair(#[from] rustls::Error),
    /// The roots of clients cannot be used.
    #[error("the roots of clients' certificates cannot be used: {0}")]
    Roots(#[from] VerifierBuilderError),
}

/// The files' contents.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_roots: Option<Vec<u8>>,
    client_revocations: Option<Vec<u8>>,
}

/// Returns the TLS configuration for the next connection.
pub type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// The TLS configuration of the server.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<(Contents, Arc<ServerConfig>)>,
}

impl Tls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = files.read()?;
        let config = Arc::new(files.config(&contents)?);
        Ok(Self {
            files,
            current: RwLock::new((contents, config)),
        })
    }

    /// Whether the server requests certificates of clients.
    #[must_use]
    pub fn takes_certificates(&self) -> bool {
        self.files.client_roots.is_some()
    }

    /// The configuration for the next connection.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        let current = self.current.read();
        current.1.clone()
    }

    /// Reads the files again at intervals, and keeps the last configuration while they cannot be
    /// used. Never ends.
    pub async fn run_reload(&self) {
        loop {
            tokio::time::sleep(POLL).await;
            match self.reload() {
                Ok(false) => {}
                Ok(true) => tracing::info!("new certificates are in use"),
                Err(error) => tracing::warn!(%error, "the changed certificates are not used"),
            }
        }
    }

    /// Reads the files. Returns whether they have changed.
    fn reload(&self) -> Result<bool, TlsError> {
        let contents = self.files.read()?;
        let is_known = {
            let current = self.current.read();
            current.0 == contents
        };
        if is_known {
            return Ok(false);
        }
        let config = Arc::new(self.files.config(&contents)?);
        *self.current.write() = (contents, config);
        Ok(true)
    }
}

impl TlsFiles {
    fn read(&self) -> Result<Contents, TlsError> {
        let roots = self.client_roots.as_deref().map(read);
        let revocations = self.client_revocations.as_deref().map(read);
        Ok(Contents {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            client_roots: roots.transpose()?,
            client_revocations: revocations.transpose()?,
        })
    }

    fn config(&self, contents: &Contents) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let no_pem = |path: &Path, what| TlsError::Pem {
            path: path.to_owned(),
            what,
        };
        let chain = certificates(&contents.certificate)
            .ok_or_else(|| no_pem(&self.certificate, "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|_| no_pem(&self.key, "private key"))?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match (&self.client_roots, &contents.client_roots) {
            (Some(path), Some(roots)) => {
                let roots = certificates(roots).ok_or_else(|| no_pem(path, "certificate"))?;
                let revocations = self.revocations(contents)?;
                builder.with_client_cert_verifier(self.verifier(roots, revocations, provider)?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = vec![HTTP2.to_vec()];
        if self.client_roots.is_some() {
            // A resumed session is not verified again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }

    fn revocations(
        &self,
        contents: &Contents,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let (Some(path), Some(pem)) = (&self.client_revocations, &contents.client_revocations)
        else {
            return Ok(Vec::new());
        };
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
        let lists = lists.ok().filter(|found| !found.is_empty());
        lists.ok_or_else(|| TlsError::Pem {
            path: path.clone(),
            what: "certificate revocation list",
        })
    }

    fn verifier(
        &self,
        certificates: Vec<CertificateDer<'static>>,
        revocations: Vec<CertificateRevocationListDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate)?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .with_crls(revocations)
            .only_check_end_entity_revocation();
        let builder = if self.requires_client {
            builder
        } else {
            builder.allow_unauthenticated()
        };
        Ok(builder.build()?)
    }
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, TlsError> {
    let path = path.as_ref();
    std::fs::read(path).map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

/// At least one certificate.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates.ok().filter(|found| !found.is_empty())
}
