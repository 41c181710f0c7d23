//! Erasures: the removal of a deleted user's name from all that the service stores.

use async_trait::async_trait;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Accounts, Call, Error, Refusal,
    deletions::{delete_at_once, is_erased},
    idempotency::Repeatable,
    is_version,
    last_owner::require_other_owners,
    read_set::{ReadSet, rewrite, transaction},
    store_failed,
    unique_values::claims,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Actor, ErasedUser, Erasure, ErasureId, Etag, Key, Origin, Pseudonymization, Purge, Record,
        SoftDeletion, Stamp, Timestamp, User, Username,
    },
    store::{self, DynamoDb, ScheduledPurge, Step},
};

/// A user to erase.
#[derive(Debug, Clone)]
pub struct UserToErase {
    /// The name.
    pub username: Username,
    /// The version to erase. `None`: any.
    pub etag: Option<Etag>,
    /// The erasure is refused if the user is the last Owner of an organization.
    pub unless_last_owner: bool,
}

impl Accounts {
    /// Deletes a user, and begins to erase the name. For a user that is being erased, it returns that
    /// erasure.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::EtagMismatch`], [`Refusal::LastOwner`],
    /// [`Refusal::TooManyOrganizations`].
    pub async fn erase_user(&self, user: UserToErase, call: Call) -> Result<Erasure, Error> {
        let username = user.username.clone();
        let (id, now) = (ErasureId::new(Uuid::new_v4().as_u128()), Timestamp::now());
        let change = EraseUser { user, id, now };
        let erased = self.apply(change, Actor::Platform, call).await?;
        match erased.deletion.and_then(SoftDeletion::erasure) {
            Some(own) if own == id => Ok(Erasure::of(&erased, id, now)),
            Some(earlier) => self.get_erasure(earlier).await,
            None => Err(Error::Refused(Refusal::UserNotFound(username))),
        }
    }

    /// Returns an erasure.
    ///
    /// # Errors
    /// [`Refusal::ErasureNotFound`].
    pub async fn get_erasure(&self, id: ErasureId) -> Result<Erasure, Error> {
        let _permit = self.reads.table_permits(1).await.map_err(store_failed)?;
        let erasure = self.table.erasure(id).await.map_err(store_failed)?;
        erasure.ok_or(Error::Refused(Refusal::ErasureNotFound(id)))
    }

    /// Erases the name from a record that mentions it, while the erasure holds the name. Removes the
    /// user's memberships, and expired ones.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn erase_mention(
        &self,
        key: Key,
        user: &ErasedUser,
        erasure: ErasureId,
        deadline: Instant,
    ) -> Result<(), Error> {
        let change = EraseMention {
            key,
            username: user.username.clone(),
            erasure,
            now: Timestamp::now(),
        };
        let applied = self
            .writes
            .apply(change, Origin::background(), deadline, None);
        applied.await
    }

    /// Deletes the user of an erasure for good: the name is free.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn purge_erased(
        &self,
        user: &ErasedUser,
        erasure: ErasureId,
        deadline: Instant,
    ) -> Result<(), Error> {
        let change = PurgeErased {
            username: user.username.clone(),
            erasure,
        };
        let applied = self
            .writes
            .apply(change, Origin::background(), deadline, None);
        applied.await
    }
}

/// The user that an erasure holds.
fn held_by<'a>(found: &'a ReadSet, username: &Username, erasure: ErasureId) -> Option<&'a User> {
    found.stored_user(username).filter(|user| {
        user.deletion
            .is_some_and(|deletion| deletion.erasure() == Some(erasure))
    })
}

fn nothing_to_do<R>() -> Verdict<(), R> {
    Verdict::Keep {
        output: (),
        premises: Vec::new(),
    }
}

/// The user as the outcome of a request: it is stored, and must not name the user.
fn without_name(user: &User) -> User {
    let erasure = user.deletion.and_then(SoftDeletion::erasure);
    let username = erasure.map_or_else(|| user.username.clone(), Username::of_erased);
    User {
        username,
        ..user.clone()
    }
}

struct EraseUser {
    user: UserToErase,
    id: ErasureId,
    now: Timestamp,
}

impl Repeatable for EraseUser {}

#[async_trait]
impl Change for EraseUser {
    type Output = User;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::User(self.user.username.clone())]
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<User, Refusal>, store::Error> {
        let UserToErase {
            username,
            etag,
            unless_last_owner,
        } = &self.user;
        let found = ReadSet::read(table, self.touches()).await?;
        let Some(user) = found.stored_user(username) else {
            return Ok(Verdict::refuse(Refusal::UserNotFound(username.clone())));
        };
        if is_erased(user) {
            return Ok(Verdict::Keep {
                output: without_name(user),
                premises: Vec::new(),
            });
        }
        if !is_version(etag.as_ref(), &user.stamp) {
            return Ok(Verdict::refuse(Refusal::EtagMismatch));
        }
        let conditions = require_other_owners(table, username, *unless_last_owner).await?;
        let conditions = match conditions {
            Ok(conditions) => conditions,
            Err(refused) => return Ok(refused),
        };
        let erasure = Erasure::of(user, self.id, self.now);
        let mut erased = user.clone().without_profile();
        erased.deletion = Some(SoftDeletion {
            delete_time: self.now,
            purge: Purge::By(erasure.id),
        });
        erased.stamp = user.stamp.changed(self.now);
        let [before, after] = [user, &erased].map(|user| Record::User(user.clone()));
        let claims = match claims(table, Some(&before), Some(&after)).await? {
            Ok(claims) => claims,
            Err(refused) => return Ok(refused),
        };
        let purge = ScheduledPurge::of(&before).map(Step::Unschedule);
        let output = without_name(&erased);
        let mut plan = rewrite(before, after, conditions, false, output);
        plan.steps.extend(claims);
        plan.steps.extend(purge);
        plan.steps.push(Step::Erase(erasure));
        Ok(Verdict::Commit(plan))
    }
}

struct EraseMention {
    key: Key,
    username: Username,
    erasure: ErasureId,
    now: Timestamp,
}

#[async_trait]
impl Change for EraseMention {
    type Output = ();
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![self.key.clone()]
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<(), Refusal>, store::Error> {
        let of_user = Key::User(self.username.clone());
        let found = ReadSet::read(table, [self.key.clone(), of_user.clone()]).await?;
        let (Some(_), Some(record)) = (
            held_by(&found, &self.username, self.erasure),
            found.record(&self.key),
        ) else {
            return Ok(nothing_to_do());
        };
        let held = vec![found.still(of_user)];
        // An expired membership is not changed any more: the table removes it some time.
        let is_removed = |record: &Record| match record {
            Record::Membership(membership) => {
                membership.member_username == self.username
                    || membership.has_expired(|| table.now())
            }
            Record::User(_) | Record::Organization(_) => false,
        };
        if is_removed(record) {
            let delete = Step::Delete {
                found: record.clone(),
            };
            return Ok(Verdict::Commit(Plan {
                steps: transaction(vec![delete], held),
                publish: Vec::new(),
                premises: Vec::new(),
                output: (),
            }));
        }
        let replacement = Pseudonymization {
            username: &self.username,
            pseudonym: &Username::of_erased(self.erasure),
        };
        // Also without another value: the new version does not name the actor of the former one.
        let erased = changed(replacement.of_record(record), self.now);
        let plan = rewrite(record.clone(), erased, held, false, ());
        Ok(Verdict::Commit(plan))
    }
}

/// The record with its next version.
fn changed(mut record: Record, now: Timestamp) -> Record {
    let change = |stamp: &mut Stamp| *stamp = stamp.changed(now);
    match &mut record {
        Record::User(user) => change(&mut user.stamp),
        Record::Organization(organization) => change(&mut organization.stamp),
        Record::Membership(membership) => change(&mut membership.stamp),
    }
    record
}

struct PurgeErased {
    username: Username,
    erasure: ErasureId,
}

#[async_trait]
impl Change for PurgeErased {
    type Output = ();
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::User(self.username.clone())]
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<(), Refusal>, store::Error> {
        let found = ReadSet::read(table, self.touches()).await?;
        let Some(user) = held_by(&found, &self.username, self.erasure) else {
            return Ok(nothing_to_do());
        };
        let record = Record::User(user.clone());
        Ok(match delete_at_once(table, record).await? {
            Ok(steps) => Verdict::Commit(Plan {
                steps,
                publish: Vec::new(),
                premises: Vec::new(),
                output: (),
            }),
            Err(refused) => refused,
        })
    }
}
