//! The coherent cache: reads fill it under a lease, writes fence and confirm. A read that
//! starts after a write was acknowledged returns that write or a later one.

mod circuit_breaker;
mod entry;
mod fault_injection;
mod fencing;
mod generation_switch;
mod invalidator;
mod local_cache;
mod namespace;
mod projection;
mod read_path;
mod settings;
mod single_flight;
mod table_read_limiter;
mod write_path;
mod write_queues;

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::task::TaskTracker;

pub use self::{
    entry::{Entry, Nonce, Tag},
    fault_injection::Sabotage,
    invalidator::{Invalidator, LogHead},
    local_cache::MAX_STALENESS,
    namespace::Namespace,
    projection::Projection,
    read_path::{Answer, Freshness, Source},
    settings::{CoherenceSettings, InvalidatorTiming, Timing},
    write_path::{Change, HeldPermit, Plan, Verdict, WriteError},
};

use self::{
    circuit_breaker::CircuitBreakers, generation_switch::GenerationSwitch, projection::LocalCaches,
    single_flight::SingleFlight, table_read_limiter::TableReadLimiter, write_queues::WriteQueues,
};
use crate::{
    cache::Cache,
    domain::{Key, Timestamp},
    store::{self, Registers, Store, StrongReads},
};

/// Leaves the cache and moves on to an empty part of it; returns once that is in
/// use. Meanwhile reads go to the table.
///
/// # Errors
/// The table does not let the switch be read or moved.
pub async fn renew_generation(registers: Arc<dyn Registers>) -> Result<(), store::Error> {
    switch(registers).renew().await
}

/// Puts the cache into use for a table that was just created.
///
/// # Errors
/// The table does not let the switch be written.
pub async fn begin_generation(registers: Arc<dyn Registers>) -> Result<(), store::Error> {
    switch(registers).begin().await
}

/// The switch, for commands that do not use the cache.
fn switch(registers: Arc<dyn Registers>) -> GenerationSwitch {
    GenerationSwitch::new(registers, Timing::default())
}

/// Added to an entry's time to live for its greatest accepted age. It covers the time
/// between the table read and the fill.
const AGE_SLACK: Duration = Duration::from_secs(1);
/// Variation of times to live, in percent either way, so that entries that were filled
/// together do not expire together.
const TTL_JITTER_PERCENT: u32 = 10;
/// Most background tasks. Beyond them, fills are skipped and writes are rejected.
const MAX_BACKGROUND_TASKS: usize = 10_000;

/// Long look-ups at once.
const MAX_LONG_LOOKUPS: usize = 4;

/// The table, and the cache in front of it.
#[derive(Clone)]
pub struct Coherence {
    cache: Arc<dyn Cache>,
    store: Arc<dyn Store>,
    generation_switch: Arc<GenerationSwitch>,
    single_flight: Arc<SingleFlight>,
    local_caches: Arc<LocalCaches>,
    circuit_breakers: Arc<CircuitBreakers>,
    long_lookups: Arc<Semaphore>,
    table_read_limiter: Arc<TableReadLimiter>,
    write_queues: Arc<WriteQueues>,
    settings: CoherenceSettings,
    background: TaskTracker,
}

impl Coherence {
    /// Puts `cache` in front of `store`. Entries are shared with every other
    /// process that uses the same cache and table, and with no other. Uses the
    /// cache only while [`Self::run_generation_switch`] runs. Does no I/O.
    #[must_use]
    pub fn new(
        cache: Arc<dyn Cache>,
        store: Arc<dyn Store>,
        registers: Arc<dyn Registers>,
        settings: CoherenceSettings,
    ) -> Self {
        let generation_switch = GenerationSwitch::new(registers, settings.timing);
        Self {
            cache,
            store,
            generation_switch: Arc::new(generation_switch),
            single_flight: Arc::default(),
            local_caches: Arc::default(),
            circuit_breakers: Arc::new(CircuitBreakers::new(settings.cache_failures)),
            long_lookups: Arc::new(Semaphore::new(MAX_LONG_LOOKUPS)),
            table_read_limiter: Arc::new(TableReadLimiter::new(settings.table_reads_at_once)),
            write_queues: Arc::default(),
            settings,
            background: TaskTracker::new(),
        }
    }

    /// Strong reads of the table, without the cache.
    #[must_use]
    pub fn table(&self) -> &dyn StrongReads {
        self.store.as_ref()
    }

    /// Reads the generation switch.
    ///
    /// # Errors
    /// The table does not say.
    pub async fn learn_generation(&self) -> Result<(), store::Error> {
        self.generation_switch.refresh().await.map(drop)
    }

    /// Runs the generation switch: refreshes its view, and brings an empty generation into
    /// use once a cache that was taken out of use responds again. Never ends.
    pub async fn run_generation_switch(&self) {
        self.generation_switch.run(self.cache.as_ref()).await;
    }

    /// Ensures that no read returns these records from entries that the cache holds now.
    /// `false` if that was not possible by the deadline.
    pub async fn invalidate(&self, keys: &[Key], deadline: Instant) -> bool {
        self.confirm(keys, None, deadline).await.is_some()
    }

    /// Waits for the permit of one request to the table, see
    /// [`CoherenceSettings::table_reads_at_once`]. The request ends when the permit is dropped.
    ///
    /// # Errors
    /// [`store::ErrorKind::Crowded`]: too many wait already, or it took too long.
    pub async fn table_read(&self) -> Result<impl Sized + use<'_>, store::Error> {
        self.table_read_limiter.acquire(1).await
    }

    /// Waits until no write, fill or repair is running.
    pub async fn drain(&self) {
        self.background.close();
        self.background.wait().await;
        self.background.reopen();
    }

    fn has_room_in_background(&self) -> bool {
        self.background.len() < MAX_BACKGROUND_TASKS
    }

    fn now(&self) -> Timestamp {
        (self.settings.wall_clock)()
    }

    /// Time to live of the entry of `key`.
    fn ttl(&self, key: &Key, is_present: bool) -> Duration {
        match (key, is_present) {
            (_, false) => self.settings.absent_ttl,
            (Key::Membership(..), true) => self.settings.membership_ttl,
            (Key::User(_) | Key::Organization(_), true) => self.settings.profile_ttl,
        }
    }

    /// The age beyond which an entry is not believed, should the cache keep it
    /// for longer than it was told.
    fn max_age(&self, key: &Key, is_present: bool) -> Duration {
        let longest_ttl = self.ttl(key, is_present) * (100 + TTL_JITTER_PERCENT) / 100;
        longest_ttl + AGE_SLACK
    }
}

/// `ttl` with jitter drawn from the entry's own nonce.
fn jittered(ttl: Duration, nonce: Nonce) -> Duration {
    let share = u32::from(nonce.jitter()) * 2 * TTL_JITTER_PERCENT / u32::from(u8::MAX);
    ttl * (100 - TTL_JITTER_PERCENT + share) / 100
}
