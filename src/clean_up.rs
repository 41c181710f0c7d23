//! Removes what a deleted user or organization left: memberships that count for
//! nothing any more. One replica at a time, at a bounded rate; whoever takes over
//! goes on with what is left.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::{Actor, Gone, Key, Leftovers, Membership, Origin, Record, Timestamp},
    lease::{self, Candidate},
    store::{
        self, CommitError, LeftoverTasks, Listed, Lists, Place, Registers, Slice, Step, Store,
    },
    telemetry::LEFTOVERS_REMOVED,
};

/// Name of the register that holds the lease.
const REGISTER: &str = "clean-up-lease";
/// Entries of a list that are looked at together.
const PAGE: u16 = 100;
/// Memberships that are removed together.
const AT_ONCE: usize = 25;

/// How fast leftovers are removed.
#[derive(Debug, Clone, Copy)]
pub struct CleanUpTiming {
    /// Pause between looks for leftovers.
    pub poll: Duration,
    /// Longest between two writes of the lease.
    pub beat: Duration,
    /// How long a lease has to stand still before another replica takes it.
    pub takeover: Duration,
    /// How long after a deletion indexes may not tell of all that it left.
    pub settle: Duration,
    /// Memberships removed in a second, at most.
    pub rate: u32,
}

impl CleanUpTiming {
    /// The usual times with this rate.
    #[must_use]
    pub fn with_rate(rate: u32) -> Self {
        Self {
            poll: Duration::from_secs(5),
            beat: Duration::from_secs(2),
            takeover: Duration::from_secs(10),
            settle: Duration::from_secs(60),
            rate,
        }
    }
}

/// Removes leftovers, while it is this replica's turn.
pub struct CleanUp {
    store: Arc<dyn Store>,
    lists: Arc<dyn Lists>,
    tasks: Arc<dyn LeftoverTasks>,
    registers: Arc<dyn Registers>,
    name: String,
    timing: CleanUpTiming,
    resigned: CancellationToken,
}

/// The lease, held.
struct Lease {
    version: u64,
    written: Instant,
}

/// Why this replica stops for now.
enum Stop {
    /// Another replica has the lease.
    Deposed,
    /// The table failed; try again.
    Failed(store::Error),
}

impl From<store::Error> for Stop {
    fn from(error: store::Error) -> Self {
        Self::Failed(error)
    }
}

impl CleanUp {
    /// Cleans up in a table that is all of these.
    #[must_use]
    pub fn new<T>(table: &Arc<T>, timing: CleanUpTiming) -> Self
    where
        T: Store + Lists + LeftoverTasks + Registers + 'static,
    {
        Self {
            store: table.clone(),
            lists: table.clone(),
            tasks: table.clone(),
            registers: table.clone(),
            name: Uuid::new_v4().to_string(),
            timing,
            resigned: CancellationToken::new(),
        }
    }

    /// Waits for its turn and removes leftovers. Never ends.
    pub async fn run(&self) {
        self.resigned.run_until_cancelled(self.take_turns()).await;
        std::future::pending::<()>().await;
    }

    /// Stops for ever, and gives the lease up.
    pub async fn resign(&self) {
        self.resigned.cancel();
        let given_up = lease::give_up(self.registers.as_ref(), REGISTER, &self.name).await;
        if let Err(error) = given_up {
            tracing::warn!(%error, "the clean-up's lease was not given up");
        }
    }

    async fn take_turns(&self) {
        let mut candidate = Candidate::new(self.name.clone(), self.timing.takeover);
        loop {
            match self.take_turn(&mut candidate).await {
                Ok(()) | Err(Stop::Deposed) => {}
                Err(Stop::Failed(error)) => {
                    tracing::warn!(%error, "what deletions left is not removed");
                }
            }
            sleep(self.timing.poll).await;
        }
    }

    async fn take_turn(&self, candidate: &mut Candidate) -> Result<(), Stop> {
        let leftovers = self.tasks.leftovers().await?;
        if leftovers.is_empty() {
            candidate.forget();
            return Ok(());
        }
        let register = self.registers.read_register(REGISTER).await?;
        if !candidate.may_take(register.as_ref()) {
            return Ok(());
        }
        candidate.forget();
        let mut lease = self.write_lease(register.map(|it| it.version)).await?;
        for leftovers in leftovers {
            self.remove(&leftovers, &mut lease).await?;
        }
        Ok(())
    }

    async fn write_lease(&self, found: Option<u64>) -> Result<Lease, Stop> {
        let mut values = BTreeMap::new();
        lease::claim(&mut values, &self.name);
        let version = self
            .registers
            .swap_register(REGISTER, found, &values)
            .await?;
        Ok(Lease {
            version: version.ok_or(Stop::Deposed)?,
            written: Instant::now(),
        })
    }

    /// Goes once through all that may be left. Where nothing is, and nothing can
    /// turn up any more, the task is done.
    async fn remove(&self, leftovers: &Leftovers, lease: &mut Lease) -> Result<(), Stop> {
        let is_settled = leftovers.time.after(self.timing.settle) < Timestamp::now();
        let mut is_any = false;
        let mut after = None;
        loop {
            let listed = self.list(leftovers, after.as_ref()).await?;
            for some in listed.found.chunks(AT_ONCE) {
                is_any = true;
                if lease.written.elapsed() >= self.timing.beat {
                    *lease = self.write_lease(Some(lease.version)).await?;
                }
                let next = Instant::now() + self.pause(some.len());
                self.remove_some(some).await?;
                sleep_until(next).await;
            }
            match listed.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        if is_settled && !is_any {
            tracing::info!(name = %leftovers.gone, "nothing is left of what was deleted");
            self.tasks.finish(leftovers).await?;
        }
        Ok(())
    }

    fn pause(&self, removed: usize) -> Duration {
        let removed = u32::try_from(removed).unwrap_or(u32::MAX);
        Duration::from_secs(1) * removed / self.timing.rate.max(1)
    }

    /// Memberships of the very incarnation that is gone.
    async fn list(
        &self,
        leftovers: &Leftovers,
        after: Option<&Place>,
    ) -> Result<Listed<Membership>, store::Error> {
        let slice = Slice { after, limit: PAGE };
        let Listed { found, next } = match &leftovers.gone {
            Gone::Organization(name) => self.lists.members(name, slice).await?,
            Gone::User(username) => {
                let listed = self.lists.organizations_of(username, slice).await?;
                let keys = listed.found.into_iter();
                let keys: Vec<_> = keys
                    .map(|organization| Key::Membership(organization, username.clone()))
                    .collect();
                let records = self.store.read_strong(&keys).await?.into_iter();
                Listed {
                    found: records
                        .flatten()
                        .filter_map(Record::into_membership)
                        .collect(),
                    next: listed.next,
                }
            }
        };
        let is_left = |membership: &Membership| {
            let uid = match leftovers.gone {
                Gone::User(_) => &membership.member_uid,
                Gone::Organization(_) => &membership.organization_uid,
            };
            uid.as_ref() == Some(&leftovers.uid)
        };
        Ok(Listed {
            found: found.into_iter().filter(is_left).collect(),
            next,
        })
    }

    /// Removes memberships, together or, where one of them has changed, one by
    /// one: what was changed is looked at again later.
    async fn remove_some(&self, memberships: &[Membership]) -> Result<(), Stop> {
        let steps = memberships.iter();
        let steps: Vec<_> = steps
            .map(|membership| Step::Delete {
                found: Record::Membership(membership.clone()),
            })
            .collect();
        let mut groups = vec![steps.as_slice()];
        while let Some(group) = groups.pop() {
            let origin = Origin {
                actor: Actor::Platform,
                request_id: None,
            };
            match self.store.commit(group, &origin).await {
                Ok(()) => metrics::counter!(LEFTOVERS_REMOVED).increment(group.len() as u64),
                Err(CommitError::Stale | CommitError::Conflict) if group.len() > 1 => {
                    groups.extend(group.chunks(1));
                }
                Err(CommitError::Stale | CommitError::Conflict) => {}
                Err(CommitError::NotApplied(error) | CommitError::OutcomeUnknown(error)) => {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}
