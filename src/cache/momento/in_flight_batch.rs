//! Look-ups that come while many are under way share one round trip.

use std::{fmt, sync::Arc, time::Duration};

use foldhash::fast::RandomState;
use indexmap::IndexSet;
use parking_lot::{Mutex, MutexGuard};
use tokio::{runtime::Handle, sync::oneshot, task::yield_now, time::timeout};
use tracing::{Instrument as _, Span};

use crate::cache::{Error, FailureKind, Found, Keys, client::CurrentConnections, is_long};
use crate::telemetry;

/// Look-ups that are sent at once, each on its own; those that come meanwhile wait for
/// a turn of the runtime, and are then sent together: under load, a turn is long and
/// brings others; otherwise, it is over in some microseconds. Alone, a look-up never
/// waits.
const LANES: usize = 2;
/// Look-ups that are under way at once; those that come then wait for the first of them
/// to end.
const MOST_LANES: usize = 16;
/// A look-up of more keys than this is sent at once, on its own: it would gain
/// little, and be long in a lane.
const MAX_KEYS_TO_SHARE: usize = 30;

/// Look-ups that share round trips under load.
pub struct Batching(Arc<Shared>);

/// What lanes have in common.
struct Shared {
    cache: Arc<CurrentConnections>,
    lanes: Mutex<Lanes>,
    /// Longest that a shared look-up may hold its lane.
    patience: Duration,
}

impl fmt::Debug for Batching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batching").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Lanes {
    in_use: usize,
    waiting: Vec<Waiting>,
    /// Those who wait will be looked after: see [`gather`].
    is_gathering: bool,
}

#[derive(Debug)]
struct Waiting {
    keys: Keys,
    answer: oneshot::Sender<Result<Vec<Found>, Error>>,
    /// Of the wait: the look-up runs in another task, where the call's own is unknown.
    span: Span,
}

impl Batching {
    /// Sends look-ups to this cache; the answers to those that share a round trip
    /// are waited for so long.
    #[must_use]
    pub fn new(cache: Arc<CurrentConnections>, patience: Duration) -> Self {
        Self(Arc::new(Shared {
            cache,
            lanes: Mutex::new(Lanes {
                in_use: 0,
                waiting: Vec::new(),
                is_gathering: false,
            }),
            patience,
        }))
    }

    /// Looks up keys, alone or together with other look-ups.
    ///
    /// # Errors
    /// No response.
    pub async fn get(&self, keys: &Keys) -> Result<Vec<Found>, Error> {
        if keys.len() > MAX_KEYS_TO_SHARE {
            return self.0.cache.look_up(keys).await;
        }
        match self.enter(keys) {
            Turn::Now(lane) => {
                let found = lane.0.cache.look_up(keys).await;
                drop(lane);
                found
            }
            Turn::Later(answered) => answered.await.unwrap_or_else(|_| {
                Err(Error::new(
                    FailureKind::Unavailable,
                    "the look-up ended without an answer",
                ))
            }),
        }
    }

    fn enter(&self, keys: &Keys) -> Turn {
        let mut lanes = lock(&self.0.lanes);
        if lanes.in_use < LANES {
            return Turn::Now(Lane::take(&self.0, &mut lanes));
        }
        let (answer, answered) = oneshot::channel();
        let span = telemetry::shared_look_up();
        let keys = keys.clone();
        lanes.waiting.push(Waiting { keys, answer, span });
        if !lanes.is_gathering {
            lanes.is_gathering = true;
            drop(lanes);
            tokio::spawn(gather(self.0.clone()));
        }
        Turn::Later(answered)
    }
}

/// Gives others a turn to come, then looks up for all who wait.
async fn gather(shared: Arc<Shared>) {
    yield_now().await;
    send_out(shared).await;
}

/// Looks up for all who wait, as far as there are lanes; the first of these to end takes
/// the others.
async fn send_out(shared: Arc<Shared>) {
    while let Some((lane, passengers, is_last)) = start(&shared) {
        let look_up = lane.carry(passengers);
        if is_last {
            return look_up.await;
        }
        tokio::spawn(look_up);
    }
}

/// A lane and those who go with it, and whether these are the last to be gathered;
/// `None` if nobody waits, or all lanes are in use.
fn start(shared: &Arc<Shared>) -> Option<(Lane, Vec<Waiting>, bool)> {
    let mut lanes = lock(&shared.lanes);
    lanes.is_gathering = false;
    if lanes.waiting.is_empty() || lanes.in_use >= MOST_LANES {
        return None;
    }
    let (lane, passengers) = (Lane::take(shared, &mut lanes), lanes.board());
    lanes.is_gathering = !lanes.waiting.is_empty();
    Some((lane, passengers, !lanes.is_gathering))
}

fn lock(lanes: &Mutex<Lanes>) -> MutexGuard<'_, Lanes> {
    lanes.lock()
}

enum Turn {
    Now(Lane),
    Later(oneshot::Receiver<Result<Vec<Found>, Error>>),
}

/// A lane that is in use. When it is dropped, another one takes its place for those
/// who wait for a lane.
struct Lane(Arc<Shared>);

impl Drop for Lane {
    fn drop(&mut self) {
        let mut lanes = lock(&self.0.lanes);
        lanes.in_use -= 1;
        if lanes.is_gathering || lanes.waiting.is_empty() {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            lanes.is_gathering = true;
            drop(lanes);
            // The task takes a lane once it runs. A runtime that ends drops the task at
            // once: with a lane in it, one lane after the other would be dropped here, each
            // within the drop of the one before.
            runtime.spawn(send_out(self.0.clone()));
        }
    }
}

impl Lane {
    fn take(shared: &Arc<Shared>, lanes: &mut Lanes) -> Self {
        lanes.in_use += 1;
        Self(shared.clone())
    }

    /// Looks up for these, and goes on as long as others are to be taken.
    async fn carry(self, mut passengers: Vec<Waiting>) {
        while !passengers.is_empty() {
            self.look_up(passengers).await;
            passengers = lock(&self.0.lanes).board_more();
        }
    }

    async fn look_up(&self, passengers: Vec<Waiting>) {
        let (keys, places) = together(&passengers);
        let mut seats = Vec::with_capacity(passengers.len());
        let mut spans = Vec::new();
        for passenger in passengers {
            seats.push((passenger.answer, passenger.keys.len()));
            if !passenger.span.is_none() {
                spans.push(passenger.span);
            }
        }
        // It can be in one trace only; the others tell how long was waited.
        let span = spans.first().cloned().unwrap_or_else(Span::none);
        let look_up = self.0.cache.look_up(&keys).instrument(span);
        let found = timeout(self.0.patience, look_up).await;
        let found = found
            .unwrap_or_else(|_| Err(Error::new(FailureKind::Unavailable, "no answer in time")));
        // Before the calls end, so that they are exported with them.
        drop(spans);
        let mut places = places.into_iter();
        for (answer, keys) in seats {
            let places = places.by_ref().take(keys);
            let found = match &found {
                Ok(found) => {
                    let result_at = |place| found.get(place).cloned().unwrap_or(Found::Unknown);
                    Ok(places.map(result_at).collect())
                }
                Err(error) => Err(error.to_copy()),
            };
            // A caller that does not wait any more needs no answer.
            let _ = answer.send(found);
        }
    }
}

/// What all of them want, each key once; and where the keys of each are among these,
/// one after the other.
fn together(passengers: &[Waiting]) -> (Keys, Vec<usize>) {
    let wanted = passengers.iter().map(|passenger| &passenger.keys);
    let (mut most, mut bytes) = (0, 0);
    for keys in wanted.clone() {
        most += keys.len();
        bytes += keys.bytes();
    }
    let mut seen = IndexSet::with_capacity_and_hasher(most, RandomState::default());
    let mut all = Keys::with_capacity(most, bytes);
    let places = wanted.flat_map(Keys::iter).map(|key| {
        let (place, is_new) = seen.insert_full(key);
        if is_new {
            all.push(&[key]);
        }
        place
    });
    let places = places.collect();
    (all, places)
}

impl Lanes {
    /// The waiting look-ups that a lane takes after its own: those that no task gathers.
    fn board_more(&mut self) -> Vec<Waiting> {
        if self.is_gathering {
            Vec::new()
        } else {
            self.board()
        }
    }

    /// Those who waited longest, and still do.
    fn board(&mut self) -> Vec<Waiting> {
        let mut keys = 0;
        self.waiting.retain(|waiting| !waiting.answer.is_closed());
        let fit = self.waiting.iter().take_while(|waiting| {
            keys += waiting.keys.len();
            !is_long(keys)
        });
        let fit = fit.count();
        self.waiting.drain(..fit).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use futures_util::future::{join, join_all};
    use tokio::runtime::Builder;

    use super::*;
    use crate::cache::Cache;

    /// A cache that holds every key under itself, and counts look-ups.
    #[derive(Default)]
    struct Echo {
        made: AtomicUsize,
        never_answers: bool,
    }

    #[async_trait]
    impl Cache for Echo {
        async fn get(&self, keys: &Keys) -> Result<Vec<Found>, Error> {
            assert!(!is_long(keys.len()));
            self.made.fetch_add(1, Ordering::Relaxed);
            if self.never_answers {
                std::future::pending::<()>().await;
            }
            let found = keys.iter().map(|key| Found::Hit(key.to_vec().into()));
            let found = found.collect();
            yield_now().await;
            Ok(found)
        }

        async fn set_if_absent(&self, _: &str, _: &[u8], _: Duration) -> Result<bool, Error> {
            Ok(false)
        }

        async fn set_if_equal(
            &self,
            _: &str,
            _: &[u8],
            _: &[u8],
            _: Duration,
        ) -> Result<bool, Error> {
            Ok(false)
        }

        async fn set_if_not_equal(&self, _: &str, _: &[u8], _: Duration) -> Result<bool, Error> {
            Ok(false)
        }
    }

    fn batching(cache: Arc<Echo>) -> Batching {
        let connections = CurrentConnections::default();
        connections.put(cache);
        Batching::new(Arc::new(connections), Duration::from_secs(60))
    }

    #[tokio::test]
    async fn concurrent_look_ups_share_few_round_trips() {
        let cache = Arc::new(Echo::default());
        let batching = batching(cache.clone());
        let look_ups = (0..200).map(async |number: usize| {
            let keys = [number, number / 2, number / 3].map(|key| key.to_string());
            let found = batching
                .get(&keys.iter().map(String::as_str).collect())
                .await;
            let wanted = keys.map(|key| Found::Hit(key.into_bytes().into()));
            assert_eq!(found.unwrap(), wanted);
        });
        // A caller that leaves is not looked up for, and nobody waits for it.
        let leaving = (0..50).map(async |_: usize| {
            let key = ["left"].into_iter().collect();
            let _ = timeout(Duration::ZERO, batching.get(&key)).await;
        });
        join(join_all(leaving), join_all(look_ups)).await;
        let made = cache.made.load(Ordering::Relaxed);
        assert!(made <= 200 / 5, "{made} look-ups");
    }

    #[test]
    fn a_process_that_ends_while_look_ups_wait_ends_well() {
        const WAITING: usize = 100_000;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let silent = Arc::new(Echo {
            never_answers: true,
            ..Echo::default()
        });
        let batching = Arc::new(batching(silent));
        runtime.block_on(async {
            for number in 0.. {
                let client = batching.clone();
                tokio::spawn(async move {
                    client
                        .get(&[&*number.to_string()].into_iter().collect())
                        .await
                });
                yield_now().await;
                let lanes = lock(&batching.0.lanes);
                if lanes.waiting.len() > WAITING && !lanes.is_gathering {
                    assert_eq!(lanes.in_use, MOST_LANES);
                    break;
                }
            }
        });
        drop(runtime);
        assert_eq!(lock(&batching.0.lanes).in_use, 0);
    }
}
