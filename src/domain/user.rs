//! Users.

use super::{Email, ExternalId, FreeText, Labels, Stamp, State, Uid, Username};

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
    /// This incarnation of the name. `None` if it has no stored uid.
    pub uid: Option<Uid>,
    /// Version and times.
    pub stamp: Stamp,
}
