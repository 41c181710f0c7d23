//! The cache: bytes under keys, with conditional writes only. It does not interpret the
//! bytes.

mod client;
mod momento;

use std::error::Error as StdError;

use bytes::Bytes;

pub use self::{
    client::MomentoClient,
    momento::{Credential, CredentialError, Momento, Settings},
};

/// Most keys of one look-up.
pub const MAX_KEYS: usize = 300;
/// Most keys of a short look-up. A page of 50 memberships, the default size of lists, looks up 101
/// keys.
const LONG: usize = 128;

/// Whether a look-up of this many keys is long. Long look-ups are limited and have a circuit breaker
/// of their own, so that they do not delay short ones.
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

/// The condition of a write.
#[derive(Debug, Clone, Copy)]
pub enum SetCondition<'a> {
    /// There is nothing under the key.
    Absent,
    /// These bytes are under the key.
    Equals(&'a [u8]),
    /// The value itself is not under the key.
    Differs,
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
}
