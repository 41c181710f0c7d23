//! Fences in the near caches of the listed replicas.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use backon::{BackoffBuilder as _, ConstantBuilder};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use super::{
    background::BackgroundTasks,
    near_cache::NearCache,
    replica_directory::ReplicaDirectory,
    replicas::{Listed, Status},
    settings::Timing,
};
use crate::{
    domain::Key,
    peer::{Fence, Incarnation, PeerAddress, PeerClient, PeerError, WriteId},
    store,
    telemetry::REPLICA_FENCES,
};

/// Pauses between attempts to fence a replica: 10 ms, and up to as much again by jitter.
const ATTEMPT_PAUSES: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_millis(10))
    .without_max_times()
    .with_jitter();

/// Fences the near caches of replicas.
pub(super) struct ReplicaFencing {
    near_cache: Arc<NearCache>,
    directory: Arc<ReplicaDirectory>,
    peers: PeerClient,
    background: BackgroundTasks,
    timing: Timing,
}

/// The fences of a write in the near caches of replicas. When this is dropped, it releases their
/// holds, unless they end by time.
pub(super) struct ReplicaFences {
    fencing: Arc<ReplicaFencing>,
    write: WriteId,
    keys: Vec<Key>,
    hold: Duration,
    /// When the last fence of this replica's own near cache was placed.
    own: Option<Instant>,
    /// When the last fence that each replica has acknowledged was sent.
    acknowledged: HashMap<Incarnation, Instant>,
    /// The replicas to which a fence was sent.
    sent: BTreeMap<Incarnation, PeerAddress>,
    /// Whether the holds end by time, and are not released.
    holds_end_by_time: bool,
}

impl ReplicaFencing {
    pub(super) fn new(
        near_cache: Arc<NearCache>,
        directory: Arc<ReplicaDirectory>,
        background: BackgroundTasks,
        timing: Timing,
    ) -> Self {
        Self {
            near_cache,
            directory,
            peers: PeerClient::default(),
            background,
            timing,
        }
    }

    /// The fences of a new write of these keys. None is placed yet.
    pub(super) fn begin_write(self: &Arc<Self>, keys: &[Key]) -> ReplicaFences {
        self.begin(keys, self.timing.fence_ttl)
    }

    /// Fences that remove these keys, at most [`crate::peer::MAX_KEYS`], without holds. None is placed yet.
    pub(super) fn begin_removal(self: &Arc<Self>, keys: &[Key]) -> ReplicaFences {
        self.begin(keys, Duration::ZERO)
    }

    fn begin(self: &Arc<Self>, keys: &[Key], hold: Duration) -> ReplicaFences {
        ReplicaFences {
            fencing: self.clone(),
            write: WriteId(Uuid::new_v4()),
            keys: keys.to_vec(),
            hold,
            own: None,
            acknowledged: HashMap::new(),
            sent: BTreeMap::new(),
            holds_end_by_time: hold.is_zero(),
        }
    }

    /// Ensures that every replica that may serve from its near cache has acknowledged a fence that
    /// was sent within `max_age`. Evicts replicas that do not respond, and waits until they have
    /// left. The caller bounds its time.
    ///
    /// # Errors
    /// The directory could not be read or changed.
    pub(super) async fn fence(
        &self,
        fences: &mut ReplicaFences,
        max_age: Duration,
    ) -> Result<(), store::Error> {
        loop {
            let view = self.directory.view().await?;
            let now = Instant::now();
            if fences
                .own
                .is_none_or(|own| now.duration_since(own) > max_age)
            {
                let until = now + fences.hold;
                self.near_cache.fence(&fences.keys, fences.write, until);
                fences.own = Some(now);
            }
            let own = self.directory.incarnation();
            let missing: Vec<_> = view
                .state
                .0
                .iter()
                .filter(|(incarnation, listed)| {
                    Some(**incarnation) != own
                        && !self.directory.has_left(listed, now)
                        && !fences.is_fenced(**incarnation, now, max_age)
                })
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            for (incarnation, listed) in &missing {
                fences.sent.insert(**incarnation, listed.address.clone());
            }
            let fence = fences.fence();
            let sent = missing
                .iter()
                .map(|(incarnation, listed)| self.fence_replica(**incarnation, listed, fence));
            let sent = join_all(sent).await;
            let mut silent = BTreeSet::new();
            for ((incarnation, _), sent) in missing.into_iter().zip(sent) {
                match sent {
                    Some(sent) => {
                        fences.acknowledged.insert(*incarnation, sent);
                    }
                    None => {
                        silent.insert(*incarnation);
                    }
                }
            }
            if !silent.is_empty() {
                self.wait_until_left(&silent).await?;
            }
        }
    }

    /// Checks that the replica responds that follows this one in the directory, and evicts it if it
    /// does not. So a write rarely has to wait for a replica that has crashed.
    ///
    /// # Errors
    /// The directory could not be read or changed.
    pub(super) async fn check_successor(&self) -> Result<(), store::Error> {
        let view = self.directory.view().await?;
        self.peers
            .retain(|incarnation| view.state.0.contains_key(incarnation));
        let Some(own) = self.directory.incarnation() else {
            return Ok(());
        };
        let Some((incarnation, address)) = view.state.successor(own) else {
            return Ok(());
        };
        // Without keys, the call only checks that the replica responds.
        let ping = Fence {
            write: WriteId(Uuid::nil()),
            keys: &[],
            hold: Duration::ZERO,
        };
        let ping = self.attempts(incarnation, &address, ping);
        if ping.await.is_none() {
            self.directory.evict(&BTreeSet::from([incarnation])).await?;
        }
        Ok(())
    }

    /// Returns when the acknowledged fence was sent. A replica that is leaving gets one attempt.
    async fn fence_replica(
        &self,
        incarnation: Incarnation,
        listed: &Listed,
        fence: Fence<'_>,
    ) -> Option<Instant> {
        let address = &listed.address;
        let sent = if listed.status == Status::Active {
            self.attempts(incarnation, address, fence).await
        } else {
            self.attempt(incarnation, address, fence).await.ok()
        };
        let result = if sent.is_some() {
            "acknowledged"
        } else {
            "failed"
        };
        metrics::counter!(REPLICA_FENCES, "result" => result).increment(1);
        sent
    }

    async fn attempts(
        &self,
        incarnation: Incarnation,
        address: &PeerAddress,
        fence: Fence<'_>,
    ) -> Option<Instant> {
        let deadline = Instant::now() + self.timing.fence_patience;
        for pause in ATTEMPT_PAUSES.build() {
            match self.attempt(incarnation, address, fence).await {
                Ok(sent) => return Some(sent),
                Err(Some(PeerError::OtherReplica)) => return None,
                Err(error) => {
                    let error = error.as_ref().map(ToString::to_string);
                    tracing::debug!(replica = %incarnation, error, "a replica was not fenced");
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            sleep(pause).await;
        }
        None
    }

    /// Returns when the fence was sent. The error is `None` if the replica did not respond in time.
    async fn attempt(
        &self,
        incarnation: Incarnation,
        address: &PeerAddress,
        fence: Fence<'_>,
    ) -> Result<Instant, Option<PeerError>> {
        let sent = Instant::now();
        let fence = self.peers.fence(incarnation, address, fence);
        match timeout(self.timing.fence_attempt, fence).await {
            Ok(fenced) => fenced.map(|()| sent).map_err(Some),
            Err(_) => Err(None),
        }
    }

    /// Evicts replicas, and waits until none of them serves from its near cache.
    async fn wait_until_left(&self, silent: &BTreeSet<Incarnation>) -> Result<(), store::Error> {
        self.directory.evict(silent).await?;
        let view = self.directory.view().await?;
        let now = Instant::now();
        let left_at = silent
            .iter()
            .filter_map(|incarnation| view.state.0.get(incarnation))
            .filter(|listed| !self.directory.has_left(listed, now))
            .map(|listed| self.directory.left_at(listed))
            .max();
        if let Some(left_at) = left_at {
            sleep_until(left_at).await;
        }
        Ok(())
    }
}

impl ReplicaFences {
    fn fence(&self) -> Fence<'_> {
        Fence {
            write: self.write,
            keys: &self.keys,
            hold: self.hold,
        }
    }

    /// The age of the oldest fence; zero before the first one.
    pub(super) fn age(&self) -> Duration {
        let sent = self.acknowledged.values().chain(&self.own).min();
        sent.map_or(Duration::ZERO, Instant::elapsed)
    }

    /// The holds will end by time: the write may still be applied, or is not confirmed.
    pub(super) fn end_holds_by_time(&mut self) {
        self.holds_end_by_time = true;
    }

    /// The holds will be released when this is dropped.
    pub(super) fn release_holds_on_drop(&mut self) {
        self.holds_end_by_time = false;
    }

    fn is_fenced(&self, incarnation: Incarnation, now: Instant, max_age: Duration) -> bool {
        let sent = self.acknowledged.get(&incarnation);
        sent.is_some_and(|sent| now.duration_since(*sent) <= max_age)
    }
}

impl Drop for ReplicaFences {
    fn drop(&mut self) {
        let fencing = &self.fencing;
        if self.holds_end_by_time {
            return;
        }
        fencing.near_cache.release(&self.keys, self.write);
        let is_running = tokio::runtime::Handle::try_current().is_ok();
        if self.sent.is_empty() || !is_running || !fencing.background.has_room() {
            return;
        }
        let (fencing, write) = (fencing.clone(), self.write);
        let keys = std::mem::take(&mut self.keys);
        let sent = std::mem::take(&mut self.sent);
        self.fencing.background.spawn(async move {
            join_all(sent.iter().map(|(incarnation, address)| {
                let release = fencing.peers.release(*incarnation, address, write, &keys);
                // If it fails, the holds end by time.
                timeout(fencing.timing.fence_attempt, release)
            }))
            .await;
        });
    }
}
