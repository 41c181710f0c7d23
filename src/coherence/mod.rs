//! Keeps the cache honest: reads by lease, writes by fence and confirm. A read
//! that starts after a write was acknowledged returns that write or a later one.

mod envelope;
mod reads;
mod writes;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio_util::task::TaskTracker;

pub use envelope::{Entry, Nonce, Tag};
pub use reads::{Answer, Freshness, Source};
pub use writes::{Change, Plan, Verdict, WriteError};

use crate::{cache::Cache, domain::Key, store::Store};

/// How long a fence keeps readers from filling. Commits start within
/// [`FENCE_MAX_AGE`] of their fences and end within the store's operation
/// timeout, together well before a fence expires.
const FENCE_TTL: Duration = Duration::from_secs(5);
/// How old a fence may be when the commit starts.
const FENCE_MAX_AGE: Duration = Duration::from_secs(1);
/// How long a reader has to read the table and fill.
const LEASE_TTL: Duration = Duration::from_secs(2);
/// Added to an entry's time to live for its greatest believed age: covers the
/// time between reading the table and storing the entry.
const AGE_SLACK: Duration = Duration::from_secs(1);
/// Times to live vary by up to this share either way, so that entries filled
/// together do not expire together.
const TTL_JITTER_PERCENT: u32 = 10;
/// Background work of all requests together; what exceeds it is left out (fills)
/// or refused (writes).
const MAX_BACKGROUND_TASKS: usize = 10_000;

/// The numbers to tune.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Longest a read may wait for the cache before it goes to the table.
    pub cache_read_timeout: Duration,
    /// How long the cache keeps a membership.
    pub membership_ttl: Duration,
    /// How long the cache keeps a user or an organization.
    pub profile_ttl: Duration,
    /// How long the cache keeps the knowledge that there is no such record.
    pub absent_ttl: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cache_read_timeout: Duration::from_millis(50),
            membership_ttl: Duration::from_secs(60),
            profile_ttl: Duration::from_secs(300),
            absent_ttl: Duration::from_secs(10),
        }
    }
}

/// The table with the cache in front of it.
#[derive(Clone)]
pub struct Coherence {
    cache: Arc<dyn Cache>,
    store: Arc<dyn Store>,
    namespace: Arc<str>,
    settings: Settings,
    background: TaskTracker,
    /// Whether the last read from the cache failed.
    is_cache_failing: Arc<AtomicBool>,
}

impl Coherence {
    /// Puts `cache` in front of `store`. Entries are shared with every other
    /// process that uses the same `deployment`, and with no other: it has to
    /// identify the table.
    #[must_use]
    pub fn new(
        cache: Arc<dyn Cache>,
        store: Arc<dyn Store>,
        deployment: &str,
        settings: Settings,
    ) -> Self {
        const GENERATION: u32 = 0;
        Self {
            cache,
            store,
            namespace: format!("v1/{deployment}/{GENERATION}").into(),
            settings,
            background: TaskTracker::new(),
            is_cache_failing: Arc::default(),
        }
    }

    /// Waits until no write, fill or repair is under way.
    pub async fn drain(&self) {
        self.background.close();
        self.background.wait().await;
        self.background.reopen();
    }

    fn has_room_in_background(&self) -> bool {
        self.background.len() < MAX_BACKGROUND_TASKS
    }

    fn cache_key(&self, key: &Key) -> String {
        let space = &self.namespace;
        match key {
            Key::User(username) => format!("{space}/u/{username}"),
            Key::Organization(name) => format!("{space}/o/{name}"),
            Key::Membership(organization, member) => format!("{space}/m/{organization}/{member}"),
        }
    }

    /// How long the cache keeps what the table says of `key`.
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
