//! Users.

use super::{Email, FreeText, Incarnation, Labels, Stamp, State, Uid, Username};

/// A person (or robot) that can belong to organizations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The unique name.
    pub username: Username,
    /// Given name.
    pub first_name: FreeText,
    /// Family name.
    pub last_name: FreeText,
    /// Name to show.
    pub display_name: FreeText,
    /// The e-mail address, no other user's.
    pub email: Option<Email>,
    /// What callers attached.
    pub labels: Labels,
    /// Whether the user's memberships count.
    pub state: State,
    /// This incarnation of the name; `None` if the table does not say.
    pub uid: Option<Uid>,
    /// Version and times.
    pub stamp: Stamp,
}

impl User {
    /// Which incarnation this is, and whether it takes part.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        Incarnation {
            uid: self.uid.clone(),
            state: self.state,
        }
    }
}
