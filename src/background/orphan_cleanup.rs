//! Orphan clean-up: removes the memberships of deleted users and organizations. One
//! replica at a time, at a bounded rate.

mod tasks;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

pub use self::tasks::OrphanCleanupTiming;
use self::tasks::{Skipped, Task, Tasks};
use super::leader_lease::{Candidate, HeldLease, LeaderLease};
use crate::{
    domain::{Membership, Origin, Orphans, ProfileName, Record, Uid},
    store::{self, CommitError, DynamoDb, ListPage, ListPosition, Slice, Step},
    telemetry::LEFTOVERS_REMOVED,
};

/// The register of the leader lease.
const REGISTER: &str = "clean-up-lease";
/// Entries of a list that are read together.
const PAGE: u16 = 100;
/// Memberships that are removed together.
const AT_ONCE: usize = 25;
/// Failed tasks in a row that end a pass.
const MAX_FAILURES: u32 = 3;
/// Most tasks that are tracked from pass to pass. The orphans of further tasks are removed, too.
/// Such a task is finished once it is tracked.
const MAX_TASKS: usize = 10_000;

/// Removes orphans while this replica holds the lease.
pub struct OrphanCleanup {
    table: DynamoDb,
    leader: LeaderLease,
    timing: OrphanCleanupTiming,
}

/// Reason why this replica stops for now.
enum Interruption {
    /// Another replica has the lease.
    Deposed,
    /// The table failed. A retry may succeed.
    Failed(store::Error),
}

impl From<store::Error> for Interruption {
    fn from(error: store::Error) -> Self {
        Self::Failed(error)
    }
}

impl OrphanCleanup {
    /// A clean-up of this table.
    #[must_use]
    pub fn new(table: DynamoDb, timing: OrphanCleanupTiming) -> Self {
        Self {
            leader: LeaderLease::new(table.clone(), REGISTER, timing.takeover),
            table,
            timing,
        }
    }

    /// Waits for the lease and removes orphans. Never ends.
    pub async fn run(&self) {
        self.leader.run(Box::pin(self.lead())).await;
    }

    /// Stops, and releases the lease.
    pub async fn resign(&self) {
        self.leader.resign().await;
    }

    async fn lead(&self) {
        let mut candidate = self.leader.candidate();
        let mut tasks = HashMap::new();
        loop {
            match self.run_pass(&mut candidate, &mut tasks).await {
                Ok(()) | Err(Interruption::Deposed) => {}
                Err(Interruption::Failed(error)) => {
                    tracing::warn!(%error, "orphans cannot be removed");
                }
            }
            sleep(self.timing.poll).await;
        }
    }

    /// Processes all tasks once. A failed task is retried later.
    async fn run_pass(
        &self,
        candidate: &mut Candidate<'_>,
        tasks: &mut Tasks,
    ) -> Result<(), Interruption> {
        let page = self.table.orphans(None).await?;
        if page.found.is_empty() && page.next.is_none() {
            candidate.forget();
            tasks.clear();
            return Ok(());
        }
        let register = self.leader.read().await?;
        if !candidate.may_take(register.as_ref()) {
            tasks.clear();
            return Ok(());
        }
        candidate.forget();
        let mut lease = self.write_lease(register.map(|it| it.version)).await?;
        let mut skipped = Skipped::default();
        let processed = self
            .process_due(page, tasks, &mut lease, &mut skipped)
            .await;
        skipped.report();
        processed
    }

    /// Processes all tasks that are due, from the first page on.
    async fn process_due(
        &self,
        first: ListPage<Result<Orphans, store::Error>>,
        tasks: &mut Tasks,
        lease: &mut HeldLease,
        skipped: &mut Skipped,
    ) -> Result<(), Interruption> {
        let begun = Instant::now();
        let mut page = first;
        let mut failures = 0;
        loop {
            for orphans in page.found {
                let orphans = match orphans {
                    Ok(orphans) => orphans,
                    Err(unreadable) => {
                        skipped.one(unreadable);
                        continue;
                    }
                };
                match self.process_task(orphans, tasks, lease, skipped).await {
                    Ok(()) => failures = 0,
                    // The table fails. Failed tasks are not due for a while, so that the next
                    // pass reaches later tasks.
                    Err(Interruption::Failed(error)) => {
                        failures += 1;
                        if failures == MAX_FAILURES {
                            return Err(error.into());
                        }
                        sleep(self.pause(AT_ONCE)).await;
                    }
                    Err(deposed) => return Err(deposed),
                }
            }
            let Some(next) = page.next else { break };
            page = self.table.orphans(Some(&next)).await?;
        }
        // Another replica has finished the tasks that were not read.
        tasks.retain(|_, task| task.last_read >= begun);
        Ok(())
    }

    /// Processes a task, if it is due.
    ///
    /// # Errors
    /// The table fails for now, or the lease is lost.
    async fn process_task(
        &self,
        orphans: Orphans,
        tasks: &mut Tasks,
        lease: &mut HeldLease,
        skipped: &mut Skipped,
    ) -> Result<(), Interruption> {
        let now = Instant::now();
        let has_room = tasks.len() < MAX_TASKS;
        let key = (orphans.gone.clone(), orphans.uid.clone());
        let mut untracked = Task::new(now, &self.timing);
        let task = match tasks.entry(key.clone()) {
            Entry::Vacant(vacant) if has_room => vacant.insert(untracked),
            Entry::Vacant(_) => &mut untracked,
            Entry::Occupied(known) => known.into_mut(),
        };
        task.last_read = now;
        if now < task.due {
            return Ok(());
        }
        let settled = task.since + self.timing.settle;
        let retained = settled.max(task.since + self.timing.retention);
        // The default after a failure: the pauses grow, because the cause may last.
        let retry = task.pauses.next().unwrap_or(self.timing.settle);
        task.due = now + retry;
        let before = skipped.count;
        let is_any = match self.remove(&orphans, lease, skipped).await {
            Ok(is_any) => is_any,
            Err(Interruption::Failed(error)) if !error.kind.is_transient() => {
                skipped.one(error);
                return Ok(());
            }
            Err(stop) => return Err(stop),
        };
        if skipped.count > before {
            return Ok(());
        }
        task.pauses = self.timing.retry_pauses();
        if is_any {
            task.due = now;
        } else if settled > now {
            task.due = settled;
        } else if retained > now {
            task.due = retained;
        } else if !task.is_name_free {
            self.table.free_name(&orphans).await?;
            task.is_name_free = true;
            // One more pass is needed: until now, other writers could add memberships.
            task.due = now;
        } else {
            self.table.finish(&orphans).await?;
            tasks.remove(&key);
            tracing::info!("a deletion is cleaned up");
        }
        Ok(())
    }

    async fn write_lease(&self, found: Option<u64>) -> Result<HeldLease, Interruption> {
        let written = self.leader.write(found, BTreeMap::new()).await?;
        written.ok_or(Interruption::Deposed)
    }

    /// Removes all orphans of a task once. Returns whether there were any.
    async fn remove(
        &self,
        orphans: &Orphans,
        lease: &mut HeldLease,
        skipped: &mut Skipped,
    ) -> Result<bool, Interruption> {
        let mut is_any = false;
        let mut after = None;
        loop {
            self.keep_lease(lease).await?;
            let next = Instant::now() + self.pause(1);
            let mut listed = self.list(orphans, after.as_ref()).await?;
            let condition = self.keep_orphans(orphans, &mut listed.found).await?;
            for some in listed.found.chunks(self.at_once()) {
                is_any = true;
                self.keep_lease(lease).await?;
                let next = Instant::now() + self.pause(some.len());
                self.remove_some(some, condition.as_ref(), skipped).await?;
                sleep_until(next).await;
            }
            sleep_until(next).await;
            match listed.next {
                Some(next) => after = Some(next),
                None => return Ok(is_any),
            }
        }
    }

    /// Writes the lease, if it is due. A failure counts as the loss of the lease, so that a
    /// table that cannot be written is not queried for every task.
    async fn keep_lease(&self, lease: &mut HeldLease) -> Result<(), Interruption> {
        if lease.written.elapsed() >= self.timing.beat {
            let written = self.write_lease(Some(lease.version)).await;
            *lease = written.map_err(|stop| {
                if let Interruption::Failed(error) = stop {
                    tracing::warn!(%error, "the clean-up's lease cannot be written");
                }
                Interruption::Deposed
            })?;
        }
        Ok(())
    }

    /// Memberships that are removed together: at most as many as the rate allows between two
    /// writes of the lease.
    fn at_once(&self) -> usize {
        let in_a_beat = self.timing.beat.as_secs_f64() * f64::from(self.timing.rate);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded below"
        )]
        let in_a_beat = in_a_beat as usize;
        in_a_beat.clamp(1, AT_ONCE)
    }

    fn pause(&self, removed: usize) -> Duration {
        let removed = u32::try_from(removed).unwrap_or(u32::MAX);
        Duration::from_secs(1) * removed / self.timing.rate.max(1)
    }

    /// The memberships of the deleted incarnation, and memberships without an incarnation.
    async fn list(
        &self,
        orphans: &Orphans,
        after: Option<&ListPosition>,
    ) -> Result<ListPage<Membership>, store::Error> {
        let slice = Slice { after, limit: PAGE };
        let mut listed = self.table.memberships_under(&orphans.gone, slice).await?;
        listed.found.retain(|membership| {
            let uid = incarnation_of(membership, &orphans.gone);
            uid.is_none() || uid == orphans.uid.as_ref()
        });
        Ok(listed)
    }

    /// Drops the memberships that may belong to another incarnation of the name, and returns the
    /// condition under which the others are orphans. A membership without an incarnation is an
    /// orphan unless the present record of the name has no uid.
    async fn keep_orphans(
        &self,
        orphans: &Orphans,
        memberships: &mut Vec<Membership>,
    ) -> Result<Option<Step>, store::Error> {
        let names_one = |membership: &Membership| {
            let uid = incarnation_of(membership, &orphans.gone);
            uid.is_some()
        };
        if memberships.iter().all(names_one) {
            return Ok(None);
        }
        let key = orphans.gone.key();
        let found = self.table.read_strong(std::slice::from_ref(&key)).await?;
        let found = found.into_iter().flatten().next();
        if found.as_ref().is_some_and(|record| record.uid().is_none()) {
            memberships.retain(names_one);
            return Ok(None);
        }
        Ok(Some(Step::Require { key, found }))
    }

    /// Removes memberships in one transaction or, if one of them fails, one by one. A
    /// membership that has changed is retried later.
    async fn remove_some(
        &self,
        memberships: &[Membership],
        condition: Option<&Step>,
        skipped: &mut Skipped,
    ) -> Result<(), Interruption> {
        let steps = memberships.iter();
        let steps: Vec<_> = steps
            .map(|membership| Step::Delete {
                found: Record::Membership(membership.clone()),
            })
            .collect();
        let mut groups = vec![steps.as_slice()];
        while let Some(group) = groups.pop() {
            let origin = Origin::background();
            let steps = [group, condition.map_or(&[], std::slice::from_ref)].concat();
            match self.table.commit(&steps, &origin).await {
                Ok(()) => metrics::counter!(LEFTOVERS_REMOVED).increment(group.len() as u64),
                Err(CommitError::NotApplied(error) | CommitError::OutcomeUnknown(error))
                    if error.kind.is_transient() =>
                {
                    return Err(error.into());
                }
                Err(_) if group.len() > 1 => groups.extend(group.chunks(1)),
                Err(CommitError::Stale | CommitError::Conflict) => skipped.one(store::Error::new(
                    store::ErrorKind::Unavailable,
                    "a membership was changed during its removal",
                )),
                Err(CommitError::NotApplied(error) | CommitError::OutcomeUnknown(error)) => {
                    skipped.one(error);
                }
            }
        }
        Ok(())
    }
}

/// The incarnation of the user or the organization that a membership names.
fn incarnation_of<'a>(membership: &'a Membership, gone: &ProfileName) -> Option<&'a Uid> {
    match gone {
        ProfileName::User(_) => membership.member_uid.as_ref(),
        ProfileName::Organization(_) => membership.organization_uid.as_ref(),
    }
}
