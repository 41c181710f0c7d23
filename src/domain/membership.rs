//! Memberships and roles.

use super::{Labels, OrganizationName, Stamp, State, Timestamp, Uid, Username};

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
    /// The time from which there is no membership. `None`: it does not expire.
    pub expire_time: Option<ExpireTime>,
    /// Labels.
    pub labels: Labels,
    /// Version and times.
    pub stamp: Stamp,
}

impl Membership {
    /// Whether the member is an Owner whose membership does not expire. An organization keeps at
    /// least one.
    #[must_use]
    pub fn is_lasting_owner(&self) -> bool {
        self.role == Some(Role::Owner) && self.expire_time.is_none()
    }

    /// Whether the membership has expired at `now`.
    #[must_use]
    pub fn has_expired(&self, now: impl FnOnce() -> Timestamp) -> bool {
        self.expire_time
            .is_some_and(|expire_time| !expire_time.is_after(now()))
    }
}

/// The end of a membership, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpireTime(pub i64);

impl ExpireTime {
    /// Whether this is a later second than `now`.
    #[must_use]
    pub fn is_after(self, now: Timestamp) -> bool {
        self.0 > now.seconds()
    }
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
    /// Whether the membership counts: one with an unknown role does not.
    #[must_use]
    pub fn effective_state(&self) -> State {
        match self.membership.role {
            Some(_) => self.state,
            None => State::Suspended,
        }
    }

    /// The membership, if it counts.
    #[must_use]
    pub fn into_effective(self) -> Option<Membership> {
        (self.state == State::Active).then_some(self.membership)
    }
}
