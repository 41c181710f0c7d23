//! The keys that sign tokens: a JSON Web Key Set in a file or at a URL, read
//! again from time to time, and when a token names a key that is not known.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use jsonwebtoken::{DecodingKey, jwk::JwkSet};
use reqwest::Url;
use sha2::{Digest as _, Sha256};
use tokio::{sync::Notify, time::Instant};

use crate::loopback::is_loopback;

/// How often keys are read again.
const REFRESH: Duration = Duration::from_secs(300);
/// Least time between two looks for keys that tokens named.
const LEAST_PAUSE: Duration = Duration::from_secs(5);
/// Longest that a URL may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest key set, in bytes.
const MAX_KEY_SET_BYTES: usize = 1024 * 1024;

/// Where keys are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file.
    File(PathBuf),
    /// An `https://` URL; `http://` on loopback only: whoever can change keys on
    /// their way can sign tokens.
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

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// The URL does not answer with success.
    #[error("the URL does not answer as it should: {0}")]
    Url(#[from] reqwest::Error),
    /// It is larger than any key set.
    #[error("it has more than {MAX_KEY_SET_BYTES} bytes")]
    TooLarge,
    /// It is no key set.
    #[error("it is no JSON Web Key Set: {0}")]
    Form(#[from] serde_json::Error),
    /// None of its keys can verify a signature.
    #[error("none of its keys can verify a signature")]
    NoKey,
}

type KeyMap = HashMap<Option<String>, Arc<DecodingKey>>;

/// Which keys something was verified with: the digest of the key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edition([u8; 32]);

struct KeySet {
    edition: Edition,
    keys: KeyMap,
}

/// Keys as they were last read.
#[derive(Clone)]
pub struct Keys(Arc<Shared>);

struct Shared {
    source: KeySource,
    http: reqwest::Client,
    known: RwLock<KeySet>,
    /// A token named a key that is not known.
    missed: Notify,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.0.source).finish()
    }
}

impl Keys {
    /// Reads the keys for the first time.
    ///
    /// # Errors
    /// See [`KeySourceError`].
    pub async fn read(source: KeySource) -> Result<Self, KeySourceError> {
        let is_far = matches!(&source, KeySource::Url(url) if url.scheme() == "https");
        let http = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            // Wherever it is led to.
            .https_only(is_far)
            .build()?;
        let known = load(&source, &http).await?;
        Ok(Self(Arc::new(Shared {
            source,
            http,
            known: RwLock::new(known),
            missed: Notify::new(),
        })))
    }

    /// The key of this name; the only one, if the token names none.
    pub(super) fn find(&self, name: Option<&str>) -> Option<(Arc<DecodingKey>, Edition)> {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        let keys = &known.keys;
        let found = match name {
            Some(name) => keys.get(&Some(name.to_owned())),
            None if keys.len() == 1 => keys.values().next(),
            None => None,
        };
        if found.is_none() {
            self.0.missed.notify_one();
        }
        Some((found?.clone(), known.edition))
    }

    /// Of the keys as they are now: what was verified with others is not any more.
    pub(super) fn edition(&self) -> Edition {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        known.edition
    }

    /// Reads the keys again and again. Never ends; keeps what it has while they
    /// cannot be read.
    pub async fn keep(&self) {
        loop {
            let began = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(REFRESH) => {}
                () = self.0.missed.notified() => tokio::time::sleep_until(began + LEAST_PAUSE).await,
            }
            match load(&self.0.source, &self.0.http).await {
                Ok(known) => {
                    *self.0.known.write().unwrap_or_else(PoisonError::into_inner) = known;
                }
                Err(error) => {
                    tracing::warn!(source = %self.0.source, %error, "the keys of tokens cannot be read again");
                }
            }
        }
    }
}

async fn load(source: &KeySource, http: &reqwest::Client) -> Result<KeySet, KeySourceError> {
    let text = match source {
        KeySource::File(path) => tokio::fs::read(path).await?,
        KeySource::Url(url) => fetch(http, url).await?,
    };
    let set: JwkSet = serde_json::from_slice(&text)?;
    // Keys for other purposes may be of kinds that are not known here.
    let keys = set.keys.iter().filter_map(|key| {
        let decoding = DecodingKey::from_jwk(key).ok()?;
        Some((key.common.key_id.clone(), Arc::new(decoding)))
    });
    let keys: KeyMap = keys.collect();
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
