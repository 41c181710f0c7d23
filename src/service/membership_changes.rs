//! Changes of a membership: its role, and its removal.

use async_trait::async_trait;

use super::{
    Refusal,
    idempotency::Repeatable,
    is_version,
    memberships::{
        MemberToRemove, RoleToChange, another_version, membership_key, not_a_member,
        read_actor_and_target,
    },
    other_owners::OtherOwners,
    read_set::transaction,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Key, Membership, Record, Role, Standing, Timestamp, Username, may_add, may_change_role,
        may_remove, outlasts,
    },
    store::{self, DynamoDb, Step},
};

/// The acting user of a change of its own membership.
fn own_actor<'a>(acting: &'a Username, member: &Username) -> Option<&'a Username> {
    (acting == member).then_some(acting)
}

pub(super) struct ChangeRole {
    pub(super) role: RoleToChange,
    pub(super) now: Timestamp,
}

impl Repeatable for ChangeRole {
    fn self_revoking_actor(&self) -> Option<&Username> {
        let change = &self.role;
        own_actor(&change.acting_user, &change.member_username)
    }
}

#[async_trait]
impl Change for ChangeRole {
    type Output = Standing;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        let RoleToChange {
            organization_name,
            member_username,
            ..
        } = &self.role;
        vec![membership_key(organization_name, member_username)]
    }

    fn may_publish(&self) -> bool {
        self.role.role > Role::Member
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<Standing, Refusal>, store::Error> {
        let RoleToChange {
            organization_name,
            member_username,
            role,
            acting_user,
            etag,
        } = &self.role;
        let found =
            read_actor_and_target(table, organization_name, acting_user, member_username).await?;
        // `may_add` first: an actor who may not grant the new role gets the same refusal for any target.
        let acting = found.acting(organization_name, acting_user);
        let actor = match acting.as_ref().and_then(|acting| acting.role) {
            Some(actor) if may_add(actor, *role) => actor,
            _ => return Ok(Verdict::Deny(Refusal::NotPermitted)),
        };
        let Some(target) = found.member_to_change(organization_name, member_username) else {
            return Ok(not_a_member(&found, organization_name, member_username));
        };
        let may_grant = |acting: &Membership| {
            let is_grant = Some(*role) > target.membership.role;
            !is_grant || !outlasts(target.membership.expire_time, acting.expire_time)
        };
        if !may_change_role(actor, target.membership.role, *role)
            || !acting.as_ref().is_some_and(may_grant)
        {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        }
        if !is_version(etag.as_ref(), &target.membership.stamp) {
            return Ok(another_version(&found, organization_name, member_username));
        }
        if target.membership.role == Some(*role) {
            return Ok(Verdict::Keep {
                output: target,
                premises: found.around(organization_name, member_username),
            });
        }
        let Standing {
            membership: target,
            state,
        } = target;
        let mut conditions = found.still_counts(organization_name, acting_user);
        conditions.extend(found.still_counts(organization_name, member_username));
        if target.role == Some(Role::Owner)
            && let Err(refused) =
                OtherOwners::require_one(table, acting.as_ref(), &target, &found, &mut conditions)
                    .await?
        {
            return Ok(refused);
        }
        let membership = Membership {
            role: Some(*role),
            stamp: target.stamp.changed(self.now),
            ..target.clone()
        };
        let is_grant = Some(*role) > target.role;
        let record = Record::Membership(membership.clone());
        let update = Step::Update {
            found: Record::Membership(target),
            record: record.clone(),
        };
        Ok(Verdict::Commit(Plan {
            steps: transaction(vec![update], conditions),
            publish: if is_grant { vec![record] } else { Vec::new() },
            premises: found.around(organization_name, member_username),
            output: Standing { membership, state },
        }))
    }
}

pub(super) struct RemoveMember(pub(super) MemberToRemove);

impl Repeatable for RemoveMember {
    fn self_revoking_actor(&self) -> Option<&Username> {
        let change = &self.0;
        own_actor(&change.acting_user, &change.member_username)
    }
}

#[async_trait]
impl Change for RemoveMember {
    type Output = Standing;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        let MemberToRemove {
            organization_name,
            member_username,
            ..
        } = &self.0;
        vec![membership_key(organization_name, member_username)]
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<Standing, Refusal>, store::Error> {
        let MemberToRemove {
            organization_name,
            member_username,
            acting_user,
            etag,
        } = &self.0;
        let found =
            read_actor_and_target(table, organization_name, acting_user, member_username).await?;
        let is_leaving = acting_user == member_username;
        let Some(acting) = found.acting(organization_name, acting_user) else {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        };
        let is_permitted = |target| {
            let may_remove = |role| may_remove(role, target);
            is_leaving || acting.role.is_some_and(may_remove)
        };
        if !is_permitted(Some(Role::Member)) {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        }
        let Some(target) = found.stored_member(organization_name, member_username) else {
            return Ok(not_a_member(&found, organization_name, member_username));
        };
        if !is_permitted(target.membership.role) {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        }
        if !is_version(etag.as_ref(), &target.membership.stamp) {
            return Ok(another_version(&found, organization_name, member_username));
        }
        let mut conditions = found.still_counts(organization_name, acting_user);
        let leaving = &target.membership;
        if leaving.role == Some(Role::Owner)
            && let Err(refused) =
                OtherOwners::require_one(table, Some(&acting), leaving, &found, &mut conditions)
                    .await?
        {
            return Ok(refused);
        }
        let delete = Step::Delete {
            found: Record::Membership(target.membership.clone()),
        };
        Ok(Verdict::Commit(Plan {
            steps: transaction(vec![delete], conditions),
            publish: Vec::new(),
            premises: Vec::new(),
            output: target,
        }))
    }
}
