//! What a check needs to know of records, and nothing more.

use super::{Record, Role, State, Uid};

/// Which user or organization it is that has a name now, and whether it takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// This incarnation of the name; `None` if the table does not say.
    pub uid: Option<Uid>,
    /// Whether its memberships count.
    pub state: State,
}

/// Between whom a membership is, and what it lets the member do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bond {
    /// What the member may do. `None`: nothing, see [`super::Membership::role`].
    pub role: Option<Role>,
    /// The organization's incarnation; `None` if the table does not say.
    pub organization_uid: Option<Uid>,
    /// The member's incarnation; `None` if the table does not say.
    pub member_uid: Option<Uid>,
}

/// The gist of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gist {
    /// Of a user.
    User(Incarnation),
    /// Of an organization.
    Organization(Incarnation),
    /// Of a membership.
    Membership(Bond),
}

impl From<&Record> for Gist {
    fn from(record: &Record) -> Self {
        match record {
            Record::User(user) => Self::User(user.incarnation()),
            Record::Organization(organization) => Self::Organization(organization.incarnation()),
            Record::Membership(membership) => Self::Membership(membership.bond()),
        }
    }
}
