//! Unique values: e-mail addresses and external ids, their claims, and look-ups by them and by uid.

use futures_util::future::try_join_all;

use super::{Accounts, Error, Freshness, Refusal, Source, read_set::ReadSet, store_failed};
use crate::{
    coherence::Verdict,
    domain::{
        Email, ExternalId, Organization, OrganizationScope, ProfileId, Record, Uid, UniqueValue,
        User,
    },
    store::{self, DynamoDb, Step, StoredClaim},
};

/// A value that identifies a user.
#[derive(Debug, Clone)]
pub enum UserIdentity {
    /// The e-mail address.
    Email(Email),
    /// The incarnation.
    Uid(Uid),
    /// The external id.
    ExternalId(ExternalId),
}

/// A value that identifies an organization.
#[derive(Debug, Clone)]
pub enum OrganizationIdentity {
    /// The incarnation.
    Uid(Uid),
    /// The external id.
    ExternalId(ExternalId),
}

/// The key of a look-up.
enum LookupKey {
    Unique(UniqueValue),
    Uid(Uid),
}

impl Accounts {
    /// Returns the user with an e-mail address, a uid or an external id.
    ///
    /// # Errors
    /// [`Refusal::EmailNotFound`], [`Refusal::UidNotFound`], [`Refusal::ExternalIdNotFound`].
    pub async fn look_up_user(
        &self,
        identity: UserIdentity,
        freshness: Freshness,
    ) -> Result<(User, Source), Error> {
        let (key, refusal) = match identity {
            UserIdentity::Email(email) => (
                LookupKey::Unique(UniqueValue::Email(email)),
                Refusal::EmailNotFound,
            ),
            UserIdentity::ExternalId(id) => (
                LookupKey::Unique(UniqueValue::UserExternalId(id)),
                Refusal::ExternalIdNotFound,
            ),
            UserIdentity::Uid(uid) => (LookupKey::Uid(uid), Refusal::UidNotFound),
        };
        let found = self.look_up(key, freshness).await?;
        let user = found.and_then(|(record, source)| Some((record.into_user()?, source)));
        user.ok_or(Error::Refused(refusal))
    }

    /// Returns the organization with a uid or an external id, if it is in the scope.
    ///
    /// # Errors
    /// [`Refusal::UidNotFound`], [`Refusal::ExternalIdNotFound`].
    pub async fn look_up_organization(
        &self,
        scope: &OrganizationScope,
        identity: OrganizationIdentity,
        freshness: Freshness,
    ) -> Result<(Organization, Source), Error> {
        let (key, refusal) = match identity {
            OrganizationIdentity::ExternalId(id) => (
                LookupKey::Unique(UniqueValue::OrganizationExternalId(id)),
                Refusal::ExternalIdNotFound,
            ),
            OrganizationIdentity::Uid(uid) => (LookupKey::Uid(uid), Refusal::UidNotFound),
        };
        let found = self.look_up(key, freshness).await?;
        let organization = found
            .and_then(|(record, source)| Some((record.into_organization()?, source)))
            .filter(|(organization, _)| scope.has(organization));
        let Some((organization, source)) = organization else {
            return Err(Error::Refused(refusal));
        };
        // The labels of a record that may be stale do not grant.
        let granted = self.require_in_scope(scope, &organization.organization_name);
        match granted.await {
            Ok(()) => Ok((organization, source)),
            Err(Error::Refused(_)) => Err(Error::Refused(refusal)),
            Err(error) => Err(error),
        }
    }

    /// The record of a look-up. The table has its name, and the record is read like any other.
    async fn look_up(
        &self,
        key: LookupKey,
        freshness: Freshness,
    ) -> Result<Option<(Record, Source)>, Error> {
        let permit = self.reads.table_permits(1).await.map_err(store_failed)?;
        let claim = match &key {
            LookupKey::Unique(value) => {
                let claim = self.table.claim(value).await;
                claim.map(|found| found.map(|found| found.claim))
            }
            LookupKey::Uid(uid) => {
                let name = self.table.name_of_uid(uid).await;
                name.map(|found| {
                    found.map(|name| ProfileId {
                        name,
                        uid: Some(uid.clone()),
                    })
                })
            }
        };
        drop(permit);
        let Some(claim) = claim.map_err(store_failed)? else {
            return Ok(None);
        };
        let found = self.get(claim.name.key(), Some, freshness).await?;
        Ok(found.filter(|(record, _)| match &key {
            LookupKey::Unique(value) => claim.has(record, value),
            LookupKey::Uid(_) => ProfileId::of(record).as_ref() == Some(&claim),
        }))
    }
}

/// The steps that a change of a record needs for its unique values, or the refusal because another
/// record has one of them.
pub(super) async fn claims<T>(
    table: &DynamoDb,
    before: Option<&Record>,
    after: Option<&Record>,
) -> Result<Result<Vec<Step>, Verdict<T, Refusal>>, store::Error> {
    let [old, new] =
        [before, after].map(|record| record.map_or_else(Vec::new, Record::unique_values));
    let is_claimed = |value: &&UniqueValue| !old.contains(value);
    let is_released = |value: &&UniqueValue| !new.contains(value);
    let claimed = new.iter().filter(is_claimed).zip(std::iter::repeat(after));
    let released = old.iter().filter(is_released).zip(std::iter::repeat(None));
    let values: Vec<_> = claimed.chain(released).collect();
    let found = values.iter().map(|(value, _)| table.claim(value));
    let found = try_join_all(found).await?;
    let mut steps = Vec::new();
    for ((value, holder), found) in values.into_iter().zip(found) {
        let value = value.clone();
        if let Some(holder) = holder {
            if let Some(found) = &found
                && let Some(refused) = refuse_if_held(table, &found.claim, &value).await?
            {
                return Ok(Err(refused));
            }
            steps.push(Step::Claim {
                value,
                claim: ProfileId::of(holder),
                found,
            });
        } else {
            let is_own =
                |found: &StoredClaim| before.is_some_and(|before| found.claim.has(before, &value));
            steps.extend(found.filter(is_own).map(|found| Step::Claim {
                value: value.clone(),
                claim: None,
                found: Some(found),
            }));
        }
    }
    Ok(Ok(steps))
}

/// The refusal of a value that another record has. `None`: its record was deleted past the service, or
/// has another value.
async fn refuse_if_held<T>(
    table: &DynamoDb,
    claim: &ProfileId,
    value: &UniqueValue,
) -> Result<Option<Verdict<T, Refusal>>, store::Error> {
    let key = claim.name.key();
    let read = ReadSet::read(table, [key.clone()]).await?;
    let holder = read.record(&key);
    Ok(holder
        .is_some_and(|holder| claim.has(holder, value))
        .then(|| {
            let refusal = match value {
                UniqueValue::Email(_) => Refusal::EmailExists,
                UniqueValue::UserExternalId(_) | UniqueValue::OrganizationExternalId(_) => {
                    Refusal::ExternalIdExists
                }
            };
            read.refuse([key.clone()], refusal)
        }))
}
