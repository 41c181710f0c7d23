//! The organizations of a caller: no read and no change of another organization.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures_util::future::try_join;

use super::{Accounts, Error, Freshness, Refusal, read_set::ReadSet, store_failed};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{InScope, Key, Organization, OrganizationName, OrganizationScope, Record},
    store::{self, DynamoDb, Step},
};

impl Accounts {
    /// Requires that organizations are in the caller's scope. Reads those whose labels decide.
    ///
    /// # Errors
    /// [`Refusal::OrganizationNotGranted`]. It does not reveal whether the organization exists.
    pub async fn require_in_scope(
        &self,
        scope: &OrganizationScope,
        names: impl IntoIterator<Item = &OrganizationName>,
    ) -> Result<(), Error> {
        if scope.is_every() {
            return Ok(());
        }
        let mut by_labels = BTreeSet::new();
        for name in names {
            match scope.has_name(name) {
                InScope::Yes => {}
                InScope::No => return Err(not_granted(name)),
                InScope::ByLabels => drop(by_labels.insert(name)),
            }
        }
        if by_labels.is_empty() {
            return Ok(());
        }
        let keys = by_labels
            .iter()
            .map(|name| Key::Organization((*name).clone()));
        let keys: Vec<_> = keys.collect();
        let read = self.reads.read(&keys, Freshness::Coherent).await;
        let records = read.map_err(store_failed)?.into_records();
        for (name, record) in by_labels.into_iter().zip(records) {
            let organization = record.and_then(Record::into_organization);
            if !organization.is_some_and(|organization| scope.has(&organization)) {
                return Err(not_granted(name));
            }
        }
        Ok(())
    }
}

fn not_granted(name: &OrganizationName) -> Error {
    Error::Refused(Refusal::OrganizationNotGranted(name.clone()))
}

/// A change of a caller, which may change only organizations in its scope.
pub(super) struct Scoped<C> {
    pub(super) change: C,
    pub(super) scope: OrganizationScope,
}

#[async_trait]
impl<C> Change for Scoped<C>
where
    C: Change<Refusal = Refusal, Output: Sync>,
{
    type Output = C::Output;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        self.change.touches()
    }

    fn may_publish(&self) -> bool {
        self.change.may_publish()
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<C::Output, Refusal>, store::Error> {
        let mut by_labels = BTreeSet::new();
        for key in self.touches() {
            let (Key::Organization(name) | Key::Membership(name, _)) = key else {
                continue;
            };
            match self.scope.has_name(&name) {
                InScope::Yes => {}
                InScope::No => return Ok(deny(name)),
                InScope::ByLabels => drop(by_labels.insert(name)),
            }
        }
        let keys: Vec<_> = by_labels.iter().cloned().map(Key::Organization).collect();
        if keys.is_empty() {
            return self.change.decide(table).await;
        }
        let read = ReadSet::read(table, keys);
        let (found, mut verdict) = try_join(read, self.change.decide(table)).await?;
        for name in by_labels {
            let found = found.organization(&name);
            let is_granted = if let Verdict::Commit(plan) = &mut verdict {
                guard(plan, &self.scope, found, &name)
            } else {
                found.is_some_and(|found| self.scope.has(found))
            };
            if !is_granted {
                return Ok(deny(name));
            }
        }
        Ok(verdict)
    }
}

fn deny<T>(name: OrganizationName) -> Verdict<T, Refusal> {
    Verdict::Deny(Refusal::OrganizationNotGranted(name))
}

/// Whether the plan leaves an organization in the scope. Adds the condition that the organization
/// has the labels with which it was found: the facts of other conditions exclude labels.
fn guard<T>(
    plan: &mut Plan<T>,
    scope: &OrganizationScope,
    found: Option<&Organization>,
    name: &OrganizationName,
) -> bool {
    let has = |record: &Record| match record {
        Record::Organization(organization) => scope.has(organization),
        Record::User(_) | Record::Membership(_) => false,
    };
    let key = Key::Organization(name.clone());
    let step = plan
        .steps
        .iter_mut()
        .find(|step| step.key().as_ref() == Some(&key));
    match step {
        Some(Step::Create { record, .. }) => has(record),
        Some(Step::Update { found, record }) => has(found) && has(record),
        Some(Step::Delete { found } | Step::RequireVersion { found }) => has(found),
        Some(step @ Step::Require { .. }) => {
            let Step::Require {
                found: Some(found), ..
            } = step
            else {
                return false;
            };
            let (is_granted, found) = (has(found), found.clone());
            *step = Step::RequireVersion { found };
            is_granted
        }
        // No step without a record has this key.
        Some(Step::Claim { .. } | Step::CleanUp(_) | Step::StoreOutcome { .. }) => false,
        None => match found {
            Some(found) if scope.has(found) => {
                let found = Record::Organization(found.clone());
                plan.steps.push(Step::RequireVersion { found });
                true
            }
            Some(_) | None => false,
        },
    }
}
