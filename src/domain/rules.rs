//! The rules: the permissions of each role, and the conditions of an effective membership.

use super::{ExpireTime, Membership, Organization, Role, Standing, State, Timestamp, User};

/// Least role of an actor who updates an organization.
pub const UPDATES_ORGANIZATION: Role = Role::Admin;
/// Least role of an actor who deletes an organization.
pub const DELETES_ORGANIZATION: Role = Role::Owner;
/// Least role of an actor who transfers the ownership of an organization.
pub const TRANSFERS_OWNERSHIP: Role = Role::Owner;

/// Whether an actor with the role `acting` may add a member with the role `granted`.
#[must_use]
pub fn may_add(acting: Role, granted: Role) -> bool {
    match acting {
        Role::Owner => true,
        Role::Admin => granted != Role::Owner,
        Role::Member => false,
    }
}

/// Whether an actor with the role `acting` may change a member's role. `from` is `None` if
/// the stored role is unknown.
#[must_use]
pub fn may_change_role(acting: Role, from: Option<Role>, to: Role) -> bool {
    match acting {
        Role::Owner => true,
        Role::Admin => from != Some(Role::Owner) && to != Role::Owner,
        Role::Member => false,
    }
}

/// Whether a membership that ends at `end` outlasts one that ends at `other`. `None`: no end. No
/// grant outlasts the membership of its actor.
#[must_use]
pub fn outlasts(end: Option<ExpireTime>, other: Option<ExpireTime>) -> bool {
    match (end, other) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(end), Some(other)) => end > other,
    }
}

/// Whether an actor with the role `acting` may change the other values of a membership with the role
/// `target`, `None` if the stored role is unknown.
#[must_use]
pub fn may_update_membership(acting: Role, target: Option<Role>) -> bool {
    may_remove(acting, target)
}

/// Whether an actor with the role `acting` may remove a member with the role `target`,
/// `None` if the stored role is unknown. A member who leaves needs no such permission.
#[must_use]
pub fn may_remove(acting: Role, target: Option<Role>) -> bool {
    match acting {
        Role::Owner => true,
        Role::Admin => target != Some(Role::Owner),
        Role::Member => false,
    }
}

/// The membership, if it is between the present incarnations of the user and the
/// organization, neither of which is deleted, and has not expired at `now`.
#[must_use]
pub fn standing_membership(
    user: Option<&User>,
    organization: Option<&Organization>,
    membership: Option<Membership>,
    now: impl FnOnce() -> Timestamp,
) -> Option<Standing> {
    let (user, organization, membership) = (user?, organization?, membership?);
    let state = state_between(user, organization, &membership, now)?;
    Some(Standing { membership, state })
}

/// The membership with its role, if it is effective at `now`.
#[must_use]
pub fn effective_membership<'a>(
    user: &User,
    organization: &Organization,
    membership: &'a Membership,
    now: impl FnOnce() -> Timestamp,
) -> Option<(Role, &'a Membership)> {
    let role = membership.role?;
    let state = state_between(user, organization, membership, now)?;
    (state == State::Active).then_some((role, membership))
}

/// Whether a membership counts. `None` if it is between other or deleted incarnations, or has expired.
fn state_between(
    user: &User,
    organization: &Organization,
    membership: &Membership,
    now: impl FnOnce() -> Timestamp,
) -> Option<State> {
    let is_theirs =
        membership.member_uid == user.uid && membership.organization_uid == organization.uid;
    let is_deleted = user.deletion.is_some() || organization.deletion.is_some();
    let is_there = is_theirs && !is_deleted && !membership.has_expired(now);
    is_there.then(|| user.state.and(organization.state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_owners_grant_or_touch_the_owner_role() {
        for role in Role::ALL {
            assert!(may_add(Role::Owner, role));
            assert!(may_remove(Role::Owner, Some(role)));
            assert_eq!(may_add(Role::Admin, role), role != Role::Owner);
            assert_eq!(may_remove(Role::Admin, Some(role)), role != Role::Owner);
            assert!(!may_add(Role::Member, role));
            assert!(!may_remove(Role::Member, Some(role)));
            for other in Role::ALL {
                let touches_owner = role == Role::Owner || other == Role::Owner;
                let role = Some(role);
                assert!(may_change_role(Role::Owner, role, other));
                assert_eq!(may_change_role(Role::Admin, role, other), !touches_owner);
                assert!(!may_change_role(Role::Member, role, other));
            }
        }
    }

    #[test]
    fn a_membership_without_an_end_outlasts_every_end() {
        let [never, soon, later] = [None, Some(ExpireTime(1)), Some(ExpireTime(2))];
        for end in [never, soon, later] {
            assert!(!outlasts(end, never));
            assert_eq!(outlasts(end, soon), end != soon);
            assert_eq!(outlasts(end, later), end == never);
        }
    }

    #[test]
    fn a_member_with_an_unknown_role_is_managed_like_a_member() {
        for acting in Role::ALL {
            let member = Some(Role::Member);
            assert_eq!(may_remove(acting, None), may_remove(acting, member));
            for to in Role::ALL {
                let repair = may_change_role(acting, None, to);
                assert_eq!(repair, may_change_role(acting, member, to));
            }
        }
    }
}
