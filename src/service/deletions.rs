//! Deletions of users and organizations: at once, or so that they can be undone until the purge.

use async_trait::async_trait;

use super::{
    Accounts, Call, Error, Refusal,
    actor::AlsoDeleted,
    idempotency::Repeatable,
    is_version,
    last_owner::require_other_owners,
    read_set::{ReadSet, rewrite, transaction},
    unique_values::claims,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Actor, DELETES_ORGANIZATION, Etag, Key, Organization, OrganizationName, Orphans, Record,
        SoftDeletion, Stamp, Timestamp, UndeleteWindow, User, Username,
    },
    store::{self, DynamoDb, ScheduledPurge, Step},
};

/// A user to delete.
#[derive(Debug, Clone)]
pub struct UserToDelete {
    /// The name.
    pub username: Username,
    /// The version to delete. `None`: any.
    pub etag: Option<Etag>,
    /// The deletion is refused if the user is the last Owner of an organization.
    pub unless_last_owner: bool,
    /// The time for which the deletion can be undone. `None`: the name is free at once.
    pub undelete_window: Option<UndeleteWindow>,
}

/// An organization to delete.
#[derive(Debug, Clone)]
pub struct OrganizationToDelete {
    /// The name.
    pub organization_name: OrganizationName,
    /// The actor: an Owner, or the platform.
    pub actor: Actor,
    /// The version to delete. `None`: any.
    pub etag: Option<Etag>,
    /// The time for which the deletion can be undone. `None`: the name is free at once.
    pub undelete_window: Option<UndeleteWindow>,
}

/// A user whose deletion is to be undone.
#[derive(Debug, Clone)]
pub struct UserToUndelete {
    /// The name.
    pub username: Username,
    /// The version to undelete. `None`: any.
    pub etag: Option<Etag>,
}

/// An organization whose deletion is to be undone.
#[derive(Debug, Clone)]
pub struct OrganizationToUndelete {
    /// The name.
    pub organization_name: OrganizationName,
    /// The actor: an Owner, or the platform.
    pub actor: Actor,
    /// The version to undelete. `None`: any.
    pub etag: Option<Etag>,
}

impl Accounts {
    /// Deletes a user. Returns it as it was or, if the deletion can be undone, as it is now. One that is
    /// deleted already is purged.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::EtagMismatch`], [`Refusal::LastOwner`],
    /// [`Refusal::TooManyOrganizations`].
    pub async fn delete_user(&self, user: UserToDelete, call: Call) -> Result<User, Error> {
        let change = DeleteUser {
            user,
            now: Timestamp::now(),
        };
        self.apply(change, Actor::Platform, call).await
    }

    /// Undoes the deletion of a user. Returns the user.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::UserExists`] if it is not deleted,
    /// [`Refusal::EtagMismatch`].
    pub async fn undelete_user(&self, user: UserToUndelete, call: Call) -> Result<User, Error> {
        let change = UndeleteUser {
            user,
            now: Timestamp::now(),
        };
        self.apply(change, Actor::Platform, call).await
    }

    /// Deletes an organization, see [`Self::delete_user`].
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::OrganizationNotFound`] for the platform only,
    /// [`Refusal::EtagMismatch`].
    pub async fn delete_organization(
        &self,
        organization: OrganizationToDelete,
        call: Call,
    ) -> Result<Organization, Error> {
        let actor = organization.actor.clone();
        let change = DeleteOrganization {
            organization,
            now: Timestamp::now(),
        };
        self.apply(change, actor, call).await
    }

    /// Undoes the deletion of an organization. Returns the organization.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::OrganizationNotFound`],
    /// [`Refusal::OrganizationExists`] if it is not deleted, [`Refusal::EtagMismatch`].
    pub async fn undelete_organization(
        &self,
        organization: OrganizationToUndelete,
        call: Call,
    ) -> Result<Organization, Error> {
        let actor = organization.actor.clone();
        let change = UndeleteOrganization {
            organization,
            now: Timestamp::now(),
        };
        self.apply(change, actor, call).await
    }
}

/// The steps that delete a user or an organization at once, free its unique values and leave its
/// memberships to the orphan clean-up; or the refusal.
pub(super) async fn delete_at_once<T>(
    table: &DynamoDb,
    found: Record,
) -> Result<Result<Vec<Step>, Verdict<T, Refusal>>, store::Error> {
    let mut steps = match claims(table, Some(&found), None).await? {
        Ok(claims) => claims,
        Err(refused) => return Ok(Err(refused)),
    };
    steps.extend(ScheduledPurge::of(&found).map(Step::Unschedule));
    if let Some(gone) = found.profile_name() {
        steps.push(Step::CleanUp(Orphans {
            gone,
            uid: found.uid().cloned(),
            time: Timestamp::now(),
        }));
    }
    steps.insert(0, Step::Delete { found });
    Ok(Ok(steps))
}

/// Whether a user is being erased. An erasure deletes its user at the end.
pub(super) fn is_erased(user: &User) -> bool {
    user.deletion
        .is_some_and(|deletion| deletion.erasure().is_some())
}

/// A user or an organization, as deletions and undeletions change it.
trait Profile: Clone {
    fn stamp(&self) -> &Stamp;

    /// The same with another deletion and its next version.
    fn with_deletion(&self, deletion: Option<SoftDeletion>, now: Timestamp) -> Self;

    fn into_record(self) -> Record;
}

impl Profile for User {
    fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    fn with_deletion(&self, deletion: Option<SoftDeletion>, now: Timestamp) -> Self {
        Self {
            deletion,
            stamp: self.stamp.changed(now),
            ..self.clone()
        }
    }

    fn into_record(self) -> Record {
        Record::User(self)
    }
}

impl Profile for Organization {
    fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    fn with_deletion(&self, deletion: Option<SoftDeletion>, now: Timestamp) -> Self {
        Self {
            deletion,
            stamp: self.stamp.changed(now),
            ..self.clone()
        }
    }

    fn into_record(self) -> Record {
        Record::Organization(self)
    }
}

/// Deletes a profile at once or, with a window, so that it can be undone: then its memberships are kept,
/// and do not count.
async fn delete<P: Profile>(
    table: &DynamoDb,
    profile: P,
    window: Option<UndeleteWindow>,
    now: Timestamp,
    conditions: Vec<Step>,
) -> Result<Verdict<P, Refusal>, store::Error> {
    let before = profile.clone().into_record();
    if let Some(window) = window {
        let deleted = profile.with_deletion(Some(window.delete(now)), now);
        let after = deleted.clone().into_record();
        let purge = ScheduledPurge::of(&after).map(Step::Schedule);
        let mut plan = rewrite(before, after, conditions, false, deleted);
        plan.steps.extend(purge);
        return Ok(Verdict::Commit(plan));
    }
    Ok(match delete_at_once(table, before).await? {
        Ok(delete) => Verdict::Commit(Plan {
            steps: transaction(delete, conditions),
            publish: Vec::new(),
            premises: Vec::new(),
            output: profile,
        }),
        Err(refused) => refused,
    })
}

/// Undoes the deletion of a profile.
fn undelete<P: Profile>(
    profile: &P,
    etag: Option<&Etag>,
    now: Timestamp,
    conditions: Vec<Step>,
) -> Verdict<P, Refusal> {
    if !is_version(etag, profile.stamp()) {
        return Verdict::refuse(Refusal::EtagMismatch);
    }
    let undeleted = profile.with_deletion(None, now);
    let [before, after] = [profile, &undeleted].map(|it| it.clone().into_record());
    let purge = ScheduledPurge::of(&before).map(Step::Unschedule);
    let mut plan = rewrite(before, after, conditions, true, undeleted);
    plan.steps.extend(purge);
    Verdict::Commit(plan)
}

struct DeleteUser {
    user: UserToDelete,
    now: Timestamp,
}

impl Repeatable for DeleteUser {}

#[async_trait]
impl Change for DeleteUser {
    type Output = User;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::User(self.user.username.clone())]
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<User, Refusal>, store::Error> {
        let UserToDelete {
            username,
            etag,
            unless_last_owner,
            undelete_window,
        } = &self.user;
        let found = ReadSet::read(table, self.touches()).await?;
        let user = match undelete_window {
            Some(_) => found.user(username),
            None => found.stored_user(username).filter(|user| !is_erased(user)),
        };
        let Some(user) = user else {
            return Ok(Verdict::refuse(Refusal::UserNotFound(username.clone())));
        };
        if !is_version(etag.as_ref(), &user.stamp) {
            return Ok(Verdict::refuse(Refusal::EtagMismatch));
        }
        let conditions = require_other_owners(table, username, *unless_last_owner).await?;
        let conditions = match conditions {
            Ok(conditions) => conditions,
            Err(refused) => return Ok(refused),
        };
        delete(table, user.clone(), *undelete_window, self.now, conditions).await
    }
}

struct UndeleteUser {
    user: UserToUndelete,
    now: Timestamp,
}

impl Repeatable for UndeleteUser {}

#[async_trait]
impl Change for UndeleteUser {
    type Output = User;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::User(self.user.username.clone())]
    }

    fn may_publish(&self) -> bool {
        true
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<User, Refusal>, store::Error> {
        let UserToUndelete { username, etag } = &self.user;
        let found = ReadSet::read(table, self.touches()).await?;
        let not_found = || Verdict::refuse(Refusal::UserNotFound(username.clone()));
        let Some(user) = found.stored_user(username) else {
            return Ok(not_found());
        };
        match user.deletion {
            None => return Ok(Verdict::refuse(Refusal::UserExists(username.clone()))),
            Some(deletion) if deletion.can_be_undone(table.end_of_commit()) => {}
            Some(_) => return Ok(not_found()),
        }
        Ok(undelete(user, etag.as_ref(), self.now, Vec::new()))
    }
}

struct DeleteOrganization {
    organization: OrganizationToDelete,
    now: Timestamp,
}

impl Repeatable for DeleteOrganization {
    fn self_revoking_actor(&self) -> Option<&Username> {
        self.organization.actor.user()
    }
}

#[async_trait]
impl Change for DeleteOrganization {
    type Output = Organization;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::Organization(
            self.organization.organization_name.clone(),
        )]
    }

    async fn decide(
        &self,
        table: &DynamoDb,
    ) -> Result<Verdict<Organization, Refusal>, store::Error> {
        let OrganizationToDelete {
            organization_name,
            actor,
            etag,
            undelete_window,
        } = &self.organization;
        let also_deleted = match undelete_window {
            Some(_) => AlsoDeleted::No,
            None => AlsoDeleted::Yes,
        };
        let least = DELETES_ORGANIZATION;
        let permitted = actor
            .may_change(least, table, organization_name, etag.as_ref(), also_deleted)
            .await?;
        let (organization, conditions) = match permitted {
            Ok(permitted) => permitted,
            Err(refused) => return Ok(refused),
        };
        delete(table, organization, *undelete_window, self.now, conditions).await
    }
}

struct UndeleteOrganization {
    organization: OrganizationToUndelete,
    now: Timestamp,
}

impl Repeatable for UndeleteOrganization {}

#[async_trait]
impl Change for UndeleteOrganization {
    type Output = Organization;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::Organization(
            self.organization.organization_name.clone(),
        )]
    }

    fn may_publish(&self) -> bool {
        true
    }

    async fn decide(
        &self,
        table: &DynamoDb,
    ) -> Result<Verdict<Organization, Refusal>, store::Error> {
        let OrganizationToUndelete {
            organization_name,
            actor,
            etag,
        } = &self.organization;
        let least = DELETES_ORGANIZATION;
        let permitted = actor
            .may_change(least, table, organization_name, None, AlsoDeleted::Yes)
            .await?;
        let (organization, conditions) = match permitted {
            Ok(permitted) => permitted,
            Err(refused) => return Ok(refused),
        };
        let name = || organization_name.clone();
        match organization.deletion {
            None => return Ok(Verdict::refuse(Refusal::OrganizationExists(name()))),
            Some(deletion) if deletion.can_be_undone(table.end_of_commit()) => {}
            Some(_) => return Ok(Verdict::refuse(Refusal::OrganizationNotFound(name()))),
        }
        let etag = etag.as_ref();
        Ok(undelete(&organization, etag, self.now, conditions))
    }
}
