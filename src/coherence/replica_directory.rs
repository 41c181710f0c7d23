//! The replica directory: a register of the table that lists the replicas with a near cache. A
//! write fences the near caches of all listed replicas.
//!
//! A replica serves from its near cache only while its view of the directory is valid and lists it
//! as active, and only once it has been listed for [`Timing::join_wait`]: by then, every write that
//! began before it was listed has ended, and every writer's view lists it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    register_view::{RegisterState as _, RegisterView, View},
    replicas::{Listed, Replicas, Status},
    settings::Timing,
};
use crate::{
    peer::{Incarnation, PeerAddress},
    store::{self, Registers},
    telemetry::{REPLICA_ACTIVE, REPLICAS_EVICTED, REPLICAS_LISTED},
};

/// Most attempts to change the directory while other replicas change it.
const MAX_SWAPS: u32 = 10;
/// Longest pause before a replica that was evicted joins again, see [`Timing::rejoin_pause`].
const MAX_REJOIN_PAUSE: Duration = Duration::from_secs(300);
/// Time after which a replica that stayed listed is trusted again.
const REJOIN_FORGET: Duration = Duration::from_secs(600);

/// The time between joining and leaving, by its number in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch(pub(super) u64);

/// The directory, and the place of this replica in it.
pub(super) struct ReplicaDirectory {
    register: RegisterView<Replicas>,
    timing: Timing,
    /// The address of this replica. `None`: it is not listed, and its near cache serves only reads with
    /// a staleness bound.
    address: Option<PeerAddress>,
    own: RwLock<Own>,
}

/// The place of this replica in the directory.
#[derive(Debug)]
struct Own {
    joined: Option<DirectoryEntry>,
    /// Number of incarnations so far.
    epochs: u64,
    /// Number of recent evictions.
    evictions: u32,
    /// When the replica may join.
    may_join: Instant,
    /// The replica does not join again.
    is_stopped: bool,
}

#[derive(Debug, Clone, Copy)]
struct DirectoryEntry {
    incarnation: Incarnation,
    epoch: Epoch,
    since: Instant,
}

impl ReplicaDirectory {
    pub(super) fn new(
        registers: Arc<dyn Registers>,
        address: Option<PeerAddress>,
        timing: Timing,
    ) -> Self {
        Self {
            register: RegisterView::new(registers, timing),
            timing,
            address,
            own: RwLock::new(Own {
                joined: None,
                epochs: 0,
                evictions: 0,
                may_join: Instant::now(),
                is_stopped: false,
            }),
        }
    }

    /// A valid view.
    pub(super) async fn view(&self) -> Result<Arc<View<Replicas>>, store::Error> {
        self.register.view().await
    }

    /// The incarnation of this replica, while it is listed.
    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        let own = self.own.read();
        own.joined.map(|joined| joined.incarnation)
    }

    /// The number of active replicas, this one included.
    pub(super) fn replicas(&self) -> usize {
        let own = self.incarnation();
        let view = self.register.current();
        let listed = view.iter().flat_map(|view| &view.state.0);
        let others = listed.filter(|(incarnation, listed)| {
            listed.status == Status::Active && Some(**incarnation) != own
        });
        others.count() + 1
    }

    /// The epoch in which this replica may serve from its near cache at `now`.
    pub(super) fn serving_epoch(&self, now: Instant) -> Option<Epoch> {
        let joined = {
            let own = self.own.read();
            own.joined.filter(|_| !own.is_stopped)?
        };
        if now < joined.since + self.timing.join_wait {
            return None;
        }
        let is_listed = self.register.with_valid(now, |view| {
            let listed = view.state.0.get(&joined.incarnation);
            listed.is_some_and(|listed| listed.status == Status::Active)
        });
        is_listed?.then_some(joined.epoch)
    }

    /// Whether a replica that is `listed` no longer serves from its near cache on an older view.
    pub(super) fn has_left(&self, listed: &Listed, now: Instant) -> bool {
        match listed.status {
            Status::Active => false,
            Status::Stopped => true,
            Status::Leaving | Status::Vanished => now >= self.left_at(listed),
        }
    }

    /// The time from which a replica that is leaving no longer serves from its near cache.
    pub(super) fn left_at(&self, listed: &Listed) -> Instant {
        listed.since + self.timing.settle()
    }

    /// Sets replicas that did not respond to leaving.
    ///
    /// # Errors
    /// The directory could not be changed.
    pub(super) async fn evict(&self, evicted: &BTreeSet<Incarnation>) -> Result<(), store::Error> {
        let is_evicted = |incarnation: &Incarnation| evicted.contains(incarnation);
        let count = self.set_leaving(is_evicted).await?;
        if count > 0 {
            metrics::counter!(REPLICAS_EVICTED).increment(count);
            tracing::warn!(count, "replicas did not respond and were evicted");
        }
        Ok(())
    }

    /// Sets all replicas to leaving, so that their near caches become empty. They join again.
    ///
    /// # Errors
    /// The directory could not be changed.
    pub(super) async fn evict_all(&self) -> Result<(), store::Error> {
        self.set_leaving(|_| true).await.map(drop)
    }

    /// Returns the number of replicas that were active.
    async fn set_leaving(
        &self,
        is_evicted: impl Fn(&Incarnation) -> bool,
    ) -> Result<u64, store::Error> {
        let mut count = 0;
        self.change(|replicas| {
            let active = replicas.0.iter_mut().filter(|(incarnation, listed)| {
                listed.status == Status::Active && is_evicted(incarnation)
            });
            count = 0;
            for (_, listed) in active {
                listed.status = Status::Leaving;
                count += 1;
            }
            count > 0
        })
        .await?;
        Ok(count)
    }

    /// Keeps the place of this replica: reads the directory, joins it, and removes replicas that
    /// have left.
    ///
    /// # Errors
    /// The directory could not be read or changed.
    pub(super) async fn maintain(&self) -> Result<(), store::Error> {
        let view = self.register.refresh().await?;
        self.leave_if_evicted(&view);
        self.report(&view);
        if let Some(address) = self.address_to_join() {
            self.join(address).await?;
        }
        let now = Instant::now();
        // A stopped replica stays listed as long as a leaving one: otherwise another replica could
        // treat it as vanished.
        let may_be_removed = |listed: &Listed| {
            let is_in_table = !matches!(listed.status, Status::Active | Status::Vanished);
            is_in_table && now >= self.left_at(listed)
        };
        if view.state.0.values().any(may_be_removed) {
            self.change(|replicas| {
                let before = replicas.0.len();
                replicas.0.retain(|_, listed| !may_be_removed(listed));
                replicas.0.len() < before
            })
            .await?;
        }
        Ok(())
    }

    /// Takes this replica out of the directory. It serves from its near cache no longer.
    ///
    /// # Errors
    /// The directory could not be changed.
    pub(super) async fn stop(&self) -> Result<(), store::Error> {
        let joined = {
            let mut own = self.own.write();
            own.is_stopped = true;
            own.joined.take()
        };
        let Some(joined) = joined else { return Ok(()) };
        self.change(|replicas| match replicas.0.get_mut(&joined.incarnation) {
            Some(own) => {
                own.status = Status::Stopped;
                true
            }
            None => false,
        })
        .await
    }

    /// Creates the directory of a new table, without replicas.
    ///
    /// # Errors
    /// The directory could not be written.
    pub(super) async fn begin(&self) -> Result<(), store::Error> {
        self.register.begin(&Replicas::default()).await
    }

    /// The address of this replica, if it is to join the directory.
    fn address_to_join(&self) -> Option<&PeerAddress> {
        let own = self.own.read();
        let is_due = own.joined.is_none() && !own.is_stopped && Instant::now() >= own.may_join;
        self.address.as_ref().filter(|_| is_due)
    }

    async fn join(&self, address: &PeerAddress) -> Result<(), store::Error> {
        let incarnation = Incarnation(Uuid::new_v4());
        self.change(|replicas| {
            let listed = Listed {
                status: Status::Active,
                address: address.clone(),
                since: Instant::now(),
            };
            replicas.0.insert(incarnation, listed).is_none()
        })
        .await?;
        let mut own = self.own.write();
        own.epochs += 1;
        own.joined = Some(DirectoryEntry {
            incarnation,
            epoch: Epoch(own.epochs),
            since: Instant::now(),
        });
        Ok(())
    }

    /// Leaves if other replicas have evicted this one.
    fn leave_if_evicted(&self, view: &View<Replicas>) {
        let mut own = self.own.write();
        let Some(joined) = own.joined else { return };
        let listed = view.state.0.get(&joined.incarnation);
        if listed.is_some_and(|listed| listed.status == Status::Active) {
            return;
        }
        own.evictions = if joined.since.elapsed() > REJOIN_FORGET {
            0
        } else {
            own.evictions.saturating_add(1)
        };
        let pause = self.timing.rejoin_pause * (1 << own.evictions.clamp(1, 10)) / 2;
        own.may_join = Instant::now() + pause.min(MAX_REJOIN_PAUSE);
        own.joined = None;
        tracing::warn!("this replica was evicted: its near cache is not used until it joins again");
    }

    fn report(&self, view: &View<Replicas>) {
        let listed = view.values.len();
        metrics::gauge!(REPLICAS_LISTED).set(u32::try_from(listed).unwrap_or(u32::MAX));
        let is_active = u32::from(self.serving_epoch(Instant::now()).is_some());
        metrics::gauge!(REPLICA_ACTIVE).set(is_active);
    }

    /// Changes the directory until no other replica changes it meanwhile. `change` returns whether
    /// it has changed the content.
    async fn change(
        &self,
        mut change: impl FnMut(&mut Replicas) -> bool,
    ) -> Result<(), store::Error> {
        let mut view = self.register.view().await?;
        for _ in 0..MAX_SWAPS {
            let mut changed = view.state.clone();
            if !change(&mut changed) {
                return Ok(());
            }
            let wanted = changed.values();
            view = self.register.swap(&view, &changed).await?;
            if view.values == wanted {
                return Ok(());
            }
        }
        Err(store::Error::new(
            store::ErrorKind::Unavailable,
            "the replica directory is changed too often",
        ))
    }
}

#[cfg(test)]
mod tests;
