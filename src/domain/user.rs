//! Users.

use super::{PersonName, Stamp, Uid, Username};

/// A person (or robot) that can belong to organizations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The unique name.
    pub username: Username,
    /// Given name.
    pub first_name: PersonName,
    /// Family name.
    pub last_name: PersonName,
    /// This incarnation of the name; `None` if the table does not say.
    pub uid: Option<Uid>,
    /// Version and times.
    pub stamp: Stamp,
}
