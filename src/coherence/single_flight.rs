//! Table reads that readers share. Only a read that has not been sent yet may be
//! joined: one that is under way may have seen the table before a write that was
//! acknowledged since.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use crate::{
    domain::{Key, Record},
    store,
};

/// Longest a read waits for an earlier one of the same key to end, so that those
/// who come meanwhile can join. A bound on the reads of one key: one under way,
/// and one more in each such time.
const SPACING: Duration = Duration::from_millis(20);

/// What a flight brought; `None` while it is under way.
type Landing = Option<Result<Arc<Found>, store::Error>>;
type Found = HashMap<Key, Option<Record>>;
/// A flight's announcement, and whether anybody has joined it.
type Notice = (watch::Receiver<Landing>, Arc<AtomicBool>);

/// Flights that are under way, by the keys they bring.
#[derive(Default)]
pub(super) struct Flights(Mutex<Board>);

#[derive(Default)]
struct Board {
    /// Not yet sent: may be joined.
    boarding: HashMap<Key, Notice>,
    /// Sent.
    flying: HashMap<Key, Notice>,
}

/// A table read of our own, that others may join until it departs. If it is
/// dropped without landing, whoever joined it has to read for himself.
pub(super) struct Flight {
    flights: Arc<Flights>,
    keys: Vec<Key>,
    landing: watch::Sender<Landing>,
    is_joined: Arc<AtomicBool>,
}

/// A place in somebody else's flight.
pub(super) struct Seat {
    key: Key,
    landing: watch::Receiver<Landing>,
}

impl Flights {
    /// Joins the flights that are boarding, and opens one for the other keys.
    /// Returns a seat or, where the key is in the new flight, `None` for each
    /// key. With `late`, joins also what has been sent.
    pub(super) fn board(self: &Arc<Self>, keys: &[Key], late: bool) -> (Flight, Vec<Option<Seat>>) {
        let (landing, receiver) = watch::channel(None);
        let is_joined = Arc::new(AtomicBool::new(false));
        let mut own = Vec::new();
        let mut board = self.lock();
        let seats = keys.iter().map(|key| {
            let open = board.boarding.get(key);
            let open = open.or_else(|| late.then(|| board.flying.get(key)).flatten());
            if let Some((landing, is_joined)) = open {
                is_joined.store(true, Ordering::SeqCst);
                return Some(Seat {
                    key: key.clone(),
                    landing: landing.clone(),
                });
            }
            let notice = (receiver.clone(), is_joined.clone());
            board.boarding.insert(key.clone(), notice);
            own.push(key.clone());
            None
        });
        let seats = seats.collect();
        drop(board);
        let flight = Flight {
            flights: self.clone(),
            keys: own,
            landing,
            is_joined,
        };
        (flight, seats)
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// The keys to read.
    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Waits a bounded time for earlier flights of the same keys to land; from
    /// then on nobody can join. The table must be read after this.
    pub(super) async fn depart(&self) {
        let earlier: Vec<_> = {
            let board = self.flights.lock();
            let flying = self.keys.iter().filter_map(|key| board.flying.get(key));
            flying.cloned().collect()
        };
        let all_landed = async {
            for (mut landing, _) in earlier {
                // A sender that is gone has landed, too.
                let _ = landing.wait_for(Option::is_some).await;
            }
        };
        // Not waiting any longer costs a read, no more.
        let _ = timeout(SPACING, all_landed).await;
        let mut board = self.flights.lock();
        for key in &self.keys {
            if let Some(notice) = board.boarding.remove(key) {
                board.flying.insert(key.clone(), notice);
            }
        }
    }

    /// Shares what was read, in the order of [`Self::keys`]. An error is shared
    /// only if it cannot be about another key than the one that was joined.
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
        let mut board = self.flights.lock();
        let Board { boarding, flying } = &mut *board;
        for key in &self.keys {
            for flights in [&mut *boarding, &mut *flying] {
                let is_ours = |(_, is_joined): &Notice| Arc::ptr_eq(is_joined, &self.is_joined);
                if flights.get(key).is_some_and(is_ours) {
                    flights.remove(key);
                }
            }
        }
    }
}

impl Seat {
    /// Waits for the record. `None` if the flight was given up.
    pub(super) async fn arrive(mut self) -> Option<Result<Option<Record>, store::Error>> {
        let landing = self.landing.wait_for(Option::is_some).await.ok()?;
        Some(match landing.as_ref()? {
            Ok(found) => Ok(found.get(&self.key)?.clone()),
            Err(error) => Err(error.clone()),
        })
    }
}
