//! Changes of a membership's labels and of its end.

use async_trait::async_trait;

use super::{
    Refusal,
    idempotency::Repeatable,
    is_version,
    memberships::{
        MembershipToUpdate, another_version, is_in_future, membership_key, not_a_member,
        read_actor_and_target,
    },
    other_owners::OtherOwners,
    read_set::transaction,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{Key, Membership, Record, Role, Standing, Timestamp, may_update_membership, outlasts},
    store::{self, DynamoDb, Step},
};

pub(super) struct UpdateMembership {
    pub(super) membership: MembershipToUpdate,
    pub(super) now: Timestamp,
}

impl Repeatable for UpdateMembership {}

impl UpdateMembership {
    /// The membership after the change, with its old stamp.
    fn edit(&self, membership: &Membership) -> Membership {
        let update = &self.membership;
        Membership {
            expire_time: update.expire_time.unwrap_or(membership.expire_time),
            labels: update.labels.as_ref().unwrap_or(&membership.labels).clone(),
            ..membership.clone()
        }
    }

    /// Whether the changed values are valid.
    fn may_replace(&self, before: &Membership, now: Timestamp) -> Result<(), Refusal> {
        if self.membership.role.is_some() && self.membership.role != before.role {
            let why = "must be the role of the member; ChangeMemberRole changes it";
            return Err(Refusal::InvalidMembership(
                "membership.role",
                why.to_owned(),
            ));
        }
        let edited = self.edit(before);
        if edited.expire_time != before.expire_time {
            is_in_future("membership.expire_time", edited.expire_time, now)?;
        }
        let may_replace = edited.labels.may_replace(&before.labels);
        may_replace.map_err(|why| Refusal::InvalidMembership("membership.labels", why.to_string()))
    }
}

#[async_trait]
impl Change for UpdateMembership {
    type Output = Standing;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        let MembershipToUpdate {
            organization_name,
            member_username,
            ..
        } = &self.membership;
        vec![membership_key(organization_name, member_username)]
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<Standing, Refusal>, store::Error> {
        let MembershipToUpdate {
            organization_name,
            member_username,
            acting_user,
            etag,
            ..
        } = &self.membership;
        let found =
            read_actor_and_target(table, organization_name, acting_user, member_username).await?;
        let actor = found.acting(organization_name, acting_user);
        let is_permitted = |target: Option<Role>| {
            let role = actor.as_ref().and_then(|actor| actor.role);
            role.is_some_and(|role| may_update_membership(role, target))
        };
        if !is_permitted(Some(Role::Member)) {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        }
        let Some(target) = found.member_to_change(organization_name, member_username) else {
            return Ok(not_a_member(&found, organization_name, member_username));
        };
        let Standing {
            membership: before,
            state,
        } = target;
        let mut edited = self.edit(&before);
        let may_end = |acting: &Membership| {
            edited.expire_time == before.expire_time
                || (acting_user != member_username
                    && !(outlasts(edited.expire_time, before.expire_time)
                        && outlasts(edited.expire_time, acting.expire_time)))
        };
        if !is_permitted(before.role) || !actor.as_ref().is_some_and(may_end) {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        }
        if !is_version(etag.as_ref(), &before.stamp) {
            return Ok(another_version(&found, organization_name, member_username));
        }
        if let Err(refusal) = self.may_replace(&before, table.now()) {
            return Ok(Verdict::Deny(refusal));
        }
        let premises = found.around(organization_name, member_username);
        if edited == before {
            return Ok(Verdict::Keep {
                output: Standing {
                    membership: before,
                    state,
                },
                premises,
            });
        }
        let mut conditions = found.still_counts(organization_name, acting_user);
        conditions.extend(found.still_counts(organization_name, member_username));
        if before.is_lasting_owner()
            && !edited.is_lasting_owner()
            && let Err(refused) =
                OtherOwners::require_one(table, actor.as_ref(), &before, &found, &mut conditions)
                    .await?
        {
            return Ok(refused);
        }
        edited.stamp = before.stamp.changed(self.now);
        let update = Step::Update {
            found: Record::Membership(before),
            record: Record::Membership(edited.clone()),
        };
        Ok(Verdict::Commit(Plan {
            steps: transaction(vec![update], conditions),
            publish: Vec::new(),
            premises,
            output: Standing {
                membership: edited,
                state,
            },
        }))
    }
}
