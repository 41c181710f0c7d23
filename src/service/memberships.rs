//! Memberships: get, add, change role, remove, leave.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use super::{
    Accounts, Call, Error, Freshness, Refusal, Source,
    idempotency::Repeatable,
    is_version,
    read_set::{ReadSet, keys_around, keys_of_member, transaction},
    store_failed,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Actor, Etag, Key, Membership, Organization, OrganizationName, Record, Role, Stamp,
        Standing, Timestamp, User, Username, may_add, may_change_role, may_remove,
        standing_membership,
    },
    store::{self, DynamoDb, Step},
};

/// Longest read of the index of Owners.
const HINT_PATIENCE: Duration = Duration::from_secs(1);
/// Owners that are read together to find a remaining one.
const OWNERS_AT_ONCE: usize = 25;

/// A member to add.
#[derive(Debug, Clone)]
pub struct MemberToAdd {
    /// The organization.
    pub organization_name: OrganizationName,
    /// The user to add.
    pub member_username: Username,
    /// The role to grant.
    pub role: Role,
    /// The acting user.
    pub adding_user: Username,
}

/// A role to change.
#[derive(Debug, Clone)]
pub struct RoleToChange {
    /// The organization.
    pub organization_name: OrganizationName,
    /// The member.
    pub member_username: Username,
    /// The new role.
    pub role: Role,
    /// The acting user.
    pub acting_user: Username,
    /// The version to change. `None`: any.
    pub etag: Option<Etag>,
}

/// A member to remove.
#[derive(Debug, Clone)]
pub struct MemberToRemove {
    /// The organization.
    pub organization_name: OrganizationName,
    /// The member.
    pub member_username: Username,
    /// The acting user. The member itself, to leave.
    pub acting_user: Username,
    /// The version to remove. `None`: any.
    pub etag: Option<Etag>,
}

impl Accounts {
    /// Returns a membership, also while it is suspended.
    ///
    /// # Errors
    /// [`Refusal::MembershipNotFound`].
    pub async fn get_membership(
        &self,
        organization: OrganizationName,
        username: Username,
        freshness: Freshness,
    ) -> Result<(Standing, Source), Error> {
        let keys = keys_of_member(&organization, &username);
        let answer = self.reads.read(&keys, freshness).await;
        let answer = answer.map_err(store_failed)?;
        standing(answer.records)
            .map(|standing| (standing, answer.source))
            .ok_or(Error::Refused(Refusal::MembershipNotFound(
                organization,
                username,
            )))
    }

    /// Adds a member.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::UserNotFound`],
    /// [`Refusal::MembershipExists`].
    pub async fn add_member(&self, member: MemberToAdd, call: Call) -> Result<Standing, Error> {
        let actor = Actor::User(member.adding_user.clone());
        let change = AddMember {
            member,
            now: Timestamp::now(),
        };
        self.apply(change, actor, call).await
    }

    /// Changes a member's role.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::MembershipNotFound`],
    /// [`Refusal::LastOwner`].
    pub async fn change_role(&self, role: RoleToChange, call: Call) -> Result<Standing, Error> {
        let actor = Actor::User(role.acting_user.clone());
        let change = ChangeRole {
            role,
            now: Timestamp::now(),
        };
        self.apply(change, actor, call).await
    }

    /// Removes a member. Returns the membership as it was.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::MembershipNotFound`],
    /// [`Refusal::LastOwner`].
    pub async fn remove_member(
        &self,
        member: MemberToRemove,
        call: Call,
    ) -> Result<Standing, Error> {
        let actor = Actor::User(member.acting_user.clone());
        self.apply(RemoveMember(member), actor, call).await
    }
}

/// The membership among the records of [`keys_of_member`], if there is one.
pub(super) fn standing(records: Vec<Option<Record>>) -> Option<Standing> {
    let mut records = records.into_iter();
    let user = records.next().flatten().and_then(Record::into_user);
    let organization = records.next().flatten().and_then(Record::into_organization);
    let membership = records.next().flatten().and_then(Record::into_membership);
    standing_membership(user.as_ref(), organization.as_ref(), membership)
}

async fn read_actor_and_target(
    table: &DynamoDb,
    organization: &OrganizationName,
    actor: &Username,
    target: &Username,
) -> Result<ReadSet, store::Error> {
    let actor = keys_of_member(organization, actor);
    let target = keys_of_member(organization, target);
    ReadSet::read(table, actor.into_iter().chain(target)).await
}

fn membership_key(organization: &OrganizationName, username: &Username) -> Key {
    Key::Membership(organization.clone(), username.clone())
}

/// Refuses because the target is no member. Only an actor who may manage members gets this
/// refusal.
pub(super) fn not_a_member<T>(
    found: &ReadSet,
    organization: &OrganizationName,
    username: &Username,
) -> Verdict<T, Refusal> {
    let refusal = Refusal::MembershipNotFound(organization.clone(), username.clone());
    found.refuse(keys_around(organization, username), refusal)
}

/// Refuses because the membership has another version than the etag.
fn another_version<T>(
    found: &ReadSet,
    organization: &OrganizationName,
    username: &Username,
) -> Verdict<T, Refusal> {
    found.refuse(keys_around(organization, username), Refusal::EtagMismatch)
}

/// The search for a remaining Owner when another one leaves.
struct OtherOwners<'a> {
    table: &'a DynamoDb,
    organization: &'a OrganizationName,
    leaving: &'a Username,
    /// Records of Owners who do not remain.
    others: ReadSet,
}

impl OtherOwners<'_> {
    /// Adds the condition that another Owner remains. Refuses if there is none. `found` has
    /// the records of the leaving Owner's membership.
    async fn require_one<T>(
        table: &DynamoDb,
        organization: &OrganizationName,
        leaving: &Username,
        found: &ReadSet,
        conditions: &mut Vec<Step>,
    ) -> Result<Result<(), Verdict<T, Refusal>>, store::Error> {
        let mut search = OtherOwners {
            table,
            organization,
            leaving,
            others: ReadSet::empty(),
        };
        if let Some(remains) = search.find().await? {
            conditions.extend(remains);
            return Ok(Ok(()));
        }
        let mut others = search.others;
        let mut because_of: Vec<_> = others.keys().cloned().collect();
        because_of.extend(keys_around(organization, leaving));
        others.extend(found.clone());
        let refusal = Refusal::LastOwner(organization.clone());
        Ok(Err(others.refuse(because_of, refusal)))
    }

    /// The conditions that another Owner remains. `None` if there is none.
    async fn find(&mut self) -> Result<Option<Vec<Step>>, store::Error> {
        let hints = timeout(HINT_PATIENCE, self.table.owner_hints(self.organization));
        let hints = match hints.await {
            Ok(Ok(hints)) => hints,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the index of Owners cannot be read");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        if let Some(remains) = self.find_among(&hints).await? {
            return Ok(Some(remains));
        }
        // The index may miss an Owner: only the members themselves prove that there is
        // none.
        let mut after = None;
        loop {
            let page = self.table.owners(self.organization, after.as_ref()).await?;
            if let Some(remains) = self.find_among(&page.found).await? {
                return Ok(Some(remains));
            }
            after = match page.next {
                None => return Ok(None),
                next => next,
            };
        }
    }

    /// Owners whose users are deleted or suspended do not remain.
    async fn find_among(&mut self, owners: &[Username]) -> Result<Option<Vec<Step>>, store::Error> {
        let organization = self.organization;
        let others: Vec<_> = owners.iter().filter(|it| *it != self.leaving).collect();
        for some in others.chunks(OWNERS_AT_ONCE) {
            let keys = some
                .iter()
                .flat_map(|owner| keys_of_member(organization, owner));
            let found = ReadSet::read(self.table, keys).await?;
            let remaining = some
                .iter()
                .find(|owner| found.role(organization, owner) == Some(Role::Owner));
            if let Some(owner) = remaining {
                return Ok(Some(found.still_counts(organization, owner)));
            }
            self.others.extend(found);
        }
        Ok(None)
    }
}

/// A user who becomes a member.
pub(super) struct NewMember<'a> {
    pub(super) organization: &'a Organization,
    pub(super) user: &'a User,
    pub(super) role: Role,
    /// The acting user. `None` for the platform.
    pub(super) adding_user: Option<&'a Username>,
}

impl NewMember<'_> {
    /// The new membership, and the step that writes it over the membership of an earlier
    /// incarnation of either name.
    pub(super) fn join(self, found: &ReadSet, stamp: Stamp) -> (Step, Standing) {
        let membership = Membership {
            organization_name: self.organization.organization_name.clone(),
            member_username: self.user.username.clone(),
            role: Some(self.role),
            adding_user: self.adding_user.map(ToString::to_string),
            organization_uid: self.organization.uid.clone(),
            member_uid: self.user.uid.clone(),
            stamp,
        };
        let record = Record::Membership(membership.clone());
        let create = Step::Create {
            found: found.record(&record.key()).cloned(),
            record,
        };
        let standing = Standing {
            membership,
            state: self.user.state.and(self.organization.state),
        };
        (create, standing)
    }
}

struct AddMember {
    member: MemberToAdd,
    now: Timestamp,
}

impl Repeatable for AddMember {}

#[async_trait]
impl Change for AddMember {
    type Output = Standing;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        let MemberToAdd {
            organization_name,
            member_username,
            ..
        } = &self.member;
        vec![membership_key(organization_name, member_username)]
    }

    fn may_publish(&self) -> bool {
        true
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<Standing, Refusal>, store::Error> {
        let MemberToAdd {
            organization_name,
            member_username,
            role,
            adding_user,
        } = &self.member;
        let found =
            read_actor_and_target(table, organization_name, adding_user, member_username).await?;
        let actor = found.role(organization_name, adding_user);
        let organization = match (found.organization(organization_name), actor) {
            (Some(organization), Some(actor)) if may_add(actor, *role) => organization,
            _ => return Ok(Verdict::Deny(Refusal::NotPermitted)),
        };
        let user_key = Key::User(member_username.clone());
        let Some(user) = found.user(member_username) else {
            let refusal = Refusal::UserNotFound(member_username.clone());
            return Ok(found.refuse([user_key], refusal));
        };
        if found.member(organization_name, member_username).is_some() {
            let refusal =
                Refusal::MembershipExists(organization_name.clone(), member_username.clone());
            let because_of = keys_around(organization_name, member_username);
            return Ok(found.refuse(because_of, refusal));
        }
        let new = NewMember {
            organization,
            user,
            role: *role,
            adding_user: Some(adding_user),
        };
        let (create, standing) = new.join(&found, Stamp::created(self.now));
        let mut conditions = found.still_counts(organization_name, adding_user);
        conditions.push(found.still(user_key));
        Ok(Verdict::Commit(Plan {
            steps: transaction(vec![create], conditions),
            publish: vec![Record::Membership(standing.membership.clone())],
            premises: found.around(organization_name, member_username),
            output: standing,
        }))
    }
}

struct ChangeRole {
    role: RoleToChange,
    now: Timestamp,
}

impl Repeatable for ChangeRole {
    fn gives_up_permission(&self) -> Option<&Username> {
        let change = &self.role;
        let is_own = change.acting_user == change.member_username;
        is_own.then_some(&change.acting_user)
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
        let actor = match found.role(organization_name, acting_user) {
            Some(actor) if may_add(actor, *role) => actor,
            _ => return Ok(Verdict::Deny(Refusal::NotPermitted)),
        };
        let Some(target) = found.member(organization_name, member_username) else {
            return Ok(not_a_member(&found, organization_name, member_username));
        };
        if !may_change_role(actor, target.membership.role, *role) {
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
        // An Owner who acts on another one remains.
        if target.role == Some(Role::Owner)
            && acting_user == member_username
            && let Err(refused) = OtherOwners::require_one(
                table,
                organization_name,
                member_username,
                &found,
                &mut conditions,
            )
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

struct RemoveMember(MemberToRemove);

impl Repeatable for RemoveMember {
    fn gives_up_permission(&self) -> Option<&Username> {
        let change = &self.0;
        let is_own = change.acting_user == change.member_username;
        is_own.then_some(&change.acting_user)
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
        let acting = found.member(organization_name, acting_user);
        let Some(acting) = acting.and_then(Standing::into_effective) else {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        };
        let is_permitted = |target| {
            let may_remove = |role| may_remove(role, target);
            is_leaving || acting.role.is_some_and(may_remove)
        };
        if !is_permitted(Some(Role::Member)) {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        }
        let Some(target) = found.member(organization_name, member_username) else {
            return Ok(not_a_member(&found, organization_name, member_username));
        };
        if !is_permitted(target.membership.role) {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        }
        if !is_version(etag.as_ref(), &target.membership.stamp) {
            return Ok(another_version(&found, organization_name, member_username));
        }
        let mut conditions = found.still_counts(organization_name, acting_user);
        // An Owner who removes another one remains.
        if target.membership.role == Some(Role::Owner)
            && is_leaving
            && let Err(refused) = OtherOwners::require_one(
                table,
                organization_name,
                member_username,
                &found,
                &mut conditions,
            )
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
