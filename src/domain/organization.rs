//! Organizations.

use super::{ExternalId, FreeText, Labels, OrganizationName, SoftDeletion, Stamp, State, Uid};

/// A group of users, each with a role in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Organization {
    /// The unique name.
    pub organization_name: OrganizationName,
    /// The founder's name as it was recorded; history, not a reference.
    pub founding_user: String,
    /// Name to show.
    pub display_name: FreeText,
    /// The id in another system, unique among organizations.
    pub external_id: Option<ExternalId>,
    /// The labels that callers attached.
    pub labels: Labels,
    /// Whether the organization's memberships count.
    pub state: State,
    /// The deletion, while it can be undone. The organization counts as deleted, whatever its state.
    pub deletion: Option<SoftDeletion>,
    /// This incarnation of the name. `None` if it has no stored uid.
    pub uid: Option<Uid>,
    /// Version and times.
    pub stamp: Stamp,
}

impl Organization {
    /// The organization as it is when its deletion is undone, with its stamp.
    #[must_use]
    pub fn undeleted(self) -> Self {
        Self {
            deletion: None,
            ..self
        }
    }
}
