//! The filter of a watch.

use crate::domain::{
    ChangeKind, Key, OrganizationName, OrganizationScope, Record, RecordChange, Username,
};

/// The filter of a watch. Default: all changes.
#[derive(Debug, Clone, Default)]
pub struct ChangeFilter {
    /// Changes of this organization and of its memberships, and changes that suspend, resume
    /// or delete its members.
    pub organization: Option<OrganizationName>,
    /// Changes of this user and of the user's memberships, and changes that suspend, resume
    /// or delete the user's organizations.
    pub user: Option<Username>,
    /// The organizations that the caller may read. Unless it has every organization, changes of users
    /// are included only if the filter has an organization.
    pub scope: OrganizationScope,
}

/// Whether a change matches the filter.
pub(super) enum Interest {
    Included,
    Excluded,
    /// It matches if this membership exists.
    IfMember(OrganizationName, Username),
}

impl ChangeFilter {
    pub(super) fn interest(&self, change: &RecordChange) -> Interest {
        let wants_organization = |it| self.organization.as_ref().is_none_or(|wanted| wanted == it);
        let wants_user = |it| self.user.as_ref().is_none_or(|wanted| wanted == it);
        match (&change.key, &self.organization, &self.user) {
            (Key::Membership(organization, user), ..) => {
                Interest::of(wants_organization(organization) && wants_user(user))
            }
            (Key::User(user), None, _) => Interest::of(wants_user(user) && self.scope.is_every()),
            (Key::Organization(it), _, None) => Interest::of(wants_organization(it)),
            (Key::User(user), Some(organization), _)
                if wants_user(user) && changes_standing(change) =>
            {
                Interest::IfMember(organization.clone(), user.clone())
            }
            (Key::Organization(organization), _, Some(user))
                if wants_organization(organization) && changes_standing(change) =>
            {
                Interest::IfMember(organization.clone(), user.clone())
            }
            (Key::User(_) | Key::Organization(_), ..) => Interest::Excluded,
        }
    }
}

impl Interest {
    fn of(is_included: bool) -> Self {
        if is_included {
            Self::Included
        } else {
            Self::Excluded
        }
    }
}

/// Whether a change of a user or an organization may affect its memberships.
fn changes_standing(change: &RecordChange) -> bool {
    let state = |record: &Option<Record>| {
        let record = record.as_ref()?;
        let state = match record {
            Record::User(user) => user.state,
            Record::Organization(organization) => organization.state,
            Record::Membership(_) => return None,
        };
        Some((state, record.deletion().is_some()))
    };
    match (change.kind, state(&change.before), state(&change.after)) {
        (ChangeKind::Created | ChangeKind::Expired, ..) => false,
        (ChangeKind::Updated, Some(before), Some(after)) => before != after,
        // A deletion, or a change with an omitted image.
        (ChangeKind::Deleted | ChangeKind::Updated, ..) => true,
    }
}
