//! Idempotency: a request with an id has its effect once. Its outcome is stored in the
//! transaction that has the effect.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::{
    Owners, Refusal,
    read_set::{ReadSet, keys_of_member},
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Key, Membership, Organization, Record, Request, Role, Standing, State, User, Username,
    },
    store::{self, DynamoDb, Step, StoredOutcome},
};

/// A result that can be stored: its records.
pub(super) trait StoredResult: Sized {
    /// The records.
    fn records(&self) -> Vec<Record>;

    /// The result from stored records. `around` has the present users and organizations of
    /// the memberships among them.
    fn recall(records: Vec<Record>, around: &ReadSet) -> Option<Self>;
}

/// A change that may be repeated with the same request id.
pub(super) trait Repeatable {
    /// The acting user, if the change may revoke the acting user's own permission. Its
    /// repetition is then permitted without that permission.
    fn self_revoking_actor(&self) -> Option<&Username> {
        None
    }
}

/// A change with a request id, which has its effect once.
pub(super) struct Once<C> {
    change: C,
    request: Request,
    /// Whether the change was decided before. The first decision assumes a new request. For
    /// a repeated request, its transaction fails.
    was_decided: AtomicBool,
}

impl<C> Once<C> {
    pub(super) fn new(change: C, request: Request) -> Self {
        Self {
            change,
            request,
            was_decided: AtomicBool::new(false),
        }
    }
}

impl<C> Once<C>
where
    C: Repeatable + Change<Refusal = Refusal, Output: StoredResult + Sync>,
{
    fn store_outcome(&self, output: &C::Output) -> Step {
        Step::StoreOutcome {
            request: self.request.clone(),
            outcome: output.records(),
        }
    }

    /// Whether an actor without permission for the change may get its stored outcome.
    async fn may_recall(&self, table: &DynamoDb) -> Result<bool, store::Error> {
        let Some(user) = self.change.self_revoking_actor() else {
            return Ok(false);
        };
        let found = ReadSet::read(table, [Key::User(user.clone())]).await?;
        let user = found.user(user);
        Ok(user.is_some_and(|user| user.state == State::Active))
    }

    /// The stored outcome of the request, if it is a repetition.
    async fn recall(
        &self,
        table: &DynamoDb,
    ) -> Result<Option<Verdict<C::Output, Refusal>>, store::Error> {
        let Some(stored_outcome) = table.stored_outcome(&self.request).await? else {
            return Ok(None);
        };
        let StoredOutcome {
            fingerprint,
            outcome,
        } = stored_outcome;
        if fingerprint != self.request.fingerprint {
            return Ok(Some(Verdict::Deny(Refusal::RequestIdReused)));
        }
        let around: Vec<_> = outcome.iter().flat_map(keys_around).collect();
        let around = ReadSet::read(table, around).await?;
        let premises = around.records();
        let verdict = match C::Output::recall(outcome, &around) {
            Some(output) => Verdict::Keep { output, premises },
            None => Verdict::Deny(Refusal::RequestIdReused),
        };
        Ok(Some(verdict))
    }
}

#[async_trait]
impl<C> Change for Once<C>
where
    C: Repeatable + Change<Refusal = Refusal, Output: StoredResult + Sync>,
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
        let was_decided = self.was_decided.swap(true, Ordering::Relaxed);
        let verdict = self.change.decide(table).await?;
        if matches!(verdict, Verdict::Deny(Refusal::NotPermitted))
            && !self.may_recall(table).await?
        {
            return Ok(verdict);
        }
        // Read after the records of the decision: an earlier attempt with effects on these
        // records has stored its outcome by now.
        if (was_decided || !matches!(verdict, Verdict::Commit(_)))
            && let Some(recalled) = self.recall(table).await?
        {
            return Ok(recalled);
        }
        Ok(match verdict {
            Verdict::Commit(mut plan) => {
                plan.steps.push(self.store_outcome(&plan.output));
                Verdict::Commit(plan)
            }
            // Stored, too: a later repetition must not change anything either.
            Verdict::Keep { output, premises } => Verdict::Commit(Plan {
                steps: vec![self.store_outcome(&output)],
                publish: Vec::new(),
                premises,
                output,
            }),
            refused => refused,
        })
    }
}

/// The user and the organization of a membership.
fn keys_around(record: &Record) -> Vec<Key> {
    match record {
        Record::Membership(membership) => {
            let [user, organization, _] =
                keys_of_member(&membership.organization_name, &membership.member_username);
            vec![user, organization]
        }
        _ => Vec::new(),
    }
}

impl StoredResult for User {
    fn records(&self) -> Vec<Record> {
        vec![Record::User(self.clone())]
    }

    fn recall(records: Vec<Record>, _: &ReadSet) -> Option<Self> {
        records.into_iter().find_map(Record::into_user)
    }
}

impl StoredResult for Organization {
    fn records(&self) -> Vec<Record> {
        vec![Record::Organization(self.clone())]
    }

    fn recall(records: Vec<Record>, _: &ReadSet) -> Option<Self> {
        records.into_iter().find_map(Record::into_organization)
    }
}

impl StoredResult for Standing {
    fn records(&self) -> Vec<Record> {
        vec![Record::Membership(self.membership.clone())]
    }

    fn recall(records: Vec<Record>, around: &ReadSet) -> Option<Self> {
        let membership = records.into_iter().find_map(Record::into_membership)?;
        Some(standing_now(membership, around))
    }
}

impl StoredResult for Owners {
    fn records(&self) -> Vec<Record> {
        let standings = [Some(&self.new), self.previous.as_ref()];
        let standings = standings.into_iter().flatten();
        standings.flat_map(StoredResult::records).collect()
    }

    fn recall(records: Vec<Record>, around: &ReadSet) -> Option<Self> {
        let memberships = records.into_iter().filter_map(Record::into_membership);
        let standings = memberships.map(|membership| standing_now(membership, around));
        let (new, previous): (Vec<_>, Vec<_>) =
            standings.partition(|standing| standing.membership.role == Some(Role::Owner));
        Some(Self {
            new: new.into_iter().next()?,
            previous: previous.into_iter().next(),
        })
    }
}

/// A membership as it was, with its present state. One that is none any more does not count.
fn standing_now(membership: Membership, around: &ReadSet) -> Standing {
    let state = around.present_state(&membership);
    let state = state.unwrap_or(State::Suspended);
    Standing { membership, state }
}
