//! The faults of a world: what becomes of a call is a function of the seed, the
//! replica, the call, what it is about, and how many such calls there were.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use account_service::coherence::Sabotage;
use tokio::sync::Notify;

use crate::harness::script::{BESIDE, Chaos, Fate, error_body};

/// How often what happens: of a thousand calls, or in a world.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each says what a world has")]
pub struct Profile {
    pub delayed: u32,
    pub slow_reply: u32,
    pub longest_delay_ms: u64,
    pub cache_refused: u32,
    pub cache_reply_lost: u32,
    pub cache_twice: u32,
    pub cache_cut: u32,
    /// Evictions of what was set, before or after it.
    pub cache_evicted: u32,
    /// Transactions that take long to arrive.
    pub commit_delayed: u32,
    pub table_refused: u32,
    pub table_reply_lost: u32,
    pub table_twice: u32,
    pub table_throttled: u32,
    pub table_unprocessed: u32,
    pub table_conflict: u32,
    /// Of ten worlds, how many have the cache wiped, gone for a while, and
    /// replicas killed.
    pub wipes: u32,
    pub outages: u32,
    pub kills: u32,
    /// Whether times to live are so short that entries expire under way.
    pub expires: bool,
    /// How long readers wait for the cache.
    pub cache_read_timeout_ms: u64,
    /// How long fences live, if not as usual.
    pub fence_ttl_ms: Option<u64>,
    /// How long every other world keeps records, and their absence, if not as
    /// usual.
    pub entry_ttl_ms: Option<u64>,
    /// Whether all operations concern one membership.
    pub is_narrow: bool,
    /// Whether users and organizations are suspended: the records of one check are
    /// then no snapshot.
    pub suspends: bool,
    /// Whether answers must be linearizable, not only fresh.
    pub is_linearizable: bool,
    /// How old every other check's answer may be, at most.
    pub longest_staleness_ms: Option<u64>,
    pub sabotage: Option<Sabotage>,
}

impl Profile {
    /// Everything fails.
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

    /// Calls are late or lost, and nothing worse.
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
            expires: false,
            cache_read_timeout_ms: 50,
            fence_ttl_ms: None,
            entry_ttl_ms: None,
            is_narrow: false,
            suspends: false,
            is_linearizable: true,
            longest_staleness_ms: None,
            sabotage: None,
        }
    }

    /// The same, and half of the checks may be answered from a while ago.
    pub fn remembering() -> Self {
        Self {
            longest_staleness_ms: Some(200),
            is_narrow: true,
            ..Self::lossy()
        }
    }

    /// Calls are late, some of them very late, and entries vanish: what a broken
    /// protocol does not survive.
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

/// Where a replica is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    AfterFence,
    AfterCommit,
    BeforeConfirm,
}

/// Counts the faults of a world.
pub type Tally = Arc<Mutex<BTreeMap<&'static str, usize>>>;

/// Drops an entry of the cache, by its key.
pub type Evict = Arc<dyn Fn(&str) + Send + Sync>;

/// The faults on the way between one replica and the backends.
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
    /// Whether the cache is gone.
    is_cache_gone: Arc<AtomicBool>,
    /// Told when the replica is killed.
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
            died: Notify::new(),
        }
    }

    /// Kills the replica at this point of a write, after so many commits.
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

    /// Whether the replica is to die at this call.
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
        // Mostly short; now and then as long as it may be.
        let longest = Duration::from_millis(self.profile.longest_delay_ms);
        longest.mul_f64(chance.f64().powi(4))
    }
}

#[tonic::async_trait]
impl Chaos for Faults {
    async fn meet(&self, call: &str, about: &str) -> Fate {
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
            return Fate::Served;
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
        return Some(("table throttled", Fate::Answered(400, body)));
    }
    if call == "BatchGetItem" && happens(profile.table_unprocessed) {
        let asked: serde_json::Value = serde_json::from_str(about).unwrap();
        let body = serde_json::json!({
            "Responses": {},
            "UnprocessedKeys": asked["RequestItems"],
        });
        return Some(("table unprocessed", Fate::Answered(200, body.to_string())));
    }
    if call == "TransactWriteItems" && happens(profile.table_conflict) {
        let body = r#"{"__type":"com.amazonaws.dynamodb.v20120810#TransactionCanceledException","Message":"Transaction cancelled","CancellationReasons":[{"Code":"TransactionConflict"}]}"#;
        return Some(("table conflict", Fate::Answered(400, body.to_owned())));
    }
    None
}

/// A cache key without the generation, which is another one in each run.
fn short(keys: &str) -> &str {
    keys.splitn(4, '/').nth(3).unwrap_or(keys)
}
