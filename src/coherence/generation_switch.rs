//! The generation switch: the generation of cache entries that is in use, if any. It lets
//! writes continue without the cache, and empties the cache by moving on to a new generation.
//!
//! The state of the switch is a register of the table, see [`super::register_view`].

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, sleep_until, timeout},
};
use uuid::Uuid;

use super::{
    namespace::Namespace,
    register_view::{RegisterState, RegisterView, View},
    settings::Timing,
};
use crate::{
    store::{self, Registers},
    telemetry::{CACHE_IN_USE, GENERATION_STEPS},
};

/// Names of the register's values.
const PHASE: &str = "phase";
const GENERATION: &str = "generation";
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

/// The state of the switch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Switch {
    phase: Phase,
    generation: String,
}

impl Switch {
    fn new(phase: Phase) -> Self {
        let generation = Uuid::new_v4().simple().to_string();
        Self { phase, generation }
    }
}

impl RegisterState for Switch {
    const NAME: &'static str = "cache-generation";

    /// Other replicas may still use the generation of a register that was deleted: the cache is out
    /// of use, as after an outage.
    fn recreated() -> Self {
        Self::new(Phase::Warm)
    }

    fn parse(values: &BTreeMap<String, String>, former: Option<&Self>) -> Option<Self> {
        let phase = values.get(PHASE)?;
        let phase = Phase::ALL.into_iter().find(|it| it.as_str() == phase)?;
        let generation = values.get(GENERATION).filter(|name| !name.is_empty())?;
        let new = Self {
            phase,
            generation: generation.clone(),
        };
        if former != Some(&new) {
            metrics::counter!(GENERATION_STEPS, "phase" => phase.as_str()).increment(1);
        }
        Some(new)
    }

    fn values(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (PHASE.to_owned(), self.phase.as_str().to_owned()),
            (GENERATION.to_owned(), self.generation.clone()),
        ])
    }
}

/// A replica's view of the switch.
#[derive(Debug, Clone)]
pub(super) struct SwitchView {
    view: Arc<View<Switch>>,
    pub(super) namespace: Namespace,
}

impl SwitchView {
    /// Whether both views are of the same state.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.view.is_same(&other.view)
    }

    /// The phase of the switch.
    pub(super) fn phase(&self) -> Phase {
        self.view.state.phase
    }
}

/// The generation switch of a deployment.
pub struct GenerationSwitch {
    registers: Arc<dyn Registers>,
    register: RegisterView<Switch>,
    /// Identity of the table. It separates the entries of tables that share a cache, a table and
    /// its restored copy included. Read with the first view.
    deployment: OnceCell<String>,
    timing: Timing,
}

impl GenerationSwitch {
    pub(super) fn new(registers: Arc<dyn Registers>, timing: Timing) -> Self {
        Self {
            register: RegisterView::new(registers.clone(), timing),
            registers,
            deployment: OnceCell::new(),
            timing,
        }
    }

    /// The namespace that reads may use now.
    pub(super) fn in_use(&self) -> Option<Namespace> {
        let view = self.register.current()?;
        let deployment = self.deployment.get()?;
        let Switch { phase, generation } = &view.state;
        (*phase == Phase::On).then(|| Namespace::new(deployment, generation))
    }

    /// A valid view of the switch.
    pub(super) async fn view(&self) -> Result<SwitchView, store::Error> {
        let view = self.register.view().await?;
        self.with_namespace(view).await
    }

    /// The time from which no replica acts on an older view than this one.
    pub(super) fn settled_at(&self, view: &SwitchView) -> Instant {
        self.register.settled_at(&view.view)
    }

    /// Takes the cache out of use. The next generation is empty.
    pub(super) async fn leave(&self, from: &SwitchView) -> Result<SwitchView, store::Error> {
        let view = self.step(from, Switch::new(Phase::Warm)).await?;
        if view.phase() == Phase::Warm {
            let generation = &view.view.state.generation;
            tracing::warn!(generation, "the cache was taken out of use");
        }
        Ok(view)
    }

    /// Reads the switch.
    ///
    /// # Errors
    /// The table could not be read.
    pub(super) async fn refresh(&self) -> Result<SwitchView, store::Error> {
        let view = self.register.refresh().await?;
        self.set_in_use_gauge();
        self.with_namespace(view).await
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
            if view.phase() == Phase::On {
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
        let generation = |view: &SwitchView| view.view.state.generation.clone();
        // A generation that is not in use yet is empty.
        let used = (view.phase() == Phase::On).then(|| generation(&view));
        loop {
            view = if used == Some(generation(&view)) {
                self.leave(&view).await?
            } else if view.phase() == Phase::On {
                return Ok(());
            } else {
                sleep_until(self.settled_at(&view)).await;
                self.step_forward(&view).await?
            };
        }
    }

    /// Creates the switch of a new table, with the cache in use.
    pub(super) async fn begin(&self) -> Result<(), store::Error> {
        self.register.begin(&Switch::new(Phase::On)).await
    }

    async fn advance(&self, view: &SwitchView) {
        match self.step_forward(view).await {
            Ok(view) => tracing::info!(
                generation = view.view.state.generation,
                phase = view.phase().as_str(),
                "the cache responds again"
            ),
            Err(error) => tracing::warn!(%error, "the generation switch cannot be moved"),
        }
    }

    async fn step_forward(&self, from: &SwitchView) -> Result<SwitchView, store::Error> {
        let next = Switch {
            phase: from.phase().next(),
            generation: from.view.state.generation.clone(),
        };
        self.step(from, next).await
    }

    /// Moves the switch from this view. Returns the current view, also if another replica
    /// moved it.
    async fn step(&self, from: &SwitchView, to: Switch) -> Result<SwitchView, store::Error> {
        let view = self.register.swap(&from.view, &to).await?;
        self.set_in_use_gauge();
        self.with_namespace(view).await
    }

    async fn with_namespace(&self, view: Arc<View<Switch>>) -> Result<SwitchView, store::Error> {
        let deployment = self
            .deployment
            .get_or_try_init(|| self.registers.table_identity())
            .await?;
        Ok(SwitchView {
            namespace: Namespace::new(deployment, &view.state.generation),
            view,
        })
    }

    fn set_in_use_gauge(&self) {
        let is_in_use = u32::from(self.in_use().is_some());
        metrics::gauge!(CACHE_IN_USE).set(is_in_use);
    }
}

#[cfg(test)]
mod tests;
