//! What a deletion leaves to be removed.

use std::fmt;

use super::{OrganizationName, Timestamp, Uid, Username};

/// What is gone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Gone {
    /// A user.
    User(Username),
    /// An organization.
    Organization(OrganizationName),
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(username) => username.fmt(f),
            Self::Organization(name) => name.fmt(f),
        }
    }
}

/// Memberships of an incarnation that is gone. They count for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftovers {
    /// Whose memberships.
    pub gone: Gone,
    /// The incarnation. Of one that the table gave no identity, nothing can be
    /// told from what belongs to another one of the same name.
    pub uid: Uid,
    /// When it was deleted.
    pub time: Timestamp,
}
