//! The generation switch: the generation of cache entries that is in use, if any. It lets
//! writes continue without the cache, and empties the cache by moving on to a new generation.
//!
//! The state of the switch is one item of the table. A replica acts on its view of the item
//! for [`Timing::view_ttl`] from when it sent the read, by its own monotonic clock. A replica
//! that has waited for [`Timing::settle`] since it received a view knows that no replica acts
//! on an older one.

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

use super::{
    entry::{Entry, Tag},
    namespace::Namespace,
    settings::Timing,
};
use crate::{
    cache::Cache,
    store::{self, Registers},
    telemetry::{CACHE_IN_USE, GENERATION_STEPS},
};

/// Name of the register that holds the switch.
const REGISTER: &str = "cache-generation";
/// Names of its values.
const PHASE: &str = "phase";
const GENERATION: &str = "generation";
/// Attempts to read or create the register, in case that it is deleted meanwhile.
const MAX_LOADS: u32 = 3;
/// Longest that a probe of the cache may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// Successful probes in a row before the cache is used again.
const PROBES: u32 = 3;

/// Use of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reads and writes use the generation.
    On,
    /// No replica uses the cache.
    Warm,
    /// Writes fence in the generation. Reads do not use it yet.
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

/// A replica's view of the switch.
#[derive(Debug, Clone)]
pub(super) struct SwitchView {
    pub(super) phase: Phase,
    pub(super) namespace: Namespace,
    generation: String,
    /// Version of the register: counts the steps of the switch.
    step: u64,
    /// When the read of the register was sent.
    asked: Instant,
    /// When this replica first received this very state.
    learned: Instant,
}

impl SwitchView {
    /// Whether both views are of the same state.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.step, self.phase, &self.generation) == (other.step, other.phase, &other.generation)
    }
}

/// The generation switch of a deployment.
pub(super) struct GenerationSwitch {
    registers: Arc<dyn Registers>,
    /// Identity of the table. It keeps tables apart that share a cache, a table and its
    /// restored copy included. Read with the first view.
    deployment: OnceCell<String>,
    timing: Timing,
    view: RwLock<Option<SwitchView>>,
    /// Locked while the register is read or written, so that views are accepted in the
    /// order of their requests.
    register_access: Mutex<()>,
}

impl GenerationSwitch {
    pub(super) fn new(registers: Arc<dyn Registers>, timing: Timing) -> Self {
        Self {
            registers,
            deployment: OnceCell::new(),
            timing,
            view: RwLock::default(),
            register_access: Mutex::default(),
        }
    }

    /// The namespace that reads may use now.
    pub(super) fn in_use(&self) -> Option<Namespace> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let view = view.as_ref().filter(|view| self.is_valid(view))?;
        (view.phase == Phase::On).then(|| view.namespace.clone())
    }

    /// A valid view of the switch.
    pub(super) async fn view(&self) -> Result<SwitchView, store::Error> {
        match self.current() {
            Some(view) => Ok(view),
            None => self.refresh().await,
        }
    }

    /// When no replica acts on an older view than this one.
    pub(super) fn settled_at(&self, view: &SwitchView) -> Instant {
        view.learned + self.timing.settle()
    }

    /// Takes the cache out of use. The next generation is empty.
    pub(super) async fn leave(&self, from: &SwitchView) -> Result<SwitchView, store::Error> {
        let view = self.step(from, Phase::Warm, new_generation()).await?;
        if view.phase == Phase::Warm {
            tracing::warn!(generation = view.generation, "the cache is left");
        }
        Ok(view)
    }

    /// Reads the switch.
    pub(super) async fn refresh(&self) -> Result<SwitchView, store::Error> {
        let wanted = Instant::now();
        let _asking = self.register_access.lock().await;
        match self.current() {
            Some(view) if view.asked >= wanted => Ok(view),
            _ => self.load().await,
        }
    }

    /// Refreshes the view, and brings the cache back into use once it responds. Never ends.
    pub(super) async fn run(&self, cache: &dyn Cache) {
        let mut answered = 0;
        loop {
            sleep(self.timing.view_refresh()).await;
            let view = match timeout(self.timing.view_ttl, self.refresh()).await {
                Ok(Ok(view)) => view,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the generation switch cannot be read");
                    self.set_in_use_gauge();
                    continue;
                }
                Err(_) => {
                    self.set_in_use_gauge();
                    continue;
                }
            };
            if view.phase == Phase::On {
                answered = 0;
                continue;
            }
            answered = if probe(cache, &view.namespace).await {
                answered + 1
            } else {
                0
            };
            if answered >= PROBES && Instant::now() >= self.settled_at(&view) {
                self.advance(&view).await;
            }
        }
    }

    /// Takes the cache out of use, and brings an empty generation into use, unless other
    /// replicas do so first.
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

    /// Creates the switch of a new table, with the cache in use.
    pub(super) async fn begin(&self) -> Result<(), store::Error> {
        let values = values(Phase::On, &new_generation());
        let begun = self.registers.swap_register(REGISTER, None, &values).await;
        begun.map(drop)
    }

    async fn advance(&self, view: &SwitchView) {
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

    fn is_valid(&self, view: &SwitchView) -> bool {
        Instant::now() < view.asked + self.timing.view_ttl
    }

    fn current(&self) -> Option<SwitchView> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.as_ref().filter(|view| self.is_valid(view)).cloned()
    }

    /// Moves the switch from this view. Returns the current view, also if another replica
    /// moved it.
    async fn step(
        &self,
        from: &SwitchView,
        phase: Phase,
        generation: String,
    ) -> Result<SwitchView, store::Error> {
        let _asking = self.register_access.lock().await;
        if let Some(current) = self.current()
            && !current.is_same(from)
        {
            return Ok(current);
        }
        let asked = Instant::now();
        let values = values(phase, &generation);
        let swap = self
            .registers
            .swap_register(REGISTER, Some(from.step), &values);
        if let Some(step) = swap.await? {
            return self.accept(phase, generation, step, asked).await;
        }
        self.load().await
    }

    async fn load(&self) -> Result<SwitchView, store::Error> {
        for _ in 0..MAX_LOADS {
            let asked = Instant::now();
            if let Some(register) = self.registers.read_register(REGISTER).await? {
                let (phase, generation) = parse(&register.values).ok_or_else(malformed)?;
                return self
                    .accept(phase, generation, register.version, asked)
                    .await;
            }
            // Other replicas may still use the generation of a register that was deleted:
            // begin as after an outage.
            let values = values(Phase::Warm, &new_generation());
            let begin = self.registers.swap_register(REGISTER, None, &values);
            begin.await?;
        }
        Err(malformed())
    }

    async fn accept(
        &self,
        phase: Phase,
        generation: String,
        step: u64,
        asked: Instant,
    ) -> Result<SwitchView, store::Error> {
        let deployment = self
            .deployment
            .get_or_try_init(|| self.registers.table_identity())
            .await?;
        let mut new = SwitchView {
            phase,
            namespace: Namespace::new(deployment, &generation),
            generation,
            step,
            asked,
            learned: Instant::now(),
        };
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = view.as_ref().filter(|old| old.is_same(&new)) {
            new.learned = old.learned;
        } else {
            metrics::counter!(GENERATION_STEPS, "phase" => phase.as_str()).increment(1);
        }
        *view = Some(new.clone());
        drop(view);
        self.set_in_use_gauge();
        Ok(new)
    }

    fn set_in_use_gauge(&self) {
        let is_in_use = u32::from(self.in_use().is_some());
        metrics::gauge!(CACHE_IN_USE).set(is_in_use);
    }
}

/// The name of a new generation.
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
        store::ErrorKind::Malformed,
        format!("register {REGISTER} is not as this service writes it"),
    )
}

/// Whether the cache stores a fence.
async fn probe(cache: &dyn Cache, namespace: &Namespace) -> bool {
    let key = namespace.probe_key();
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

    fn slow() -> (Arc<SlowRegisters>, GenerationSwitch) {
        let registers = Arc::new(SlowRegisters {
            reply_takes: TAKES,
            ..SlowRegisters::default()
        });
        let generation_switch = GenerationSwitch::new(registers.clone(), Timing::default());
        (registers, generation_switch)
    }

    /// The same, with a cache that was taken out of use.
    async fn slow_and_left() -> (Arc<SlowRegisters>, GenerationSwitch) {
        let (registers, generation_switch) = slow();
        generation_switch.begin().await.unwrap();
        let view = generation_switch.refresh().await.unwrap();
        generation_switch.leave(&view).await.unwrap();
        (registers, generation_switch)
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_is_good_for_its_time_counted_from_the_question() {
        let (_, generation_switch) = slow();
        generation_switch.begin().await.unwrap();
        let asked = Instant::now();
        generation_switch.refresh().await.unwrap();
        assert_eq!(asked.elapsed(), TAKES);
        let good_until = asked + Timing::default().view_ttl;
        sleep_until(good_until - Duration::from_millis(1)).await;
        assert!(generation_switch.in_use().is_some());
        sleep_until(good_until).await;
        assert!(generation_switch.in_use().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_switch_goes_through_ready_and_waits_before_each_step() {
        let (registers, generation_switch) = slow();
        generation_switch.begin().await.unwrap();
        let before = generation_switch.refresh().await.unwrap();
        generation_switch.renew().await.unwrap();
        let writes = registers.once_round();
        for steps in writes[1..].windows(2) {
            // Since the reply to the write before: then it was learned.
            let waited = steps[1].1 - steps[0].1;
            assert_eq!(waited, TAKES + Timing::default().settle());
        }
        assert!(generation_switch.in_use().is_some());
        assert_ne!(generation_switch.in_use(), Some(before.namespace));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_also_where_the_cache_was_left_before() {
        let (registers, generation_switch) = slow_and_left().await;
        let another = GenerationSwitch::new(registers.clone(), Timing::default());
        let (first, second) = tokio::join!(generation_switch.renew(), another.renew());
        first.unwrap();
        second.unwrap();
        registers.once_round();
    }

    /// A cache that stores whatever it is told.
    struct Answering;

    #[async_trait]
    impl Cache for Answering {
        async fn get(&self, keys: &cache::Keys) -> Result<Vec<cache::Found>, cache::Error> {
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
        let (registers, generation_switch) = slow_and_left().await;
        let keep = generation_switch.run(&Answering);
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
        let (_, generation_switch) = slow();
        generation_switch.begin().await.unwrap();
        let view = generation_switch.refresh().await.unwrap();
        let left = generation_switch.leave(&view).await.unwrap();
        assert_eq!(
            generation_switch.settled_at(&left),
            Instant::now() + timing.settle()
        );
        sleep(Duration::from_millis(100)).await;
        // Seeing the same state again does not begin the wait anew.
        let again = generation_switch.refresh().await.unwrap();
        assert_eq!(
            generation_switch.settled_at(&again),
            generation_switch.settled_at(&left)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn in_warm_and_ready_reads_do_not_use_the_cache() {
        let (_, generation_switch) = slow();
        // There is no switch yet: it begins as after an outage.
        let mut view = generation_switch.refresh().await.unwrap();
        for phase in [Phase::Warm, Phase::Ready] {
            assert_eq!(view.phase, phase);
            assert!(generation_switch.in_use().is_none());
            view = generation_switch
                .step(&view, phase.next(), view.generation.clone())
                .await
                .unwrap();
        }
        assert!(generation_switch.in_use().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_switch_that_another_replica_has_moved_is_not_moved_again() {
        let (registers, generation_switch) = slow();
        generation_switch.begin().await.unwrap();
        let other = GenerationSwitch::new(registers.clone(), Timing::default());
        let view = generation_switch.refresh().await.unwrap();
        let theirs = other.refresh().await.unwrap();
        let left = other.leave(&theirs).await.unwrap();
        let seen = generation_switch.leave(&view).await.unwrap();
        assert!(seen.is_same(&left));
        assert_eq!(registers.writes.lock().unwrap().len(), 2);
    }
}
