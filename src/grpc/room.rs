//! Room in memory for calls that may need much of it: batches and lists. Each takes
//! room for the most that it may need before it begins.

use std::{sync::Arc, thread, time::Duration};

use http::Extensions;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tonic::Status;

use super::{deadline::Deadline, status};
use crate::connections::Peer;

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

/// Room for calls.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    pub(super) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, Into::into);
        let kib = KIB_BESIDES + KIB_PER_PROCESSOR * processors;
        Self(Arc::new(Semaphore::new(kib.min(Semaphore::MAX_PERMITS))))
    }

    /// Waits for room for a call, at most for half of the time that the call has left. A
    /// connection that has not taken much of its answers waits until it has.
    ///
    /// # Errors
    /// OVERLOADED: there is none.
    pub(super) async fn take(
        &self,
        records: Records,
        peer: Option<&Peer>,
        deadline: Deadline,
    ) -> Result<OwnedSemaphorePermit, Status> {
        let now = Instant::now();
        let until = now + deadline.instant().saturating_duration_since(now) / 2;
        while peer.is_some_and(Peer::holds_much) {
            if Instant::now() >= until {
                return Err(status::crowded());
            }
            tokio::time::sleep(PAUSE).await;
        }
        let room = self.0.clone().acquire_many_owned(records.kib());
        match timeout_at(until, room).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_)) | Err(_) => Err(status::crowded()),
        }
    }
}

/// Whose connection a call with these extensions came over.
pub(super) fn peer_of(extensions: &Extensions) -> Option<Peer> {
    extensions.get::<Peer>().cloned()
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
