//! Memberships and roles.

use super::{OrganizationName, Stamp, State, Uid, Username};

/// The permissions of a member. Ordered: a greater role includes the smaller ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Belongs to the organization.
    Member,
    /// Manages Members and Admins.
    Admin,
    /// May do everything within the organization.
    Owner,
}

impl Role {
    /// All roles, the smallest first.
    pub const ALL: [Self; 3] = [Self::Member, Self::Admin, Self::Owner];

    /// The name under which the role is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "Member",
            Self::Admin => "Admin",
            Self::Owner => "Owner",
        }
    }

    /// The role that is stored under this name; `None` if there is no such role.
    #[must_use]
    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        let mut roles = Self::ALL.into_iter();
        roles.find(|role| role.as_str().as_bytes() == name)
    }
}

/// The fact that a user belongs to an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The organization.
    pub organization_name: OrganizationName,
    /// The member.
    pub member_username: Username,
    /// The role. `None`: the stored role is unknown to this service, and grants nothing.
    pub role: Option<Role>,
    /// The acting user of the addition, as recorded: history, not a reference.
    pub adding_user: Option<String>,
    /// The organization's incarnation. `None` if it has no stored uid.
    pub organization_uid: Option<Uid>,
    /// The member's incarnation. `None` if it has no stored uid.
    pub member_uid: Option<Uid>,
    /// Version and times.
    pub stamp: Stamp,
}

/// A membership, and whether it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The membership.
    pub membership: Membership,
    /// Suspended while the user or the organization is.
    pub state: State,
}

impl Standing {
    /// The membership, if it counts.
    #[must_use]
    pub fn into_effective(self) -> Option<Membership> {
        (self.state == State::Active).then_some(self.membership)
    }
}
