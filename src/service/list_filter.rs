//! Filters of lists of memberships.

use crate::domain::{NameMatch, Role, Standing, State};

/// The memberships of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MembershipFilter {
    /// The name by which the list is ordered.
    pub name: NameMatch,
    /// The role. `None`: any, also an unknown one.
    pub role: Option<Role>,
    /// Whether the membership counts. `None`: both.
    pub state: Option<State>,
}

impl MembershipFilter {
    /// Whether the role and the state match. The name is part of the query.
    pub(super) fn matches(&self, standing: &Standing) -> bool {
        let has_role = self.role.is_none() || standing.membership.role == self.role;
        has_role
            && self
                .state
                .is_none_or(|state| standing.effective_state() == state)
    }
}
