//! The generation switch: the generation of cache entries that is in use, if any. It lets
//! writes continue without the cache, and empties the cache by moving on to a new generation.
//!
//! The state of the switch is one item of the table. A replica acts on its view of the item
//! for [`Timing::view_ttl`] from when it sent the read, by its own monotonic clock. A replica
//! that has waited for [`Timing::settle`] since it received a view knows that no replica acts
//! on an older one.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;
use tokio::{
    sync::{Mutex, OnceCell},
    time::{Instant, sleep, sleep_until, timeout},
};
use uuid::Uuid;

use super::{namespace::Namespace, settings::Timing};
use crate::{
    store::{self, Registers},
    telemetry::{CACHE_IN_USE, GENERATION_STEPS},
};

/// Name of the register that holds the switch.
const REGISTER: &str = "cache-generation";
/// Names of the register's values.
const PHASE: &str = "phase";
const GENERATION: &str = "generation";
/// Most attempts to read or create the register, which may be deleted meanwhile.
const MAX_LOADS: u32 = 3;
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
    sent: Instant,
    /// When this replica first received this state.
    received: Instant,
}

impl SwitchView {
    /// Whether both views are of the same state.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.step, self.phase, &self.generation) == (other.step, other.phase, &other.generation)
    }
}

/// The generation switch of a deployment.
pub struct GenerationSwitch {
    registers: Arc<dyn Registers>,
    /// Identity of the table. It separates the entries of tables that share a cache, a table and
    /// its restored copy included. Read with the first view.
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
        let view = self.view.read();
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

    /// The time from which no replica acts on an older view than this one.
    pub(super) fn settled_at(&self, view: &SwitchView) -> Instant {
        view.received + self.timing.settle()
    }

    /// Takes the cache out of use. The next generation is empty.
    pub(super) async fn leave(&self, from: &SwitchView) -> Result<SwitchView, store::Error> {
        let view = self.step(from, Phase::Warm, new_generation()).await?;
        if view.phase == Phase::Warm {
            tracing::warn!(
                generation = view.generation,
                "the cache was taken out of use"
            );
        }
        Ok(view)
    }

    /// Reads the switch.
    ///
    /// # Errors
    /// The table could not be read.
    pub(super) async fn refresh(&self) -> Result<SwitchView, store::Error> {
        let wanted = Instant::now();
        let _access = self.register_access.lock().await;
        match self.current() {
            Some(view) if view.sent >= wanted => Ok(view),
            _ => self.load().await,
        }
    }

    /// Refreshes the view, and brings an empty generation into use once probes of it succeed.
    /// Never ends.
    pub(super) async fn run<P>(&self, probe: impl Fn(Namespace) -> P)
    where
        P: Future<Output = bool>,
    {
        let mut succeeded = 0;
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
                succeeded = 0;
                continue;
            }
            succeeded = if probe(view.namespace.clone()).await {
                succeeded + 1
            } else {
                0
            };
            if succeeded >= PROBES && Instant::now() >= self.settled_at(&view) {
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
                "the cache responds again"
            ),
            Err(error) => tracing::warn!(%error, "the generation switch cannot be moved"),
        }
    }

    fn is_valid(&self, view: &SwitchView) -> bool {
        Instant::now() < view.sent + self.timing.view_ttl
    }

    fn current(&self) -> Option<SwitchView> {
        let view = self.view.read();
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
        let _access = self.register_access.lock().await;
        if let Some(current) = self.current()
            && !current.is_same(from)
        {
            return Ok(current);
        }
        let sent = Instant::now();
        let values = values(phase, &generation);
        let swap = self
            .registers
            .swap_register(REGISTER, Some(from.step), &values);
        if let Some(step) = swap.await? {
            return self.accept(phase, generation, step, sent).await;
        }
        self.load().await
    }

    async fn load(&self) -> Result<SwitchView, store::Error> {
        for _ in 0..MAX_LOADS {
            let sent = Instant::now();
            if let Some(register) = self.registers.read_register(REGISTER).await? {
                let (phase, generation) = parse(&register.values).ok_or_else(malformed)?;
                return self.accept(phase, generation, register.version, sent).await;
            }
            // Other replicas may still use the generation of a register that was deleted: begin in
            // the phase Warm, as after an outage.
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
        sent: Instant,
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
            sent,
            received: Instant::now(),
        };
        let mut view = self.view.write();
        if let Some(old) = view.as_ref().filter(|old| old.is_same(&new)) {
            new.received = old.received;
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
        format!("register {REGISTER} has no valid phase and generation"),
    )
}

#[cfg(test)]
mod tests;
