//! The facts of a membership check: the parts of three records that decide it.

use super::{Record, Role, State, Uid};

/// The present incarnation of a user's or an organization's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// Its identity. `None` if it has no stored uid.
    pub uid: Option<Uid>,
    /// Whether its memberships count.
    pub state: State,
}

/// The parts of a membership that decide a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipFacts {
    /// The member's role. `None` grants nothing, see [`super::Membership::role`].
    pub role: Option<Role>,
    /// The organization's incarnation. `None` if it has no stored uid.
    pub organization_uid: Option<Uid>,
    /// The member's incarnation. `None` if it has no stored uid.
    pub member_uid: Option<Uid>,
}

/// The parts of a record that decide a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckFacts {
    /// Of a user.
    User(Incarnation),
    /// Of an organization.
    Organization(Incarnation),
    /// Of a membership.
    Membership(MembershipFacts),
}

impl From<&Record> for CheckFacts {
    fn from(record: &Record) -> Self {
        match record {
            Record::User(user) => Self::User(user.incarnation()),
            Record::Organization(organization) => Self::Organization(organization.incarnation()),
            Record::Membership(membership) => Self::Membership(membership.facts()),
        }
    }
}
