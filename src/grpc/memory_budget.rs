//! Room in memory for calls that may need much of it: batches and lists. Each takes
//! room for the most that it may need before it begins.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use foldhash::fast::RandomState;
use http::Extensions;
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tonic::Status;

use super::{
    deadline::Deadline,
    middleware::{Flow, flow_of},
    status,
};
use crate::transport::listener::Peer;

/// Room for each processor, and besides. `deploy/kubernetes.yaml` has the memory for
/// one processor.
const KIB_PER_PROCESSOR: usize = 16 * 1024;
const KIB_BESIDES: usize = 32 * 1024;
/// Most room of one call: reads of many records keep few of them whole, and answers are
/// bounded.
const MOST_KIB: u32 = 24 * 1024;
/// Room for a user or an organization, as it is read and answered: up to 11 KiB, twice.
const PROFILE_KIB: usize = 24;
/// Room for a membership, likewise.
const MEMBERSHIP_KIB: usize = 2;
/// Users or organizations of memberships that are whole in memory at once.
const PROFILES_BESIDE_MEMBERSHIPS: usize = 300;
/// Pause between looks whether a client has taken its answers.
const PAUSE: Duration = Duration::from_millis(5);

/// Records that a call reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Records {
    /// Users or organizations, answered whole.
    Profiles(usize),
    /// Memberships, with their users and organizations.
    Memberships(usize),
}

/// Room for calls: one caller has half of it at most.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    half: usize,
    of_caller: Mutex<HashMap<Flow, Arc<Semaphore>, RandomState>>,
}

/// Room that a call has; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken(#[expect(dead_code, reason = "held")] [OwnedSemaphorePermit; 2]);

impl Room {
    pub(super) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, Into::into);
        let kib = KIB_BESIDES + KIB_PER_PROCESSOR * processors;
        let kib = kib.min(Semaphore::MAX_PERMITS);
        Self {
            all: Arc::new(Semaphore::new(kib)),
            half: kib / 2,
            of_caller: Mutex::default(),
        }
    }

    /// Waits for room for a call, at most for half of the time that the call has left. A
    /// connection that has not taken much of its answers waits until it has.
    ///
    /// # Errors
    /// OVERLOADED: there is none.
    pub(super) async fn take(
        &self,
        records: Records,
        caller: &Requester,
        deadline: Deadline,
    ) -> Result<Taken, Status> {
        let now = Instant::now();
        let until = now + deadline.instant().saturating_duration_since(now) / 2;
        while caller.peer.as_ref().is_some_and(Peer::holds_much) {
            if Instant::now() >= until {
                return Err(status::crowded());
            }
            tokio::time::sleep(PAUSE).await;
        }
        let kib = records.kib();
        let room = async {
            // First the caller's own: those who wait for all room are few of each caller.
            let own = self.of_caller(&caller.flow).acquire_many_owned(kib).await?;
            let all = self.all.clone().acquire_many_owned(kib).await?;
            Ok::<_, AcquireError>(Taken([own, all]))
        };
        match timeout_at(until, room).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_)) | Err(_) => Err(status::crowded()),
        }
    }

    fn of_caller(&self, flow: &Flow) -> Arc<Semaphore> {
        let mut of_caller = self
            .of_caller
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !of_caller.contains_key(flow) {
            // Of those who have no call now.
            of_caller.retain(|_, room| Arc::strong_count(room) > 1);
        }
        let room = of_caller.entry(flow.clone());
        room.or_insert_with(|| Arc::new(Semaphore::new(self.half)))
            .clone()
    }
}

/// The caller that takes room, and its connection.
#[derive(Debug)]
pub(super) struct Requester {
    flow: Flow,
    peer: Option<Peer>,
}

impl Requester {
    /// Whose call it is that has these extensions.
    pub(super) fn of(extensions: &Extensions) -> Self {
        Self {
            flow: flow_of(extensions),
            peer: extensions.get::<Peer>().cloned(),
        }
    }
}

impl Records {
    fn kib(self) -> u32 {
        let kib = match self {
            Self::Profiles(count) => count * PROFILE_KIB,
            Self::Memberships(count) => {
                let profiles = count.min(PROFILES_BESIDE_MEMBERSHIPS);
                count * MEMBERSHIP_KIB + profiles * PROFILE_KIB
            }
        };
        u32::try_from(kib).unwrap_or(MOST_KIB).min(MOST_KIB)
    }
}
