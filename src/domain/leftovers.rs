//! What a deletion leaves to be removed.

use super::{OrganizationName, Timestamp, Uid, Username};

/// What is gone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Gone {
    /// A user.
    User(Username),
    /// An organization.
    Organization(OrganizationName),
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
