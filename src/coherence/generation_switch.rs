//! The generation switch: which part of the cache is in use, if any. Lets writes
//! go on without the cache, and empties the cache by moving on to another part.
//!
//! Its state is in one item of the table. A replica acts on what it last read
//! there for no longer than [`Timing::view_ttl`] after it asked, by its own
//! monotonic clock; whoever has waited for [`Timing::settle`] since it learnt of
//! a state knows that nobody acts on an older one any more.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::{Mutex, OnceCell},
    time::{Instant, sleep, sleep_until, timeout},
};
use uuid::Uuid;

use super::{Entry, Tag, Timing};
use crate::{
    cache::{Cache, Keys},
    domain::Key,
    store::{self, Registers},
    telemetry::{CACHE_IN_USE, GENERATION_STEPS},
};

/// Name of the register that holds the switch.
const REGISTER: &str = "cache-generation";
/// Names of its values.
const PHASE: &str = "phase";
const GENERATION: &str = "generation";
/// Times that the register is read or created before somebody who deletes it
/// again and again is given up on.
const MAX_LOADS: u32 = 3;
/// Longest a probe of the cache may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// Probes in a row that the cache has to answer before it is used again.
const PROBES: u32 = 3;

/// What the cache is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reads and writes use the generation.
    On,
    /// Nobody uses the cache.
    Warm,
    /// Writes fence in the generation; reads do not use it yet.
    Ready,
}

impl Phase {
    const ALL: [Self; 3] = [Self::On, Self::Warm, Self::Ready];

    /// Name of the phase, as stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "ON",
            Self::Warm => "WARM",
            Self::Ready => "READY",
        }
    }

    /// The next phase on the way to use.
    fn next(self) -> Self {
        match self {
            Self::Warm => Self::Ready,
            Self::Ready | Self::On => Self::On,
        }
    }
}

/// The part of the cache that belongs to one generation of one deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space(Arc<str>);

impl Space {
    /// Of a deployment's generation.
    #[must_use]
    pub fn new(deployment: &str, generation: &str) -> Self {
        Self(format!("v1/{deployment}/{generation}").into())
    }

    /// The cache key of a record.
    #[must_use]
    pub fn key(&self, key: &Key) -> String {
        self.parts(key).concat()
    }

    /// The cache keys of records.
    pub(super) fn keys(&self, keys: &[Key]) -> Keys {
        let bytes = keys.iter().flat_map(|key| self.parts(key)).map(str::len);
        let mut all = Keys::with_capacity(keys.len(), bytes.sum());
        for key in keys {
            all.push(&self.parts(key));
        }
        all
    }

    fn parts<'a>(&'a self, key: &'a Key) -> [&'a str; 5] {
        let space = &*self.0;
        match key {
            Key::User(username) => [space, "/u/", username.as_str(), "", ""],
            Key::Organization(name) => [space, "/o/", name.as_str(), "", ""],
            Key::Membership(organization, member) => {
                let organization = organization.as_str();
                // No name has a control character: no two keys are alike.
                let separator = if organization.contains('/') {
                    "\n"
                } else {
                    "/"
                };
                [space, "/m/", organization, separator, member.as_str()]
            }
        }
    }

    fn probe_key(&self) -> String {
        format!("{}/probe", self.0)
    }
}

/// What a replica last read of the switch.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) phase: Phase,
    pub(super) space: Space,
    generation: String,
    /// Version of the register: counts the steps of the switch.
    step: u64,
    /// When the register was asked.
    asked: Instant,
    /// When this replica first learnt of this very state.
    learnt: Instant,
}

impl View {
    /// Whether both are of the same state of the switch.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.step, self.phase, &self.generation) == (other.step, other.phase, &other.generation)
    }
}

/// The switch, as this replica sees and moves it.
pub(super) struct Generations {
    registers: Arc<dyn Registers>,
    /// What keeps the entries apart of tables that share a cache, also of a table
    /// and its restored copy. Learnt with the first view.
    deployment: OnceCell<String>,
    timing: Timing,
    view: RwLock<Option<View>>,
    /// Held while the register is read or written, so that views are learnt in
    /// the order in which they were asked for.
    asking: Mutex<()>,
}

impl Generations {
    pub(super) fn new(registers: Arc<dyn Registers>, timing: Timing) -> Self {
        Self {
            registers,
            deployment: OnceCell::new(),
            timing,
            view: RwLock::default(),
            asking: Mutex::default(),
        }
    }

    /// The part of the cache that reads may use now.
    pub(super) fn in_use(&self) -> Option<Space> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let view = view.as_ref().filter(|view| self.is_valid(view))?;
        (view.phase == Phase::On).then(|| view.space.clone())
    }

    /// What the switch is, as far as this replica may rely on it.
    pub(super) async fn view(&self) -> Result<View, store::Error> {
        match self.known() {
            Some(view) => Ok(view),
            None => self.refresh().await,
        }
    }

    /// When nobody acts any more on what the switch was before this view.
    pub(super) fn settled_at(&self, view: &View) -> Instant {
        view.learnt + self.timing.settle()
    }

    /// Leaves the cache: the next generation is an empty one.
    pub(super) async fn leave(&self, from: &View) -> Result<View, store::Error> {
        let view = self.step(from, Phase::Warm, new_generation()).await?;
        if view.phase == Phase::Warm {
            tracing::warn!(generation = view.generation, "the cache is left");
        }
        Ok(view)
    }

    /// Reads the switch.
    pub(super) async fn refresh(&self) -> Result<View, store::Error> {
        let wanted = Instant::now();
        let _asking = self.asking.lock().await;
        match self.known() {
            Some(view) if view.asked >= wanted => Ok(view),
            _ => self.load().await,
        }
    }

    /// Keeps the view fresh, and moves the switch towards use once the cache
    /// answers. Never ends.
    pub(super) async fn keep(&self, cache: &dyn Cache) {
        let mut answered = 0;
        loop {
            sleep(self.timing.view_refresh()).await;
            let view = match timeout(self.timing.view_ttl, self.refresh()).await {
                Ok(Ok(view)) => view,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the generation switch cannot be read");
                    self.tell_use();
                    continue;
                }
                Err(_) => {
                    self.tell_use();
                    continue;
                }
            };
            if view.phase == Phase::On {
                answered = 0;
                continue;
            }
            answered = if probe(cache, &view.space).await {
                answered + 1
            } else {
                0
            };
            if answered >= PROBES && Instant::now() >= self.settled_at(&view) {
                self.advance(&view).await;
            }
        }
    }

    /// Leaves the cache and moves on until an empty generation is in use, as far
    /// as other replicas do not do it before.
    pub(super) async fn renew(&self) -> Result<(), store::Error> {
        let mut view = self.refresh().await?;
        // A generation that is not in use yet is empty.
        let used = (view.phase == Phase::On).then(|| view.generation.clone());
        loop {
            view = if used.as_ref() == Some(&view.generation) {
                self.leave(&view).await?
            } else if view.phase == Phase::On {
                return Ok(());
            } else {
                sleep_until(self.settled_at(&view)).await;
                let generation = view.generation.clone();
                self.step(&view, view.phase.next(), generation).await?
            };
        }
    }

    /// Puts the switch of a table that nobody uses yet straight into use.
    pub(super) async fn begin(&self) -> Result<(), store::Error> {
        let values = values(Phase::On, &new_generation());
        let begun = self.registers.swap_register(REGISTER, None, &values).await;
        begun.map(drop)
    }

    async fn advance(&self, view: &View) {
        let next = view.phase.next();
        match self.step(view, next, view.generation.clone()).await {
            Ok(view) => tracing::info!(
                generation = view.generation,
                phase = view.phase.as_str(),
                "the cache answers"
            ),
            Err(error) => tracing::warn!(%error, "the generation switch cannot be moved"),
        }
    }

    fn is_valid(&self, view: &View) -> bool {
        Instant::now() < view.asked + self.timing.view_ttl
    }

    fn known(&self) -> Option<View> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.as_ref().filter(|view| self.is_valid(view)).cloned()
    }

    /// Moves the switch, unless it is no longer as it was; returns what it is.
    async fn step(
        &self,
        from: &View,
        phase: Phase,
        generation: String,
    ) -> Result<View, store::Error> {
        let _asking = self.asking.lock().await;
        if let Some(known) = self.known()
            && !known.is_same(from)
        {
            return Ok(known);
        }
        let asked = Instant::now();
        let values = values(phase, &generation);
        let swap = self
            .registers
            .swap_register(REGISTER, Some(from.step), &values);
        if let Some(step) = swap.await? {
            return self.learn(phase, generation, step, asked).await;
        }
        self.load().await
    }

    async fn load(&self) -> Result<View, store::Error> {
        for _ in 0..MAX_LOADS {
            let asked = Instant::now();
            if let Some(register) = self.registers.read_register(REGISTER).await? {
                let (phase, generation) = parse(&register.values).ok_or_else(malformed)?;
                return self.learn(phase, generation, register.version, asked).await;
            }
            // Other replicas may still use a generation that a register, since
            // deleted, had named: begin as after an outage.
            let values = values(Phase::Warm, &new_generation());
            let begin = self.registers.swap_register(REGISTER, None, &values);
            begin.await?;
        }
        Err(malformed())
    }

    async fn learn(
        &self,
        phase: Phase,
        generation: String,
        step: u64,
        asked: Instant,
    ) -> Result<View, store::Error> {
        let deployment = self
            .deployment
            .get_or_try_init(|| self.registers.table_identity())
            .await?;
        let mut new = View {
            phase,
            space: Space::new(deployment, &generation),
            generation,
            step,
            asked,
            learnt: Instant::now(),
        };
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = view.as_ref().filter(|old| old.is_same(&new)) {
            new.learnt = old.learnt;
        } else {
            metrics::counter!(GENERATION_STEPS, "phase" => phase.as_str()).increment(1);
        }
        *view = Some(new.clone());
        drop(view);
        self.tell_use();
        Ok(new)
    }

    fn tell_use(&self) {
        let is_in_use = u32::from(self.in_use().is_some());
        metrics::gauge!(CACHE_IN_USE).set(is_in_use);
    }
}

/// A name that no generation had before.
fn new_generation() -> String {
    Uuid::new_v4().simple().to_string()
}

fn values(phase: Phase, generation: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (PHASE.to_owned(), phase.as_str().to_owned()),
        (GENERATION.to_owned(), generation.to_owned()),
    ])
}

fn parse(values: &BTreeMap<String, String>) -> Option<(Phase, String)> {
    let phase = values.get(PHASE)?;
    let phase = Phase::ALL.into_iter().find(|it| it.as_str() == phase)?;
    let generation = values.get(GENERATION).filter(|name| !name.is_empty())?;
    Some((phase, generation.clone()))
}

fn malformed() -> store::Error {
    store::Error::new(
        store::Kind::Malformed,
        format!("register {REGISTER} is not as this service writes it"),
    )
}

/// Whether the cache stores what writers would store.
async fn probe(cache: &dyn Cache, space: &Space) -> bool {
    let key = space.probe_key();
    let fence = Entry::new(Tag::Fence).encode(&key);
    let stored = cache.set_if_not_equal(&key, &fence, PROBE_TIMEOUT);
    matches!(timeout(PROBE_TIMEOUT, stored).await, Ok(Ok(true)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;

    use async_trait::async_trait;

    use super::*;
    use crate::{cache, store::Register};

    /// Registers whose replies take their time, and that remember each write.
    #[derive(Default)]
    struct SlowRegisters {
        reply_takes: Duration,
        held: StdMutex<Option<Register>>,
        writes: StdMutex<Vec<(Phase, Instant)>>,
    }

    impl SlowRegisters {
        /// The writes, which have left the cache once and come back.
        fn once_round(&self) -> Vec<(Phase, Instant)> {
            let writes = self.writes.lock().unwrap().clone();
            let phases: Vec<_> = writes.iter().map(|(phase, _)| *phase).collect();
            assert_eq!(phases, [Phase::On, Phase::Warm, Phase::Ready, Phase::On]);
            writes
        }
    }

    #[async_trait]
    impl Registers for SlowRegisters {
        async fn table_identity(&self) -> Result<String, store::Error> {
            Ok("table".to_owned())
        }

        async fn read_register(&self, _: &str) -> Result<Option<Register>, store::Error> {
            let held = self.held.lock().unwrap().clone();
            sleep(self.reply_takes).await;
            Ok(held)
        }

        async fn swap_register(
            &self,
            _: &str,
            found: Option<u64>,
            values: &BTreeMap<String, String>,
        ) -> Result<Option<u64>, store::Error> {
            let version = {
                let mut held = self.held.lock().unwrap();
                let is_found = held.as_ref().map(|register| register.version) == found;
                is_found.then(|| {
                    let version = found.unwrap_or(0) + 1;
                    *held = Some(Register {
                        version,
                        values: values.clone(),
                    });
                    let (phase, _) = parse(values).unwrap();
                    self.writes.lock().unwrap().push((phase, Instant::now()));
                    version
                })
            };
            sleep(self.reply_takes).await;
            Ok(version)
        }
    }

    const TAKES: Duration = Duration::from_millis(300);

    fn slow() -> (Arc<SlowRegisters>, Generations) {
        let registers = Arc::new(SlowRegisters {
            reply_takes: TAKES,
            ..SlowRegisters::default()
        });
        let generations = Generations::new(registers.clone(), Timing::default());
        (registers, generations)
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_is_good_for_its_time_counted_from_the_question() {
        let (_, generations) = slow();
        generations.begin().await.unwrap();
        let asked = Instant::now();
        generations.refresh().await.unwrap();
        assert_eq!(asked.elapsed(), TAKES);
        let good_until = asked + Timing::default().view_ttl;
        sleep_until(good_until - Duration::from_millis(1)).await;
        assert!(generations.in_use().is_some());
        sleep_until(good_until).await;
        assert!(generations.in_use().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_switch_goes_through_ready_and_waits_before_each_step() {
        let (registers, generations) = slow();
        generations.begin().await.unwrap();
        let before = generations.refresh().await.unwrap();
        generations.renew().await.unwrap();
        let writes = registers.once_round();
        for steps in writes[1..].windows(2) {
            // Since the reply to the write before: then it was learnt.
            let waited = steps[1].1 - steps[0].1;
            assert_eq!(waited, TAKES + Timing::default().settle());
        }
        assert!(generations.in_use().is_some());
        assert_ne!(generations.in_use(), Some(before.space));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_also_where_the_cache_was_left_before() {
        let (registers, generations) = slow();
        generations.begin().await.unwrap();
        let view = generations.refresh().await.unwrap();
        generations.leave(&view).await.unwrap();
        let another = Generations::new(registers.clone(), Timing::default());
        let (first, second) = tokio::join!(generations.renew(), another.renew());
        first.unwrap();
        second.unwrap();
        registers.once_round();
    }

    /// A cache that stores whatever it is told.
    struct Answering;

    #[async_trait]
    impl Cache for Answering {
        async fn get(&self, keys: &Keys) -> Result<Vec<cache::Found>, cache::Error> {
            Ok(keys.iter().map(|_| cache::Found::Miss).collect())
        }

        async fn set_if_absent(
            &self,
            _: &str,
            _: &[u8],
            _: Duration,
        ) -> Result<bool, cache::Error> {
            Ok(true)
        }

        async fn set_if_equal(
            &self,
            _: &str,
            _: &[u8],
            _: &[u8],
            _: Duration,
        ) -> Result<bool, cache::Error> {
            Ok(true)
        }

        async fn set_if_not_equal(
            &self,
            _: &str,
            _: &[u8],
            _: Duration,
        ) -> Result<bool, cache::Error> {
            Ok(true)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cache_that_answers_again_is_used_only_after_both_waits() {
        let (registers, generations) = slow();
        generations.begin().await.unwrap();
        let view = generations.refresh().await.unwrap();
        generations.leave(&view).await.unwrap();
        let keep = generations.keep(&Answering);
        let _ = timeout(Duration::from_secs(60), keep).await;
        let writes = registers.once_round();
        for steps in writes[1..].windows(2) {
            let waited = steps[1].1 - steps[0].1;
            assert!(waited >= Timing::default().settle(), "{waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn views_outlive_no_wait_for_them() {
        let timing = Timing::default();
        assert!(timing.settle() > timing.view_ttl);
        let (_, generations) = slow();
        generations.begin().await.unwrap();
        let view = generations.refresh().await.unwrap();
        let left = generations.leave(&view).await.unwrap();
        assert_eq!(
            generations.settled_at(&left),
            Instant::now() + timing.settle()
        );
        sleep(Duration::from_millis(100)).await;
        // Seeing the same state again does not begin the wait anew.
        let again = generations.refresh().await.unwrap();
        assert_eq!(
            generations.settled_at(&again),
            generations.settled_at(&left)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn in_warm_and_ready_reads_do_not_use_the_cache() {
        let (_, generations) = slow();
        // There is no switch yet: it begins as after an outage.
        let mut view = generations.refresh().await.unwrap();
        for phase in [Phase::Warm, Phase::Ready] {
            assert_eq!(view.phase, phase);
            assert!(generations.in_use().is_none());
            view = generations
                .step(&view, phase.next(), view.generation.clone())
                .await
                .unwrap();
        }
        assert!(generations.in_use().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_switch_that_another_replica_has_moved_is_not_moved_again() {
        let (registers, generations) = slow();
        generations.begin().await.unwrap();
        let other = Generations::new(registers.clone(), Timing::default());
        let view = generations.refresh().await.unwrap();
        let theirs = other.refresh().await.unwrap();
        let left = other.leave(&theirs).await.unwrap();
        let seen = generations.leave(&view).await.unwrap();
        assert!(seen.is_same(&left));
        assert_eq!(registers.writes.lock().unwrap().len(), 2);
    }
}
