//! Erasure: removes the names of erased users from the table. One replica at a time, in steps that
//! another replica can continue.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep};

use super::leader_lease::{Candidate, HeldLease, LeaderLease};
use crate::{
    domain::{ErasedUser, ErasurePhase, Key, Pseudonymization, Record, RecordChange},
    service::{Accounts, Error},
    store::{self, DynamoDb, ErasurePosition, LogHead, RunningErasure},
    telemetry::ERASED,
};

/// The register of the leader lease.
const REGISTER: &str = "erasure-lease";
/// Longest write of one record.
const DEADLINE: Duration = Duration::from_secs(10);

/// Intervals of erasures.
#[derive(Debug, Clone, Copy)]
pub struct ErasureTiming {
    /// Pause between passes.
    pub poll: Duration,
    /// Longest time between two writes of the lease.
    pub beat: Duration,
    /// Time without a write after which another replica takes the lease.
    pub takeover: Duration,
    /// Pause after each page of the table or of the log.
    pub pause: Duration,
    /// Longest time until a write that has begun is stored and in the stream, with the difference of
    /// clocks.
    pub settle: Duration,
    /// Least time from the deletion until the changes in the log have the pseudonym. Until then, consumers
    /// of the log can read the name of the deleted user.
    pub grace: Duration,
}

impl Default for ErasureTiming {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(15),
            beat: Duration::from_secs(2),
            takeover: Duration::from_secs(10),
            // Some 2,000 items a second.
            pause: Duration::from_millis(50),
            settle: Duration::from_secs(30),
            grace: Duration::from_secs(3600),
        }
    }
}

/// Erases users while this replica holds the lease.
pub struct ErasureLoop {
    table: DynamoDb,
    accounts: Accounts,
    leader: LeaderLease,
    timing: ErasureTiming,
}

/// Reason why a pass ends early.
enum PassEnd {
    /// Another replica has the lease, or goes on with the erasure.
    Deposed,
    /// The table failed. A retry may succeed.
    Failed(store::Error),
    /// A record could not be changed. A retry may succeed.
    NotChanged,
}

impl From<store::Error> for PassEnd {
    fn from(error: store::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Error> for PassEnd {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) | Error::OutcomeUnknown(error) => Self::Failed(error),
            _ => Self::NotChanged,
        }
    }
}

impl ErasureLoop {
    /// Erasures in this table.
    #[must_use]
    pub fn new(table: DynamoDb, accounts: Accounts, timing: ErasureTiming) -> Self {
        Self {
            leader: LeaderLease::new(table.clone(), REGISTER, timing.takeover),
            table,
            accounts,
            timing,
        }
    }

    /// Waits for the lease and erases users. Never ends.
    pub async fn run(&self) {
        self.leader.run(Box::pin(self.lead())).await;
    }

    /// Stops, and releases the lease.
    pub async fn resign(&self) {
        self.leader.resign().await;
    }

    async fn lead(&self) {
        let mut candidate = self.leader.candidate();
        loop {
            match self.run_pass(&mut candidate).await {
                Ok(()) | Err(PassEnd::Deposed | PassEnd::NotChanged) => {}
                Err(PassEnd::Failed(error)) => {
                    tracing::warn!(%error, "erasures cannot be read");
                }
            }
            sleep(self.timing.poll).await;
        }
    }

    async fn run_pass(&self, candidate: &mut Candidate<'_>) -> Result<(), PassEnd> {
        let running = self.table.running_erasures().await?;
        if running.is_empty() {
            candidate.forget();
            return Ok(());
        }
        let register = self.leader.read().await?;
        if !candidate.may_take(register.as_ref()) {
            return Ok(());
        }
        candidate.forget();
        let mut lease = self.write_lease(register.map(|it| it.version)).await?;
        for mut erasure in running {
            let id = erasure.erasure.id;
            match self.advance(&mut erasure, &mut lease).await {
                Ok(()) => {}
                Err(PassEnd::Deposed) => return Err(PassEnd::Deposed),
                Err(PassEnd::Failed(error)) => {
                    tracing::warn!(%id, %error, "an erasure is interrupted");
                }
                Err(PassEnd::NotChanged) => tracing::warn!(%id, "an erasure is interrupted"),
            }
        }
        Ok(())
    }

    async fn write_lease(&self, found: Option<u64>) -> Result<HeldLease, PassEnd> {
        let written = self.leader.write(found, BTreeMap::new()).await?;
        written.ok_or(PassEnd::Deposed)
    }

    /// Goes on with an erasure until it is done, or until the change log has not all changes yet.
    async fn advance(
        &self,
        running: &mut RunningErasure,
        lease: &mut HeldLease,
    ) -> Result<(), PassEnd> {
        let Some(user) = running.erasure.user.clone() else {
            return Ok(());
        };
        let replacement = Pseudonymization {
            username: &user.username,
            pseudonym: &running.erasure.pseudonym(),
        };
        loop {
            match running.erasure.phase {
                ErasurePhase::Outcomes | ErasurePhase::Log | ErasurePhase::Rest
                    if !self.may_begin(running).await? =>
                {
                    return Ok(());
                }
                ErasurePhase::Table | ErasurePhase::Outcomes => {
                    self.erase_from_table(&user, replacement, running, lease)
                        .await?;
                }
                ErasurePhase::Log => {
                    let mention = |change: &RecordChange| without_name(change, replacement);
                    self.rewrite_log(mention, running, lease).await?;
                    self.begin(ErasurePhase::User, running).await?;
                }
                ErasurePhase::User => self.purge(&user, running).await?,
                ErasurePhase::Rest => {
                    let end = |change: &RecordChange| {
                        let change = is_end_of(change, &user).then_some(change)?;
                        without_name(change, replacement)
                    };
                    self.rewrite_log(end, running, lease).await?;
                    self.table.remove_counts(&user).await?;
                    running.erasure.user = None;
                    running.erasure.phase = ErasurePhase::Done;
                    running.erasure.phase_time = self.table.now();
                    self.table.finish_erasure(&running.erasure).await?;
                    metrics::counter!(ERASED).increment(1);
                    tracing::info!(id = %running.erasure.id, "an erasure is done");
                    return Ok(());
                }
                ErasurePhase::Done => return Ok(()),
            }
        }
    }

    /// Examines the table page by page. Erases the name from records, or from the other items once no record
    /// has it.
    async fn erase_from_table(
        &self,
        user: &ErasedUser,
        replacement: Pseudonymization<'_>,
        running: &mut RunningErasure,
        lease: &mut HeldLease,
    ) -> Result<(), PassEnd> {
        let id = running.erasure.id;
        let is_of_records = running.erasure.phase == ErasurePhase::Table;
        loop {
            let position = running.position.as_ref();
            let page = self.table.scan_for(user, position).await?;
            running.erasure.examined += page.examined;
            let records = page.records.into_iter().filter(|_| is_of_records);
            for key in records {
                let deadline = Instant::now() + DEADLINE;
                let erased = self.accounts.erase_mention(key, user, id, deadline);
                erased.await?;
                running.erasure.changed += 1;
            }
            let others = page.others.iter().filter(|_| !is_of_records);
            for other in others {
                self.table.replace_name(other, replacement).await?;
                running.erasure.changed += 1;
            }
            running.position = page.next;
            if running.position.is_none() {
                let next = if is_of_records {
                    ErasurePhase::Outcomes
                } else {
                    ErasurePhase::Log
                };
                return self.begin(next, running).await;
            }
            self.save(running).await?;
            self.pause(lease).await?;
        }
    }

    /// Removes what depends on the name while it is held, and then the user.
    async fn purge(&self, user: &ErasedUser, running: &mut RunningErasure) -> Result<(), PassEnd> {
        let id = running.erasure.id;
        self.table.remove_ends(&user.username, id).await?;
        // The change of the purge comes after this position, also if the user is purged already.
        if running.position.is_none() {
            let head = LogHead::read(&self.table).await?;
            running.position = head.map(|(head, _)| {
                let last = head.next.saturating_sub(1);
                ErasurePosition(head.log.0, last.to_string())
            });
            self.save(running).await?;
        }
        let deadline = Instant::now() + DEADLINE;
        self.accounts.purge_erased(user, id, deadline).await?;
        running.erasure.phase = ErasurePhase::Rest;
        running.erasure.phase_time = self.table.now();
        self.save(running).await
    }

    /// Rewrites the changes in the log for which `rewrite` returns another one, from the saved position on.
    async fn rewrite_log(
        &self,
        rewrite: impl Fn(&RecordChange) -> Option<RecordChange>,
        running: &mut RunningErasure,
        lease: &mut HeldLease,
    ) -> Result<(), PassEnd> {
        let Some((head, _)) = LogHead::read(&self.table).await? else {
            return Ok(());
        };
        let saved = running.position.as_ref();
        let saved = saved.filter(|ErasurePosition(log, _)| *log == head.log.0);
        let saved = saved.and_then(|ErasurePosition(_, last)| last.parse::<u64>().ok());
        let mut after = if let Some(last) = saved {
            last
        } else {
            let oldest = self.table.oldest_kept(&head.log, head.next).await?;
            oldest.saturating_sub(1)
        };
        while after + 1 < head.next {
            let rewritten = self.table.rewrite_log(&head.log, after, &rewrite).await?;
            running.erasure.changed += rewritten.changed;
            running.erasure.examined += rewritten.last - after;
            after = rewritten.last;
            running.position = Some(ErasurePosition(head.log.0.clone(), after.to_string()));
            self.save(running).await?;
            self.pause(lease).await?;
        }
        Ok(())
    }

    /// Whether all writes that began before this phase are stored and in the change log, if there is one, and
    /// whether consumers of the log had time to learn of the deletion.
    async fn may_begin(&self, running: &RunningErasure) -> Result<bool, PassEnd> {
        let (phase, now) = (running.erasure.phase, self.table.now());
        let since = running.erasure.phase_time.after(self.timing.settle);
        let graced = running.erasure.create_time.after(self.timing.grace);
        if now <= since || phase == ErasurePhase::Log && now <= graced {
            return Ok(false);
        }
        let head = LogHead::read(&self.table).await?;
        Ok(head.is_none_or(|(head, _)| head.processed > since))
    }

    async fn begin(
        &self,
        phase: ErasurePhase,
        running: &mut RunningErasure,
    ) -> Result<(), PassEnd> {
        running.erasure.phase = phase;
        running.erasure.phase_time = self.table.now();
        running.position = None;
        self.save(running).await
    }

    async fn save(&self, running: &mut RunningErasure) -> Result<(), PassEnd> {
        if self.table.save_erasure(running).await? {
            Ok(())
        } else {
            Err(PassEnd::Deposed)
        }
    }

    /// Pauses, and writes the lease if it is due.
    async fn pause(&self, lease: &mut HeldLease) -> Result<(), PassEnd> {
        sleep(self.timing.pause).await;
        if lease.written.elapsed() >= self.timing.beat {
            *lease = self.write_lease(Some(lease.version)).await?;
        }
        Ok(())
    }
}

/// The change without the name. `None`: it does not have it.
fn without_name(change: &RecordChange, replacement: Pseudonymization<'_>) -> Option<RecordChange> {
    let replaced = replacement.of_change(change);
    (replaced != *change).then_some(replaced)
}

/// Whether a change is the deletion of this incarnation.
fn is_end_of(change: &RecordChange, user: &ErasedUser) -> bool {
    let is_of_name = matches!(&change.key, Key::User(name) if *name == user.username);
    let before = change.before.as_ref();
    let is_of_incarnation = |record: &Record| record.uid() == user.uid.as_ref();
    is_of_name && change.after.is_none() && before.is_some_and(is_of_incarnation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        ChangeKind, FreeText, Labels, Stamp, State, Timestamp, Uid, User, Username,
    };

    #[test]
    fn only_the_deletion_of_the_erased_incarnation_is_its_end() {
        let username = Username::parse_new("membermichael").unwrap();
        let record = |uid: &str| {
            Record::User(User {
                username: username.clone(),
                first_name: FreeText::default(),
                last_name: FreeText::default(),
                display_name: FreeText::default(),
                email: None,
                external_id: None,
                labels: Labels::default(),
                state: State::Active,
                deletion: None,
                uid: Uid::from_text(uid),
                stamp: Stamp::created(Timestamp(1)),
            })
        };
        let user = ErasedUser {
            username: username.clone(),
            uid: Uid::from_text("1"),
        };
        for (before, after, is_end) in [
            (Some("1"), None, true),
            (Some("2"), None, false),
            (None, Some("2"), false),
            (Some("1"), Some("1"), false),
        ] {
            let change = RecordChange {
                key: Key::User(username.clone()),
                kind: ChangeKind::Deleted,
                before: before.map(record),
                after: after.map(record),
                time: None,
                made: None,
            };
            assert_eq!(is_end_of(&change, &user), is_end, "{before:?} {after:?}");
        }
    }
}
