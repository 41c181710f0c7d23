//! The cache: bytes under keys, with conditional writes only. It does not interpret the
//! bytes.

mod client;
mod key_batch;
mod momento;

use std::{error::Error as StdError, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

pub use self::{
    client::MomentoClient,
    key_batch::Keys,
    momento::{Credential, CredentialError, Momento, Settings},
};

/// Most keys of one look-up.
pub const MAX_KEYS: usize = 300;
/// Most keys of a short look-up. More than the look-up of a list with the default page size of 50,
/// which has two keys for each entry and one more.
const LONG: usize = 128;

/// Whether a look-up of this many keys is long. Short look-ups are kept separate from long ones,
/// because they would have to wait for the responses.
#[must_use]
pub fn is_long(keys: usize) -> bool {
    keys > LONG
}

/// The result of the look-up of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The value under the key.
    Hit(Bytes),
    /// There is no value under the key.
    Miss,
    /// The cache did not return a result.
    Unknown,
}

/// Connections to a cache. Each operation is one round trip without retries. There is no plain set
/// and no delete: every mutation is conditional, because Momento leaves it undefined how plain and
/// conditional writes of one key mix.
#[async_trait]
pub trait Cache: Send + Sync {
    /// Looks up distinct keys, at most [`MAX_KEYS`], with the consistent read concern. Returns
    /// one result per key, in the order of the keys.
    ///
    /// # Errors
    /// No response.
    async fn get(&self, keys: &Keys) -> Result<Vec<Found>, Error>;

    /// Stores the value if there is nothing under the key. Returns whether it did.
    ///
    /// # Errors
    /// No response: the value may be stored, now or later.
    async fn set_if_absent(&self, key: &str, value: &[u8], ttl: Duration) -> Result<bool, Error>;

    /// Stores the value if `expected` is under the key. Returns whether it did.
    ///
    /// # Errors
    /// No response: the value may be stored, now or later.
    async fn set_if_equal(
        &self,
        key: &str,
        value: &[u8],
        expected: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error>;

    /// Stores the value, unless the same value is under the key. Returns whether it did.
    ///
    /// # Errors
    /// No response: the value may be stored, now or later.
    async fn set_if_not_equal(&self, key: &str, value: &[u8], ttl: Duration)
    -> Result<bool, Error>;
}

/// The kind of a failure of the cache, for callers to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The cache is unreachable, is overloaded, or did not respond in time.
    Unavailable,
    /// The cache rejects the credential.
    Credential,
    /// There is no cache of this name.
    Missing,
    /// The cache rejects the request.
    Refused,
}

impl FailureKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "the cache is unavailable",
            Self::Credential => "the cache rejects the credential",
            Self::Missing => "there is no such cache",
            Self::Refused => "the cache rejects the request",
        }
    }
}

/// A failed cache operation.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", .kind.as_str())]
pub struct Error {
    /// The kind.
    pub kind: FailureKind,
    /// The details, for operators, without keys and credentials.
    pub source: Box<dyn StdError + Send + Sync>,
}

impl Error {
    fn new(kind: FailureKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        Self { kind, source }
    }

    /// A copy for another caller of the same look-up.
    fn to_copy(&self) -> Self {
        Self {
            kind: self.kind,
            source: self.source.to_string().into(),
        }
    }
}
