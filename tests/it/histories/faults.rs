//! The faults of a world. The fate of a backend call is a function of the seed, the
//! replica, the call, its text, and the number of such calls so far.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::harness::script::{BESIDE, Chaos, Fate, error_body};

/// The frequencies of faults, mostly per thousand calls.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a property of a world"
)]
pub struct Profile {
    pub delayed: u32,
    pub slow_reply: u32,
    pub longest_delay_ms: u64,
    pub cache_refused: u32,
    pub cache_reply_lost: u32,
    pub cache_twice: u32,
    pub cache_cut: u32,
    /// Evictions of an entry, before or after it is set.
    pub cache_evicted: u32,
    /// Transactions that arrive late.
    pub commit_delayed: u32,
    pub table_refused: u32,
    pub table_reply_lost: u32,
    pub table_twice: u32,
    pub table_throttled: u32,
    pub table_unprocessed: u32,
    pub table_conflict: u32,
    /// Chances out of ten, at each occasion: the cache is wiped, the cache is
    /// unreachable for a while, the replica is killed, the replica is replaced as in a rolling
    /// restart.
    pub wipes: u32,
    pub outages: u32,
    pub kills: u32,
    pub restarts: u32,
    /// Whether times to live are so short that entries expire during operations.
    pub expires: bool,
    /// How long readers wait for the cache.
    pub cache_read_timeout_ms: u64,
    /// The time to live of fences, if it is not the default.
    pub fence_ttl_ms: Option<u64>,
    /// The time to live of records, and of their absence, in every other world, if it is
    /// not the default.
    pub entry_ttl_ms: Option<u64>,
    /// Whether all operations concern one membership.
    pub is_narrow: bool,
    /// Whether users and organizations are suspended. The records of a check are then no
    /// snapshot.
    pub suspends: bool,
    /// Whether histories must be linearizable, and not only free of stale responses.
    pub is_linearizable: bool,
    /// The longest staleness that half of the reads accept.
    pub longest_staleness_ms: Option<u64>,
    /// Whether replicas have near caches.
    pub is_near: bool,
    /// Late reads of registers.
    pub register_delayed: u32,
    /// Chances out of ten, at each occasion: the path to a replica for its peers is interrupted for
    /// a while, with or without its path to the registers; a replica is paused for a while; the
    /// replica directory is deleted.
    pub cuts: u32,
    pub pauses: u32,
    pub directory_losses: u32,
}

impl Profile {
    /// Faults of every kind.
    pub fn hostile() -> Self {
        Self {
            cache_evicted: 40,
            wipes: 5,
            outages: 3,
            kills: 6,
            expires: true,
            fence_ttl_ms: Some(100),
            entry_ttl_ms: Some(200),
            suspends: true,
            is_linearizable: false,
            ..Self::lossy()
        }
    }

    /// Faults of single calls: no evictions, no outages, no killed replicas.
    pub fn lossy() -> Self {
        Self {
            delayed: 150,
            slow_reply: 100,
            longest_delay_ms: 25,
            cache_refused: 15,
            cache_reply_lost: 15,
            cache_twice: 15,
            cache_cut: 20,
            cache_evicted: 0,
            commit_delayed: 0,
            table_refused: 10,
            table_reply_lost: 15,
            table_twice: 15,
            table_throttled: 10,
            table_unprocessed: 20,
            table_conflict: 15,
            wipes: 0,
            outages: 0,
            kills: 0,
            restarts: 0,
            expires: false,
            cache_read_timeout_ms: 50,
            fence_ttl_ms: None,
            entry_ttl_ms: None,
            is_narrow: false,
            suspends: false,
            is_linearizable: true,
            longest_staleness_ms: None,
            is_near: false,
            register_delayed: 0,
            cuts: 0,
            pauses: 0,
            directory_losses: 0,
        }
    }

    /// Faults of every kind, with near caches.
    pub fn near_hostile() -> Self {
        Self {
            is_near: true,
            register_delayed: 100,
            cuts: 2,
            pauses: 1,
            directory_losses: 1,
            wipes: 2,
            outages: 1,
            kills: 3,
            restarts: 3,
            is_narrow: true,
            suspends: false,
            ..Self::hostile()
        }
    }

    /// Near caches, and faults of single calls and of paths between replicas.
    pub fn near_lossy() -> Self {
        Self {
            is_near: true,
            is_narrow: true,
            cuts: 1,
            restarts: 2,
            ..Self::lossy()
        }
    }

    /// Near caches, late calls, and interrupted paths. Broken protocols of near caches fail under
    /// these faults.
    pub fn near_broken() -> Self {
        Self {
            is_near: true,
            register_delayed: 300,
            cuts: 2,
            pauses: 1,
            kills: 2,
            expires: true,
            entry_ttl_ms: None,
            fence_ttl_ms: None,
            ..Self::evicting()
        }
    }

    /// As [`Self::near_broken`], and paths are interrupted most of the time: a replica that serves on
    /// an expired view fails.
    pub fn near_cut() -> Self {
        Self {
            cuts: 7,
            pauses: 0,
            kills: 0,
            ..Self::near_broken()
        }
    }

    /// As [`Self::near_broken`], and holds end while their writes are running.
    pub fn near_expiring() -> Self {
        Self {
            fence_ttl_ms: Some(10),
            ..Self::near_broken()
        }
    }

    /// As [`Self::lossy`], and half of the checks accept a stale response.
    pub fn remembering() -> Self {
        Self {
            longest_staleness_ms: Some(200),
            is_narrow: true,
            ..Self::lossy()
        }
    }

    /// Calls are late, some of them very late, and entries are evicted. Broken protocols
    /// fail under these faults.
    pub fn evicting() -> Self {
        Self {
            delayed: 300,
            slow_reply: 300,
            longest_delay_ms: 150,
            cache_refused: 0,
            cache_reply_lost: 0,
            cache_evicted: 20,
            commit_delayed: 300,
            fence_ttl_ms: Some(10),
            entry_ttl_ms: Some(25),
            cache_read_timeout_ms: 1000,
            is_narrow: true,
            is_linearizable: false,
            ..Self::lossy()
        }
    }
}

/// The point of a write at which a replica is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    AfterFence,
    AfterCommit,
    BeforeConfirm,
}

/// Counts the faults of a world.
pub type Tally = Arc<Mutex<BTreeMap<&'static str, usize>>>;

/// Evicts an entry of the cache, by its key.
pub type Evict = Arc<dyn Fn(&str) + Send + Sync>;

/// The faults between one replica and the backends.
pub struct Faults {
    seed: u64,
    replica: usize,
    profile: Profile,
    tally: Tally,
    evict: Evict,
    nth: Mutex<HashMap<u64, u64>>,
    kill: Mutex<Option<(Kill, usize)>>,
    has_committed: AtomicBool,
    is_dead: AtomicBool,
    /// Whether the cache is unreachable.
    is_cache_gone: Arc<AtomicBool>,
    /// Whether the registers are unreachable for this replica.
    pub are_registers_gone: AtomicBool,
    /// Notified when the replica is killed.
    pub died: Notify,
}

impl Faults {
    pub fn new(
        seed: u64,
        replica: usize,
        profile: Profile,
        tally: Tally,
        evict: Evict,
        is_cache_gone: Arc<AtomicBool>,
    ) -> Self {
        Self {
            seed,
            replica,
            profile,
            tally,
            evict,
            nth: Mutex::default(),
            kill: Mutex::default(),
            has_committed: AtomicBool::new(false),
            is_dead: AtomicBool::new(false),
            is_cache_gone,
            are_registers_gone: AtomicBool::new(false),
            died: Notify::new(),
        }
    }

    /// Kills the replica at this point of a write, after `after` writes have passed it.
    pub fn kill_at(&self, kill: Kill, after: usize) {
        *self.kill.lock().unwrap() = Some((kill, after));
    }

    fn count(&self, fault: &'static str) {
        *self.tally.lock().unwrap().entry(fault).or_default() += 1;
    }

    fn chance(&self, call: &str, about: &str) -> fastrand::Rng {
        let mut hasher = DefaultHasher::new();
        (self.seed, self.replica, call, about).hash(&mut hasher);
        let which = hasher.finish();
        let mut nth = self.nth.lock().unwrap();
        let nth = nth.entry(which).or_default();
        *nth += 1;
        (which, *nth).hash(&mut hasher);
        fastrand::Rng::with_seed(hasher.finish())
    }

    /// The point at which the replica is to be killed, if this call has reached it.
    fn dies_at(&self, call: &str) -> Option<Kill> {
        let mut kill = self.kill.lock().unwrap();
        let (point, after) = kill.as_mut()?;
        let is_there = match point {
            Kill::AfterFence | Kill::AfterCommit => call == "TransactWriteItems",
            Kill::BeforeConfirm => {
                call == "SetIf" && self.has_committed.swap(false, Ordering::SeqCst)
            }
        };
        if !is_there {
            return None;
        }
        if *after > 0 {
            *after -= 1;
            return None;
        }
        kill.take().map(|(point, _)| point)
    }

    fn die(&self, kill: Kill) {
        self.is_dead.store(true, Ordering::SeqCst);
        self.count(match kill {
            Kill::AfterFence => "killed after fence",
            Kill::AfterCommit => "killed after commit",
            Kill::BeforeConfirm => "killed before confirm",
        });
        self.died.notify_one();
    }

    fn delay(&self, chance: &mut fastrand::Rng) -> Duration {
        // Mostly short, and sometimes close to the longest.
        let longest = Duration::from_millis(self.profile.longest_delay_ms);
        longest.mul_f64(chance.f64().powi(4))
    }
}

#[tonic::async_trait]
impl Chaos for Faults {
    async fn on_call(&self, call: &str, about: &str) -> Fate {
        if self.is_dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if about == "probe" || call == "DescribeTable" {
            // A replica does not start without cache and table.
            return Fate::Served;
        }
        let is_cache = matches!(call, "Get" | "GetBatch" | "SetIf") || call == "BesideSetIf";
        match self.dies_at(call) {
            Some(Kill::AfterCommit) => {
                self.die(Kill::AfterCommit);
                return Fate::Abandoned;
            }
            Some(kill) => {
                self.die(kill);
                std::future::pending::<()>().await;
            }
            None => {}
        }
        if is_cache && self.is_cache_gone.load(Ordering::SeqCst) {
            self.count("cache gone");
            return Fate::Refused;
        }
        if call.starts_with(BESIDE) {
            return self.register_fault(call, about).await;
        }
        let mut chance = self.chance(call, if is_cache { short(about) } else { "" });
        let mut happens = |permille: u32| chance.u32(0..1000) < permille;
        let profile = &self.profile;
        let is_delayed = happens(profile.delayed);
        let fault = if is_cache {
            self.cache_fault(call, &mut happens)
        } else {
            table_fault(profile, call, about, &mut happens)
        };
        let (evicts_before, evicts_after) = (
            call == "SetIf" && happens(profile.cache_evicted),
            call == "SetIf" && happens(profile.cache_evicted),
        );
        let is_late_commit = call == "TransactWriteItems" && happens(profile.commit_delayed);
        if is_late_commit {
            self.count("commit delayed");
            tokio::time::sleep(Duration::from_millis(profile.longest_delay_ms / 4)).await;
        }
        if is_delayed {
            self.count("delayed");
            let delay = self.delay(&mut chance);
            tokio::time::sleep(delay).await;
            if self.is_dead.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        }
        if evicts_before {
            self.count("evicted");
            about.split(' ').for_each(|key| (self.evict)(key));
        }
        if evicts_after {
            self.count("evicted");
            let (evict, keys) = (self.evict.clone(), about.to_owned());
            let delay = self.delay(&mut chance);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                keys.split(' ').for_each(|key| evict(key));
            });
        }
        if call == "TransactWriteItems" && !matches!(fault, Some(("table refused", _))) {
            self.has_committed.store(true, Ordering::SeqCst);
        }
        match fault {
            Some((name, fate)) => {
                self.count(name);
                fate
            }
            None if chance.u32(0..1000) < profile.slow_reply => {
                self.count("slow reply");
                Fate::Slow(self.delay(&mut chance))
            }
            None => Fate::Served,
        }
    }
}

impl Faults {
    async fn register_fault(&self, call: &str, about: &str) -> Fate {
        const LONGEST_DELAY_MS: u64 = 300;
        if self.are_registers_gone.load(Ordering::SeqCst) {
            return Fate::Refused;
        }
        let mut chance = self.chance(call, about);
        if call == "BesideGetItem" && chance.u32(0..1000) < self.profile.register_delayed {
            self.count("register delayed");
            let delay = Duration::from_millis(chance.u64(..LONGEST_DELAY_MS));
            tokio::time::sleep(delay).await;
        }
        Fate::Served
    }

    fn cache_fault(
        &self,
        call: &str,
        happens: &mut impl FnMut(u32) -> bool,
    ) -> Option<(&'static str, Fate)> {
        let profile = &self.profile;
        if happens(profile.cache_refused) {
            return Some(("cache refused", Fate::Refused));
        }
        if happens(profile.cache_reply_lost) {
            return Some(("cache reply lost", Fate::Unanswered));
        }
        if happens(profile.cache_twice) {
            return Some(("cache served twice", Fate::ServedTwice));
        }
        (call == "GetBatch" && happens(profile.cache_cut)).then_some(("cache cut", Fate::Cut(1)))
    }
}

/// The faults of DynamoDB.
fn table_fault(
    profile: &Profile,
    call: &str,
    about: &str,
    happens: &mut impl FnMut(u32) -> bool,
) -> Option<(&'static str, Fate)> {
    if happens(profile.table_refused) {
        return Some(("table refused", Fate::Refused));
    }
    if happens(profile.table_reply_lost) {
        return Some(("table reply lost", Fate::Unanswered));
    }
    if happens(profile.table_twice) {
        return Some(("table served twice", Fate::ServedTwice));
    }
    if happens(profile.table_throttled) {
        let body = error_body("ProvisionedThroughputExceededException");
        return Some(("table throttled", Fate::Responded(400, body)));
    }
    if call == "BatchGetItem" && happens(profile.table_unprocessed) {
        let request: serde_json::Value = serde_json::from_str(about).unwrap();
        let body = serde_json::json!({
            "Responses": {},
            "UnprocessedKeys": request["RequestItems"],
        });
        return Some(("table unprocessed", Fate::Responded(200, body.to_string())));
    }
    if call == "TransactWriteItems" && happens(profile.table_conflict) {
        let body = r#"{"__type":"com.amazonaws.dynamodb.v20120810#TransactionCanceledException","Message":"Transaction cancelled","CancellationReasons":[{"Code":"TransactionConflict"}]}"#;
        return Some(("table conflict", Fate::Responded(400, body.to_owned())));
    }
    None
}

/// A cache key without the generation, which differs in each run.
fn short(keys: &str) -> &str {
    keys.splitn(4, '/').nth(3).unwrap_or(keys)
}
