//! Memberships: get, add, change role, remove, leave.

use async_trait::async_trait;

use super::{
    Accounts, Call, Error, Freshness, Refusal, Source,
    idempotency::Repeatable,
    membership_changes::{ChangeRole, RemoveMember},
    membership_updates::UpdateMembership,
    read_set::{ReadSet, keys_around, keys_of_member, transaction},
    scope::require,
    store_failed,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Actor, Etag, ExpireTime, Key, Labels, Membership, Organization, OrganizationName,
        OrganizationScope, Record, Role, Stamp, Standing, Timestamp, User, Username, may_add,
        outlasts, standing_membership,
    },
    store::{self, DynamoDb, Step},
};

/// A member to add.
#[derive(Debug, Clone)]
pub struct MemberToAdd {
    /// The organization.
    pub organization_name: OrganizationName,
    /// The user to add.
    pub member_username: Username,
    /// The role to grant.
    pub role: Role,
    /// The end of the membership. `None`: it does not expire.
    pub expire_time: Option<ExpireTime>,
    /// Labels.
    pub labels: Labels,
    /// The acting user.
    pub adding_user: Username,
}

/// Values of a membership to change, other than its role.
#[derive(Debug, Clone)]
pub struct MembershipToUpdate {
    /// The organization.
    pub organization_name: OrganizationName,
    /// The member.
    pub member_username: Username,
    /// The new end of the membership. `None` leaves it unchanged; `Some(None)`: it does not expire.
    pub expire_time: Option<Option<ExpireTime>>,
    /// All labels. `None` leaves them unchanged.
    pub labels: Option<Labels>,
    /// The role that the member must have. `None`: any.
    pub role: Option<Role>,
    /// The acting user.
    pub acting_user: Username,
    /// The version to change. `None`: any.
    pub etag: Option<Etag>,
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
    /// [`Refusal::OrganizationNotGranted`], [`Refusal::MembershipNotFound`].
    pub async fn get_membership(
        &self,
        scope: &OrganizationScope,
        organization: OrganizationName,
        username: Username,
        freshness: Freshness,
    ) -> Result<(Standing, Source), Error> {
        let keys = keys_of_member(&organization, &username);
        let result = self.reads.read(&keys, freshness).await;
        let result = result.map_err(store_failed)?;
        require(scope, &organization, result.record(1))?;
        let source = result.source;
        standing(result.into_records(), || self.table.now())
            .map(|standing| (standing, source))
            .ok_or(Error::Refused(Refusal::MembershipNotFound(
                organization,
                username,
            )))
    }

    /// Adds a member.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::UserNotFound`],
    /// [`Refusal::MembershipExists`], [`Refusal::InvalidMembership`].
    pub async fn add_member(&self, member: MemberToAdd, call: Call) -> Result<Standing, Error> {
        let actor = Actor::User(member.adding_user.clone());
        let change = AddMember {
            member,
            now: Timestamp::now(),
        };
        self.apply(change, actor, call).await
    }

    /// Changes the labels and the end of a membership. Nobody changes the end of its own membership.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::MembershipNotFound`], [`Refusal::InvalidMembership`],
    /// [`Refusal::LastOwner`], [`Refusal::EtagMismatch`].
    pub async fn update_membership(
        &self,
        membership: MembershipToUpdate,
        call: Call,
    ) -> Result<Standing, Error> {
        let actor = Actor::User(membership.acting_user.clone());
        let change = UpdateMembership {
            membership,
            now: Timestamp::now(),
        };
        self.apply(change, actor, call).await
    }

    /// Changes a member's role.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::MembershipNotFound`],
    /// [`Refusal::LastOwner`], [`Refusal::EtagMismatch`].
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
    /// [`Refusal::LastOwner`], [`Refusal::EtagMismatch`].
    pub async fn remove_member(
        &self,
        member: MemberToRemove,
        call: Call,
    ) -> Result<Standing, Error> {
        let actor = Actor::User(member.acting_user.clone());
        self.apply(RemoveMember(member), actor, call).await
    }
}

/// The membership among the records of [`keys_of_member`], if there is one at `now`.
pub(super) fn standing(
    records: impl IntoIterator<Item = Option<Record>>,
    now: impl FnOnce() -> Timestamp,
) -> Option<Standing> {
    let mut records = records.into_iter();
    let user = records.next().flatten().and_then(Record::into_user);
    let organization = records.next().flatten().and_then(Record::into_organization);
    let membership = records.next().flatten().and_then(Record::into_membership);
    standing_membership(user.as_ref(), organization.as_ref(), membership, now)
}

pub(super) async fn read_actor_and_target(
    table: &DynamoDb,
    organization: &OrganizationName,
    actor: &Username,
    target: &Username,
) -> Result<ReadSet, store::Error> {
    let actor = keys_of_member(organization, actor);
    let target = keys_of_member(organization, target);
    ReadSet::read(table, actor.into_iter().chain(target)).await
}

pub(super) fn membership_key(organization: &OrganizationName, username: &Username) -> Key {
    Key::Membership(organization.clone(), username.clone())
}

/// Refuses because the target is not a member. Only an actor who may manage members gets this
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
pub(super) fn another_version<T>(
    found: &ReadSet,
    organization: &OrganizationName,
    username: &Username,
) -> Verdict<T, Refusal> {
    found.refuse(keys_around(organization, username), Refusal::EtagMismatch)
}

/// A user who becomes a member.
pub(super) struct NewMember<'a> {
    pub(super) organization: &'a Organization,
    pub(super) user: &'a User,
    pub(super) role: Role,
    pub(super) expire_time: Option<ExpireTime>,
    pub(super) labels: Labels,
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
            expire_time: self.expire_time,
            labels: self.labels,
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

/// Refuses a time of expiry that is not in the future. `field` is its path in the request.
pub(super) fn is_in_future(
    field: &'static str,
    expire_time: Option<ExpireTime>,
    now: Timestamp,
) -> Result<(), Refusal> {
    if expire_time.is_none_or(|expire_time| expire_time.is_after(now)) {
        return Ok(());
    }
    let why = "must be in the future, also when rounded down to whole seconds";
    Err(Refusal::InvalidMembership(field, why.to_owned()))
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
            expire_time,
            labels,
            adding_user,
        } = &self.member;
        let found =
            read_actor_and_target(table, organization_name, adding_user, member_username).await?;
        let may_grant = |acting: &Membership| {
            acting.role.is_some_and(|acting| may_add(acting, *role))
                && !outlasts(*expire_time, acting.expire_time)
        };
        let acting = found.acting(organization_name, adding_user);
        let organization = match found.organization(organization_name) {
            Some(organization) if acting.as_ref().is_some_and(may_grant) => organization,
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
        if let Err(refusal) = is_in_future("expire_time", *expire_time, table.now()) {
            return Ok(Verdict::Deny(refusal));
        }
        let new = NewMember {
            organization,
            user,
            role: *role,
            expire_time: *expire_time,
            labels: labels.clone(),
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
