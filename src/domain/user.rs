//! Users.

use super::{Email, ExternalId, FreeText, Labels, SoftDeletion, Stamp, State, Uid, Username};

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
    /// The e-mail address, unique among users.
    pub email: Option<Email>,
    /// The id in another system, unique among users.
    pub external_id: Option<ExternalId>,
    /// The labels that callers attached.
    pub labels: Labels,
    /// Whether the user's memberships count.
    pub state: State,
    /// The deletion, while it can be undone. The user counts as deleted, whatever its state.
    pub deletion: Option<SoftDeletion>,
    /// This incarnation of the name. `None` if it has no stored uid.
    pub uid: Option<Uid>,
    /// Version and times.
    pub stamp: Stamp,
}

impl User {
    /// The user as it is when its deletion is undone, with its stamp.
    #[must_use]
    pub fn undeleted(self) -> Self {
        Self {
            deletion: None,
            ..self
        }
    }
}
