//! Look-ups that come while many are under way share one round trip.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use super::{Cache, Error, Found, Kind};

/// Look-ups that are sent at once, each on its own; those that come meanwhile
/// wait for the first of them to end, and are then sent together. Alone, a
/// look-up never waits.
const LANES: usize = 4;
/// Keys that are sent together.
const MAX_KEYS: usize = 300;
/// A look-up of more keys than this is sent at once, on its own: it would gain
/// little, and be long in a lane.
const MAX_KEYS_TO_SHARE: usize = 30;

/// A cache whose look-ups share round trips under load.
pub struct Batching {
    cache: Arc<dyn Cache>,
    lanes: Arc<Mutex<Lanes>>,
    /// Longest that a shared look-up may hold its lane.
    patience: Duration,
}

impl fmt::Debug for Batching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batching").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Lanes {
    in_use: usize,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    keys: Vec<String>,
    answer: oneshot::Sender<Result<Vec<Found>, Error>>,
}

impl Batching {
    /// Sends look-ups to this cache; the answers to those that share a round trip
    /// are waited for so long.
    #[must_use]
    pub fn new(cache: Arc<dyn Cache>, patience: Duration) -> Self {
        Self {
            cache,
            lanes: Arc::default(),
            patience,
        }
    }

    fn enter(&self, keys: &[String]) -> Turn {
        let mut lanes = lock(&self.lanes);
        if lanes.in_use < LANES {
            lanes.in_use += 1;
            return Turn::Now(Lane {
                cache: self.cache.clone(),
                lanes: self.lanes.clone(),
                patience: self.patience,
            });
        }
        let (answer, answered) = oneshot::channel();
        let keys = keys.to_vec();
        lanes.waiting.push(Waiting { keys, answer });
        Turn::Later(answered)
    }
}

fn lock(lanes: &Mutex<Lanes>) -> MutexGuard<'_, Lanes> {
    lanes.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Turn {
    Now(Lane),
    Later(oneshot::Receiver<Result<Vec<Found>, Error>>),
}

/// A lane that is in use. Whoever waits when it is dropped goes on in it.
struct Lane {
    cache: Arc<dyn Cache>,
    lanes: Arc<Mutex<Lanes>>,
    patience: Duration,
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut lanes = lock(&self.lanes);
        let runtime = Handle::try_current();
        if let (false, Ok(runtime)) = (lanes.waiting.is_empty(), runtime) {
            let lane = Self {
                cache: self.cache.clone(),
                lanes: self.lanes.clone(),
                patience: self.patience,
            };
            drop(lanes);
            runtime.spawn(lane.carry());
        } else {
            lanes.in_use -= 1;
        }
    }
}

impl Lane {
    /// Looks up for all who wait, until nobody does.
    async fn carry(self) {
        loop {
            let passengers = lock(&self.lanes).board();
            if passengers.is_empty() {
                return;
            }
            self.look_up(passengers).await;
        }
    }

    async fn look_up(&self, passengers: Vec<Waiting>) {
        let mut positions: HashMap<&str, usize> = HashMap::new();
        let mut keys = Vec::new();
        for key in passengers.iter().flat_map(|passenger| &passenger.keys) {
            positions.entry(key).or_insert_with(|| {
                keys.push(key.clone());
                keys.len() - 1
            });
        }
        let found = timeout(self.patience, self.cache.get(&keys)).await;
        let found = found.unwrap_or_else(|_| {
            Err(Error {
                kind: Kind::Unavailable,
                source: "no answer in time".into(),
            })
        });
        let answers: Vec<_> = passengers
            .iter()
            .map(|passenger| {
                let found = found.as_ref().map_err(Error::told_again)?;
                let places = passenger.keys.iter().map(|key| positions.get(&**key));
                let found_at = |place: Option<&usize>| found.get(*place?).cloned();
                Ok(places
                    .map(|place| found_at(place).unwrap_or(Found::Unknown))
                    .collect())
            })
            .collect();
        drop(positions);
        for (passenger, answer) in passengers.into_iter().zip(answers) {
            // Whoever does not wait any more needs no answer.
            let _ = passenger.answer.send(answer);
        }
    }
}

impl Lanes {
    /// Those who waited longest, and still do.
    fn board(&mut self) -> Vec<Waiting> {
        let mut keys = 0;
        self.waiting.retain(|waiting| !waiting.answer.is_closed());
        let fit = self.waiting.iter().take_while(|waiting| {
            keys += waiting.keys.len();
            keys <= MAX_KEYS
        });
        let fit = fit.count();
        self.waiting.drain(..fit).collect()
    }
}

#[async_trait]
impl Cache for Batching {
    async fn get(&self, keys: &[String]) -> Result<Vec<Found>, Error> {
        if keys.len() > MAX_KEYS_TO_SHARE {
            return self.cache.get(keys).await;
        }
        match self.enter(keys) {
            Turn::Now(lane) => {
                let found = lane.cache.get(keys).await;
                drop(lane);
                found
            }
            Turn::Later(answered) => answered.await.unwrap_or_else(|_| {
                Err(Error {
                    kind: Kind::Unavailable,
                    source: "the look-up ended without an answer".into(),
                })
            }),
        }
    }

    async fn set_if_absent(&self, key: &str, value: &[u8], ttl: Duration) -> Result<bool, Error> {
        self.cache.set_if_absent(key, value, ttl).await
    }

    async fn set_if_equal(
        &self,
        key: &str,
        value: &[u8],
        expected: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        self.cache.set_if_equal(key, value, expected, ttl).await
    }

    async fn set_if_not_equal(
        &self,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        self.cache.set_if_not_equal(key, value, ttl).await
    }
}
