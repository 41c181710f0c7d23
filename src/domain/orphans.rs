//! Orphans: memberships of deleted users and organizations.

use super::{Key, OrganizationName, Timestamp, Uid, Username};

/// The name of a deleted record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DeletedName {
    /// A user.
    User(Username),
    /// An organization.
    Organization(OrganizationName),
}

impl DeletedName {
    /// The key of the deleted record.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::User(username) => Key::User(username.clone()),
            Self::Organization(name) => Key::Organization(name.clone()),
        }
    }
}

/// Orphans: memberships of a deleted incarnation, and memberships under its name that name
/// no incarnation. They count for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphans {
    /// The user or the organization of the memberships.
    pub gone: DeletedName,
    /// The incarnation. `None` if it had no identity.
    pub uid: Option<Uid>,
    /// When it was deleted.
    pub time: Timestamp,
}
