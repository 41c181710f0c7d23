//! Orphans: memberships of deleted users and organizations.

use super::{ProfileName, Timestamp, Uid};

/// Orphans: memberships of a deleted incarnation, and memberships under its name that name
/// no incarnation. They count for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphans {
    /// The user or the organization of the memberships.
    pub gone: ProfileName,
    /// The incarnation. `None` if it had no identity.
    pub uid: Option<Uid>,
    /// When it was deleted.
    pub time: Timestamp,
}
