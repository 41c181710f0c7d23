//! The effect of changes on the counts of memberships.

use std::collections::HashSet;

use crate::{
    domain::{
        ChangeKind, CountUpdate, MemberCounts, Membership, ProfileId, Record, RecordChange, Role,
    },
    store::ScheduledEnd,
};

/// The updates of the counts of all users and organizations that these changes affect. `scheduled` are
/// the scheduled ends of the memberships before the changes. A membership with an end is counted while
/// its end is scheduled: until the end is in the log.
pub(super) fn count_updates(
    changes: &[RecordChange],
    mut scheduled: HashSet<ScheduledEnd>,
) -> Vec<CountUpdate> {
    let mut updates = Updates(Vec::new());
    for change in changes {
        scheduled.extend(ScheduledEnd::set_by(change));
        let counted = |record: &Option<Record>| match record {
            Some(Record::Membership(membership)) => {
                let end = ScheduledEnd::of(membership);
                let is_counted = end.is_none_or(|end| scheduled.contains(&end));
                is_counted.then(|| CountedMembership::of(membership))
            }
            _ => None,
        };
        updates.membership(counted(&change.before), counted(&change.after));
        let profile = |record: &Option<Record>| record.as_ref().and_then(ProfileId::of);
        match change.kind {
            ChangeKind::Created => {
                if let Some(created) = profile(&change.after) {
                    updates.of(created).is_created = true;
                }
            }
            ChangeKind::Deleted => {
                if let Some(deleted) = profile(&change.before) {
                    updates.of(deleted).is_deleted = true;
                }
            }
            ChangeKind::Updated | ChangeKind::Expired => {}
        }
    }
    updates.0
}

/// A membership as it is counted.
#[derive(PartialEq)]
struct CountedMembership {
    role: Option<Role>,
    organization: ProfileId,
    member: ProfileId,
}

impl CountedMembership {
    fn of(membership: &Membership) -> Self {
        Self {
            role: membership.role,
            organization: ProfileId::organization_of(membership),
            member: ProfileId::member_of(membership),
        }
    }
}

/// One update for each incarnation: a transaction writes an item once.
struct Updates(Vec<CountUpdate>);

impl Updates {
    fn of(&mut self, profile: ProfileId) -> &mut CountUpdate {
        let found = self.0.iter().position(|it| it.profile == profile);
        let position = found.unwrap_or_else(|| {
            self.0.push(CountUpdate {
                profile,
                added: MemberCounts::default(),
                is_created: false,
                is_deleted: false,
            });
            self.0.len() - 1
        });
        &mut self.0[position]
    }

    /// A change of a membership that is counted before, after, or both.
    fn membership(&mut self, before: Option<CountedMembership>, after: Option<CountedMembership>) {
        if before == after {
            return;
        }
        for (counted, number) in [(before, -1), (after, 1)] {
            if let Some(CountedMembership {
                role,
                organization,
                member,
            }) = counted
            {
                self.of(organization).added.add(role, number);
                self.of(member).added.add(role, number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ExpireTime, Key, Labels, OrganizationName, Stamp, Uid, Username};

    fn michael(role: Role, end: Option<i64>) -> Membership {
        Membership {
            organization_name: OrganizationName::parse_new("olivia-org").unwrap(),
            member_username: Username::parse_new("membermichael").unwrap(),
            role: Some(role),
            adding_user: None,
            organization_uid: Uid::from_text("o-1"),
            member_uid: Uid::from_text("u-1"),
            expire_time: end.map(ExpireTime),
            labels: Labels::default(),
            stamp: Stamp::default(),
        }
    }

    fn change(
        kind: ChangeKind,
        before: Option<Membership>,
        after: Option<Membership>,
    ) -> RecordChange {
        let any = michael(Role::Member, None);
        RecordChange {
            key: Key::Membership(any.organization_name, any.member_username),
            kind,
            before: before.map(Record::Membership),
            after: after.map(Record::Membership),
            time: None,
            made: None,
        }
    }

    /// The numbers of Admins and Members that changes add to the organization, and of all memberships
    /// that they add to the user.
    fn added(changes: &[RecordChange], scheduled: &[Membership]) -> Option<(i64, i64, i64)> {
        let scheduled = scheduled.iter().filter_map(ScheduledEnd::of).collect();
        let updates = count_updates(changes, scheduled);
        let [organization, user] = &updates[..] else {
            assert_eq!(updates, []);
            return None;
        };
        let MemberCounts {
            admins, members, ..
        } = organization.added;
        Some((admins, members, user.added.total()))
    }

    #[test]
    fn a_membership_is_counted_once_from_its_creation_to_its_end() {
        use ChangeKind::{Created, Deleted, Expired, Updated};
        let member = || Some(michael(Role::Member, None));
        let admin = || Some(michael(Role::Admin, None));
        let ending = || Some(michael(Role::Member, Some(7)));
        let scheduled = [michael(Role::Member, Some(7))];
        let created = change(Created, None, member());
        assert_eq!(added(&[created], &[]), Some((0, 1, 1)));
        let promoted = change(Updated, member(), admin());
        assert_eq!(added(&[promoted], &[]), Some((1, -1, 0)));
        let labelled = change(Updated, member(), member());
        assert_eq!(added(&[labelled], &[]), None);
        let deleted = change(Deleted, member(), None);
        assert_eq!(added(&[deleted], &[]), Some((0, -1, -1)));
        let unlimited = change(Updated, ending(), member());
        assert_eq!(added(&[unlimited], &scheduled), None);
        let prolonged = change(Updated, ending(), Some(michael(Role::Member, Some(9))));
        assert_eq!(added(&[prolonged], &scheduled), None);

        // It has ended: its removal and its replacement do not count its end again.
        let expired = change(Expired, ending(), None);
        assert_eq!(added(&[expired], &scheduled), Some((0, -1, -1)));
        let removed = change(Deleted, ending(), None);
        assert_eq!(added(std::slice::from_ref(&removed), &[]), None);
        let edited = change(Updated, ending(), Some(michael(Role::Admin, Some(7))));
        assert_eq!(added(&[edited], &[]), None);
        let replaced = change(Updated, ending(), admin());
        assert_eq!(added(&[replaced], &[]), Some((1, 0, 1)));
        // Removed before its end was logged, or in the page of its creation.
        assert_eq!(
            added(std::slice::from_ref(&removed), &scheduled),
            Some((0, -1, -1))
        );
        let created = change(Created, None, ending());
        assert_eq!(added(&[created, removed], &[]), Some((0, 0, 0)));
    }
}
