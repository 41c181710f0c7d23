//! What a deletion leaves to be removed.

use super::{Key, OrganizationName, Timestamp, Uid, Username};

/// What is gone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Gone {
    /// A user.
    User(Username),
    /// An organization.
    Organization(OrganizationName),
}

impl Gone {
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
pub struct Leftovers {
    /// The user or the organization of the memberships.
    pub gone: Gone,
    /// The incarnation; `None` if the table gave it no identity.
    pub uid: Option<Uid>,
    /// When it was deleted.
    pub time: Timestamp,
}
