//! JSON Web Key Sets: the keys that verify tokens, from a file or a URL. They are read again
//! at intervals, and when a token names an unknown key.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use parking_lot::{RwLock, RwLockReadGuard};
use reqwest::Url;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{sync::Notify, time::Instant};

use crate::loopback::is_loopback;

/// Interval of reading the keys.
const REFRESH: Duration = Duration::from_secs(300);
/// Least time between two reads because of unknown keys.
const LEAST_PAUSE: Duration = Duration::from_secs(5);
/// Longest time of a request to a URL.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Most keys that are tried for one token.
const MAX_TRIED: usize = 8;
/// Largest key set, in bytes.
const MAX_KEY_SET_BYTES: usize = 1024 * 1024;

/// Source of a key set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file.
    File(PathBuf),
    /// An `https://` URL. `http://` on loopback only: an attacker who changes keys in transit
    /// can sign tokens.
    Url(Url),
}

impl FromStr for KeySource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("must be a file or a URL".to_owned());
        }
        if !text.starts_with("https://") && !text.starts_with("http://") {
            return Ok(Self::File(text.into()));
        }
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        if url.scheme() == "https" || url.host_str().is_some_and(is_loopback) {
            Ok(Self::Url(url))
        } else {
            Err("must be https:// unless it is on loopback".to_owned())
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// Reason why a key set was not read.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// The URL does not respond with success.
    #[error("the request to the URL failed: {0}")]
    Url(#[from] reqwest::Error),
    /// The key set is too large.
    #[error("it has more than {MAX_KEY_SET_BYTES} bytes")]
    TooLarge,
    /// The content is not a key set.
    #[error("it is not a JSON Web Key Set: {0}")]
    Form(#[from] serde_json::Error),
    /// None of its keys can verify a signature.
    #[error("none of its keys can verify a signature")]
    NoKey,
}

/// A JSON Web Key Set. Entries of unknown kinds are ignored.
#[derive(Deserialize)]
struct KeySetForm {
    keys: Vec<Value>,
}

/// A key that verifies signatures.
struct VerificationKey {
    name: Option<String>,
    /// The algorithms of the key.
    algorithms: Vec<Algorithm>,
    decoding: Arc<DecodingKey>,
}

/// The version of a key set: its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Edition([u8; 32]);

struct KeySet {
    edition: Edition,
    keys: Vec<VerificationKey>,
}

/// Candidate keys of a token.
pub(super) struct Candidates {
    pub(super) keys: Vec<Arc<DecodingKey>>,
    pub(super) edition: Edition,
}

/// The key set as last read.
#[derive(Clone)]
pub struct VerificationKeys(Arc<KeyReader>);

struct KeyReader {
    source: KeySource,
    http: reqwest::Client,
    /// `None` until the first successful read.
    known: RwLock<Option<KeySet>>,
    /// Notified when a token names an unknown key.
    missed: Notify,
}

impl fmt::Debug for VerificationKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VerificationKeys")
            .field(&self.0.source)
            .finish()
    }
}

impl VerificationKeys {
    /// Reads the keys for the first time. [`Self::run_refresh`] retries an unreachable URL.
    ///
    /// # Errors
    /// See [`KeySourceError`].
    pub async fn read(source: KeySource) -> Result<Self, KeySourceError> {
        let is_far = matches!(&source, KeySource::Url(url) if url.scheme() == "https");
        let http = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            // Also after a redirect.
            .https_only(is_far)
            .build()?;
        let known = match load(&source, &http).await {
            Ok(known) => Some(known),
            Err(error) if error.is_transient() => {
                tracing::warn!(%source, %error, "starting without the keys of tokens");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self(Arc::new(KeyReader {
            source,
            http,
            known: RwLock::new(known),
            missed: Notify::new(),
        })))
    }

    /// Whether keys are available.
    #[must_use]
    pub fn are_known(&self) -> bool {
        self.known().is_some()
    }

    /// The candidate keys of a token with this algorithm: those with the token's key id or, if
    /// none has it, those without an id. All keys if the token has no key id. `None`: no keys
    /// are available yet.
    pub(super) fn find(&self, algorithm: Algorithm, name: Option<&str>) -> Option<Candidates> {
        let known = self.known();
        let Some(KeySet { edition, keys }) = &*known else {
            self.0.missed.notify_one();
            return None;
        };
        let has_name = |key: &&VerificationKey| name.is_some() && key.name.as_deref() == name;
        let is_named = keys.iter().any(|key| has_name(&key));
        if name.is_some() && !is_named {
            self.0.missed.notify_one();
        }
        let keys = keys.iter().filter(|key| match name {
            Some(_) if is_named => has_name(key),
            Some(_) => key.name.is_none(),
            None => true,
        });
        let keys = keys.filter(|key| key.algorithms.contains(&algorithm));
        Some(Candidates {
            keys: keys
                .map(|key| key.decoding.clone())
                .take(MAX_TRIED)
                .collect(),
            edition: *edition,
        })
    }

    /// The present version. A token that was verified by another version is verified again.
    pub(super) fn edition(&self) -> Edition {
        let known = self.known();
        known
            .as_ref()
            .map(|known| known.edition)
            .unwrap_or_default()
    }

    fn known(&self) -> RwLockReadGuard<'_, Option<KeySet>> {
        self.0.known.read()
    }

    /// Reads the keys at intervals, and keeps the last ones if a read fails. Never ends.
    pub async fn run_refresh(&self) {
        loop {
            let began = Instant::now();
            let pause = if self.are_known() {
                REFRESH
            } else {
                LEAST_PAUSE
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.0.missed.notified() => tokio::time::sleep_until(began + LEAST_PAUSE).await,
            }
            match load(&self.0.source, &self.0.http).await {
                Ok(known) => {
                    let mut shared = self.0.known.write();
                    *shared = Some(known);
                }
                Err(error) => {
                    tracing::warn!(source = %self.0.source, %error, "the keys of tokens cannot be read again");
                }
            }
        }
    }
}

impl KeySourceError {
    /// Whether a retry may succeed without a change by an operator.
    fn is_transient(&self) -> bool {
        match self {
            Self::Url(error) => error.status().is_none_or(|status| status.is_server_error()),
            Self::File(_) | Self::TooLarge | Self::Form(_) | Self::NoKey => false,
        }
    }
}

impl VerificationKey {
    /// `None`: the key does not verify signatures, or is of an unknown kind.
    fn new(key: Value) -> Option<Self> {
        let key: Jwk = serde_json::from_value(key).ok()?;
        let is_for_signatures = match (&key.common.public_key_use, &key.common.key_operations) {
            (Some(purpose), _) if *purpose != PublicKeyUse::Signature => false,
            (_, Some(operations)) => operations.contains(&KeyOperations::Verify),
            (_, None) => true,
        };
        if !is_for_signatures {
            return None;
        }
        let mut algorithms = algorithms_of(&key.algorithm);
        if let Some(only) = key.common.key_algorithm {
            algorithms.retain(|known| KeyAlgorithm::from(*known) == only);
        }
        Some(Self {
            name: key.common.key_id.clone(),
            algorithms,
            decoding: Arc::new(DecodingKey::from_jwk(&key).ok()?),
        })
        .filter(|key| !key.algorithms.is_empty())
    }
}

/// The algorithms of this kind of key. None with a shared secret.
fn algorithms_of(kind: &AlgorithmParameters) -> Vec<Algorithm> {
    match kind {
        AlgorithmParameters::RSA(_) => vec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => Vec::new(),
        },
        AlgorithmParameters::OctetKeyPair(key) => match key.curve {
            EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

async fn load(source: &KeySource, http: &reqwest::Client) -> Result<KeySet, KeySourceError> {
    let text = match source {
        KeySource::File(path) => tokio::fs::read(path).await?,
        KeySource::Url(url) => fetch(http, url).await?,
    };
    let set: KeySetForm = serde_json::from_slice(&text)?;
    let keys: Vec<_> = set
        .keys
        .into_iter()
        .filter_map(VerificationKey::new)
        .collect();
    if keys.is_empty() {
        return Err(KeySourceError::NoKey);
    }
    Ok(KeySet {
        edition: Edition(Sha256::digest(&text).into()),
        keys,
    })
}

async fn fetch(http: &reqwest::Client, url: &Url) -> Result<Vec<u8>, KeySourceError> {
    let mut response = http.get(url.clone()).send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await? {
        body.extend_from_slice(&part);
        if body.len() > MAX_KEY_SET_BYTES {
            return Err(KeySourceError::TooLarge);
        }
    }
    Ok(body)
}
