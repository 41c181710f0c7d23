//! The memory budget of large calls: batches and lists. Each call reserves the most memory
//! that it may need before it starts.

use std::{collections::HashMap, sync::Arc, thread, time::Duration};

use foldhash::fast::RandomState;
use http::Extensions;
use parking_lot::Mutex;
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tonic::Status;

use super::{
    deadline::Deadline,
    middleware::{FlowKey, flow_of},
    status,
};
use crate::{service::MEMBERSHIPS_AT_ONCE, transport::listener::Peer};

/// Budget for each processor, and the base budget. `deploy/kubernetes.yaml` has the memory for
/// one processor.
const KIB_PER_CPU: usize = 16 * 1024;
const BASE_KIB: usize = 32 * 1024;
/// Largest reservation of one call.
const MAX_CALL_KIB: u32 = 24 * 1024;
/// Memory of a user or an organization, read and encoded: up to 11 KiB, twice.
const PROFILE_KIB: usize = 24;
/// Memory of a membership, read and encoded: up to 12 KiB, twice.
const MEMBERSHIP_KIB: usize = 24;
/// Most memory of all memberships of a call: pages are bounded.
const MAX_MEMBERSHIPS_KIB: usize = 6 * 1024;
/// Pause between checks whether a client has received its responses.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Records that a call reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum RecordCount {
    /// Users or organizations, returned whole.
    Profiles(usize),
    /// Memberships, with their users and organizations.
    Memberships(usize),
}

/// A memory budget. One caller has at most half of it.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    all: Arc<Semaphore>,
    half: usize,
    per_caller: Mutex<HashMap<FlowKey, Arc<Semaphore>, RandomState>>,
}

/// The reservation of a call, until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation(#[expect(dead_code, reason = "held")] [OwnedSemaphorePermit; 2]);

impl MemoryBudget {
    pub(super) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, Into::into);
        let kib = BASE_KIB + KIB_PER_CPU * processors;
        let kib = kib.min(Semaphore::MAX_PERMITS);
        Self {
            all: Arc::new(Semaphore::new(kib)),
            half: kib / 2,
            per_caller: Mutex::default(),
        }
    }

    /// Waits for the memory of a call, for at most half of the time that the call has left. A
    /// call on a connection with large responses in flight waits until they are received.
    ///
    /// # Errors
    /// OVERLOADED: the budget is used up.
    pub(super) async fn reserve(
        &self,
        records: RecordCount,
        caller: &Requester,
        deadline: Deadline,
    ) -> Result<Reservation, Status> {
        let now = Instant::now();
        let until = now + deadline.instant().saturating_duration_since(now) / 2;
        while caller.peer.as_ref().is_some_and(Peer::has_large_charge) {
            if Instant::now() >= until {
                return Err(status::crowded());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let kib = records.kib();
        let reservation = async {
            // First the caller's own half: it bounds the calls of one caller that wait for `all`.
            let own = self
                .per_caller(&caller.flow)
                .acquire_many_owned(kib)
                .await?;
            let all = self.all.clone().acquire_many_owned(kib).await?;
            Ok::<_, AcquireError>(Reservation([own, all]))
        };
        match timeout_at(until, reservation).await {
            Ok(Ok(reservation)) => Ok(reservation),
            Ok(Err(_)) | Err(_) => Err(status::crowded()),
        }
    }

    fn per_caller(&self, flow: &FlowKey) -> Arc<Semaphore> {
        let mut per_caller = self.per_caller.lock();
        if !per_caller.contains_key(flow) {
            // Removes callers without a running call.
            per_caller.retain(|_, budget| Arc::strong_count(budget) > 1);
        }
        let budget = per_caller.entry(flow.clone());
        budget
            .or_insert_with(|| Arc::new(Semaphore::new(self.half)))
            .clone()
    }
}

/// The caller of a call, and its connection.
#[derive(Debug)]
pub(super) struct Requester {
    flow: FlowKey,
    peer: Option<Peer>,
}

impl Requester {
    /// The caller of a call with these extensions.
    pub(super) fn of(extensions: &Extensions) -> Self {
        Self {
            flow: flow_of(extensions),
            peer: extensions.get::<Peer>().cloned(),
        }
    }
}

impl RecordCount {
    fn kib(self) -> u32 {
        let kib = match self {
            Self::Profiles(count) => count * PROFILE_KIB,
            Self::Memberships(count) => {
                let memberships = (count * MEMBERSHIP_KIB).min(MAX_MEMBERSHIPS_KIB);
                memberships + count.min(MEMBERSHIPS_AT_ONCE.into()) * PROFILE_KIB
            }
        };
        u32::try_from(kib).unwrap_or(MAX_CALL_KIB).min(MAX_CALL_KIB)
    }
}
