//! Counts of memberships: of an organization by role, and of a user.

use super::{ProfileId, Role};

/// Numbers of memberships, by role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberCounts {
    /// With the role Owner.
    pub owners: i64,
    /// With the role Admin.
    pub admins: i64,
    /// With the role Member.
    pub members: i64,
    /// With a role that is unknown to this service.
    pub others: i64,
}

impl MemberCounts {
    /// Adds this number of memberships with a role.
    pub fn add(&mut self, role: Option<Role>, number: i64) {
        let count = match role {
            Some(Role::Owner) => &mut self.owners,
            Some(Role::Admin) => &mut self.admins,
            Some(Role::Member) => &mut self.members,
            None => &mut self.others,
        };
        *count += number;
    }

    /// The number of all memberships.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.owners + self.admins + self.members + self.others
    }
}

/// The effect of some changes on the counts of an incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountUpdate {
    /// The user or the organization.
    pub profile: ProfileId,
    /// The difference of its counts.
    pub added: MemberCounts,
    /// Whether it was created by one of the changes: all of its memberships are counted then.
    pub is_created: bool,
    /// Whether it was deleted by one of the changes.
    pub is_deleted: bool,
}
