//! Single flight: concurrent reads of a key share one table read. Only a read that has not been
//! sent can be joined: a read that has been sent may return the state from before a write that was
//! acknowledged since.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, time::timeout};

use crate::{
    domain::{Key, Record},
    store,
};

/// Longest wait of a read for an earlier read of the same key. Later readers can join it meanwhile.
/// While an earlier read of a key is late, one more read of it is sent in each such time at most.
const SPACING: Duration = Duration::from_millis(20);

/// The result of a flight; `None` until it has landed.
type Landing = Option<Result<Arc<FlightRecords>, store::Error>>;
type FlightRecords = HashMap<Key, Option<Record>>;
/// The future result of a flight, and whether another reader has joined it.
type FlightEntry = (watch::Receiver<Landing>, Arc<AtomicBool>);

/// Table reads of this replica, by the keys that they read.
#[derive(Default)]
pub(super) struct SingleFlight(Mutex<Flights>);

#[derive(Default)]
struct Flights {
    /// Not sent yet: can be joined.
    open: HashMap<Key, FlightEntry>,
    /// Sent.
    sent: HashMap<Key, FlightEntry>,
}

/// A table read that other readers can join until it is sent. If it is dropped without a result,
/// the readers that joined it read the table themselves.
pub(super) struct Flight {
    flights: Arc<SingleFlight>,
    keys: Vec<Key>,
    landing: watch::Sender<Landing>,
    is_joined: Arc<AtomicBool>,
}

/// The result of another reader's flight for one key.
pub(super) struct JoinedFlight {
    key: Key,
    landing: watch::Receiver<Landing>,
}

impl SingleFlight {
    /// Joins open flights, and opens a flight for the other keys. Returns for each key the
    /// flight that was joined, or `None` if the key is in the new one.
    pub(super) fn join(self: &Arc<Self>, keys: &[Key]) -> (Flight, Vec<Option<JoinedFlight>>) {
        let (landing, receiver) = watch::channel(None);
        let is_joined = Arc::new(AtomicBool::new(false));
        let mut own = Vec::new();
        let mut flights = self.lock();
        let joined = keys.iter().map(|key| {
            if let Some((landing, is_joined)) = flights.open.get(key) {
                is_joined.store(true, Ordering::SeqCst);
                return Some(JoinedFlight {
                    key: key.clone(),
                    landing: landing.clone(),
                });
            }
            let entry = (receiver.clone(), is_joined.clone());
            flights.open.insert(key.clone(), entry);
            own.push(key.clone());
            None
        });
        let joined = joined.collect();
        drop(flights);
        let flight = Flight {
            flights: self.clone(),
            keys: own,
            landing,
            is_joined,
        };
        (flight, joined)
    }

    fn lock(&self) -> MutexGuard<'_, Flights> {
        self.0.lock()
    }
}

impl Flight {
    /// The keys to read.
    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Closes the flight: from then on no reader can join it. Waits up to [`SPACING`] for
    /// earlier flights of the same keys. The table must be read after this.
    pub(super) async fn close(&self) {
        let earlier: Vec<_> = {
            let flights = self.flights.lock();
            let sent = self.keys.iter().filter_map(|key| flights.sent.get(key));
            sent.cloned().collect()
        };
        let all_landed = async {
            for (mut landing, _) in earlier {
                // A flight whose sender is dropped has ended, too.
                let _ = landing.wait_for(Option::is_some).await;
            }
        };
        // After a timeout, the flight is sent anyway. That costs a read, and nothing else.
        let _ = timeout(SPACING, all_landed).await;
        let mut flights = self.flights.lock();
        for key in &self.keys {
            if let Some(entry) = flights.open.remove(key) {
                flights.sent.insert(key.clone(), entry);
            }
        }
    }

    /// Shares the result, in the order of [`Self::keys`]. An error is shared only by a flight of
    /// one key: otherwise it could concern another key than the joined one.
    pub(super) fn land(&self, found: &Result<Vec<Option<Record>>, store::Error>) {
        if !self.is_joined.load(Ordering::SeqCst) || found.is_err() && self.keys.len() > 1 {
            return;
        }
        let by_key = found.as_ref().map_err(Clone::clone).map(|found| {
            let records = self.keys.iter().cloned().zip(found.iter().cloned());
            Arc::new(records.collect())
        });
        self.landing.send_replace(Some(by_key));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        let Flights { open, sent } = &mut *flights;
        for key in &self.keys {
            for flights in [&mut *open, &mut *sent] {
                let is_ours =
                    |(_, is_joined): &FlightEntry| Arc::ptr_eq(is_joined, &self.is_joined);
                if flights.get(key).is_some_and(is_ours) {
                    flights.remove(key);
                }
            }
        }
    }
}

impl JoinedFlight {
    /// Waits for the record. `None` if the flight was dropped without a result.
    pub(super) async fn record(mut self) -> Option<Result<Option<Record>, store::Error>> {
        let landing = self.landing.wait_for(Option::is_some).await.ok()?;
        Some(match landing.as_ref()? {
            Ok(records) => Ok(records.get(&self.key)?.clone()),
            Err(error) => Err(error.clone()),
        })
    }
}
