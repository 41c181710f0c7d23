//! Orphans: memberships of deleted users and organizations.

use super::{Key, OrganizationName, Timestamp, Uid, Username};

/// What is gone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DeletedName {
    /// A user.
    User(Username),
    /// An organization.
    Organization(OrganizationName),
}

impl DeletedName {
    /// The key of the record that is gone.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::User(username) => Key::User(username.clone()),
            Self::Organization(name) => Key::Organization(name.clone()),
        }
    }
}

/// Memberships of an incarnation that is gone, and memberships under its name that name
/// no incarnation. They count for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphans {
    /// The user or the organization of the memberships.
    pub gone: DeletedName,
    /// The incarnation; `None` if the table gave it no identity.
    pub uid: Option<Uid>,
    /// When it was deleted.
    pub time: Timestamp,
}
