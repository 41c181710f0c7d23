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
    /// Requires that an organization is in the caller's scope, as of the last acknowledged write.
    ///
    /// # Errors
    /// [`Refusal::OrganizationNotGranted`].
    pub async fn require_in_scope(
        &self,
        scope: &OrganizationScope,
        name: &OrganizationName,
    ) -> Result<(), Error> {
        if scope.judge_name(name) != InScope::ByLabels {
            return require(scope, name, None);
        }
        let key = [Key::Organization(name.clone())];
        let read = self.reads.read(&key, Freshness::Coherent).await;
        require(scope, name, read.map_err(store_failed)?.record(0))
    }
}

/// Requires that an organization is in the caller's scope, judged by the record that was read. Reads
/// judge the record that they return, so that both are of the same moment.
///
/// # Errors
/// [`Refusal::OrganizationNotGranted`]. It does not reveal whether the organization exists.
pub(super) fn require(
    scope: &OrganizationScope,
    name: &OrganizationName,
    found: Option<&Record>,
) -> Result<(), Error> {
    let is_granted = match scope.judge_name(name) {
        InScope::Yes => true,
        InScope::No => false,
        InScope::ByLabels => found.is_some_and(|found| scope.has_record(found)),
    };
    if is_granted {
        Ok(())
    } else {
        Err(not_granted(name))
    }
}

pub(super) fn not_granted(name: &OrganizationName) -> Error {
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
            match self.scope.judge_name(&name) {
                InScope::Yes => {}
                InScope::No => return Ok(deny(name)),
                InScope::ByLabels => drop(by_labels.insert(name)),
            }
        }
        let keys: Vec<_> = by_labels.iter().cloned().map(Key::Organization).collect();
        // Without keys, this reads nothing.
        let read = ReadSet::read(table, keys);
        let (found, mut verdict) = try_join(read, self.change.decide(table)).await?;
        for name in by_labels {
            let found = found.stored_organization(&name);
            let is_granted = match &mut verdict {
                Verdict::Commit(plan) => guard(plan, &self.scope, found, &name),
                // Without an organization, only the outcome of an earlier request is kept.
                Verdict::Keep { .. } => found.is_none_or(|found| self.scope.has(found)),
                Verdict::Refuse { .. } | Verdict::Deny(_) => {
                    found.is_some_and(|found| self.scope.has(found))
                }
            };
            if !is_granted {
                return Ok(deny(name));
            }
        }
        self.hide(&mut verdict);
        Ok(verdict)
    }
}

impl<C> Scoped<C> {
    /// Removes organizations that are not in the scope from a refusal.
    fn hide<T>(&self, verdict: &mut Verdict<T, Refusal>) {
        if let Verdict::Refuse { refusal, .. } = verdict
            && let Refusal::LastOwner(organizations) = refusal
        {
            organizations.retain(|name| self.scope.judge_name(name) == InScope::Yes);
        }
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
    let key = Key::Organization(name.clone());
    let step = plan
        .steps
        .iter_mut()
        .find(|step| step.key().as_ref() == Some(&key));
    match step {
        Some(Step::Update { found, record }) => scope.has_record(found) && scope.has_record(record),
        Some(Step::Delete { found } | Step::RequireVersion { found }) => scope.has_record(found),
        Some(step @ Step::Require { .. }) => {
            let Step::Require {
                found: Some(found), ..
            } = step
            else {
                return false;
            };
            let (is_granted, found) = (scope.has_record(found), found.clone());
            *step = Step::RequireVersion { found };
            is_granted
        }
        // A new organization was judged before its change, and the other steps have no such key.
        Some(
            Step::Create { .. }
            | Step::Claim { .. }
            | Step::CleanUp(_)
            | Step::Schedule(_)
            | Step::Unschedule(_)
            | Step::Erase(_)
            | Step::StoreOutcome { .. },
        ) => false,
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
