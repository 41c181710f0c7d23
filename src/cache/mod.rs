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

/// Keys that are looked up at once, at most.
pub const MAX_KEYS: usize = 300;
/// Keys of a look-up beyond which it is long. More than the page of 50 that lists
/// have unless told otherwise looks up, which are two for each entry and one.
const LONG: usize = 128;

/// Whether a look-up of so many keys is long: so long that short ones had to wait
/// for its answer, and are kept apart from it.
#[must_use]
pub fn is_long(keys: usize) -> bool {
    keys > LONG
}

/// What a look-up found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The value under the key.
    Hit(Bytes),
    /// There is nothing under the key.
    Miss,
    /// The cache did not say.
    Unknown,
}

/// Connections to a cache. Each operation is one round trip, tried once. There is no plain set
/// and no delete: every mutation is conditional, because Momento leaves it undefined how plain
/// and conditional writes of one key mix.
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

    /// Stores the value over anything but this very value. Returns whether it did.
    ///
    /// # Errors
    /// No response: the value may be stored, now or later.
    async fn set_if_not_equal(&self, key: &str, value: &[u8], ttl: Duration)
    -> Result<bool, Error>;
}

/// What went wrong in the cache, as far as callers care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The cache cannot be reached, is overloaded, or did not answer in time.
    Unavailable,
    /// The credential was refused.
    Credential,
    /// There is no cache of this name.
    Missing,
    /// The cache refuses the request.
    Refused,
}

impl FailureKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "the cache is unavailable",
            Self::Credential => "the cache refuses the credential",
            Self::Missing => "there is no such cache",
            Self::Refused => "the cache refuses the request",
        }
    }
}

/// A failed cache operation.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", .kind.as_str())]
pub struct Error {
    /// The kind.
    pub kind: FailureKind,
    /// What happened, for operators. Holds no key and no credential.
    pub source: Box<dyn StdError + Send + Sync>,
}

impl Error {
    fn new(kind: FailureKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        Self { kind, source }
    }

    /// The same for somebody else who waited for it.
    fn told_again(&self) -> Self {
        Self {
            kind: self.kind,
            source: self.source.to_string().into(),
        }
    }
}
