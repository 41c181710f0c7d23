//! The generation switch: replicas leave an unreachable cache, and use an empty generation later.
//! Two replicas, each with a reader and a writer.
//!
//! Time is abstract: a replica's view of the switch may expire at any moment. A wait for the
//! lifetime of a view ends only when every view from before the wait has expired.

use stateright::{Model, Property};

use crate::{
    cell::{Cell, Floor, Ledger, Nonce, Request},
    coherence::FRESH,
};

const REPLICAS: usize = 2;

/// The switch, and simpler variants that lack a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The switch of the service.
    Switch,
    /// Writers do not wait before they acknowledge without the cache.
    WritersDoNotWait,
    /// The switch takes its steps without waiting.
    StepsDoNotWait,
    /// Readers use the new generation at the same step as writers.
    NoReady,
    /// Writers read the switch only before the commit.
    LookBeforeCommit,
    /// Writers also publish into a generation that is not in use yet.
    PublishBeforeUse,
    /// The former generation is used again.
    SameGeneration,
}

/// The bounds of the exploration.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Reads of each replica, one after the other.
    pub reads: u8,
    /// Times that the switch leaves the cache: a writer could not reach it, or an operator
    /// requested it.
    pub trips: u8,
    /// Evictions and expiries of entries.
    pub evictions: u8,
}

#[derive(Debug, Clone, Copy)]
pub struct Generations {
    pub variant: Variant,
    pub bounds: Bounds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Phase {
    /// Readers and writers use the cache.
    On,
    /// No replica uses the cache.
    Warm,
    /// Only writers use the cache.
    Ready,
}

/// The switch in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Switch {
    phase: Phase,
    generation: usize,
    /// Counts the steps.
    step: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    table: u8,
    /// One entry for each generation.
    cells: Vec<Cell>,
    late: Vec<(usize, Request)>,
    switch: Switch,
    /// The view of each replica. `None` if it has expired.
    views: [Option<Switch>; REPLICAS],
    readers: [Reader; REPLICAS],
    writers: [Writer; REPLICAS],
    pub ledger: Ledger,
    trips: u8,
    evictions: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Reader {
    step: Reading,
    floor: Floor,
    reads: u8,
    nonces: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reading {
    Idle,
    /// Is about to look into this generation.
    Looking(usize),
    /// Is about to read the table, and may fill this generation under the lease.
    Missed(Option<(usize, Nonce)>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writer {
    step: Writing,
    /// The switch before the commit, and this writer's fence in its generation.
    fence: Option<(Switch, Nonce)>,
    nonces: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writing {
    Idle,
    /// Has sent a fence.
    Fencing(Switch, Nonce),
    /// Is about to commit. Holds the switch from before the commit.
    Committing(Switch),
    /// Has committed, and is about to read the switch.
    Looking {
        before: Switch,
        version: u8,
    },
    /// Has sent the confirming fence.
    Confirming {
        switch: Switch,
        confirm: Nonce,
        version: u8,
    },
    /// Waits until no replica can use the cache.
    Waiting {
        switch: Switch,
        version: u8,
    },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A replica reads the switch.
    Refresh(usize),
    /// A replica's view expires.
    Expire(usize),
    /// The switch takes its next step towards use.
    Step,
    /// An operator requests a new generation.
    Flush,
    /// A reader begins.
    BeginRead(usize),
    /// A reader looks into the cache, and takes the lease if there is no entry.
    Look(usize),
    /// A reader reads the table and returns.
    Read(usize),
    /// A writer begins.
    BeginWrite(usize),
    /// The writer's request is executed, and its response arrives.
    Serve(usize),
    /// The writer's request is late or lost: the writer makes the switch leave
    /// the cache.
    FailAndTrip(usize),
    /// A writer commits.
    Commit(usize),
    /// A writer reads the switch after the commit.
    LookAtSwitch(usize),
    /// A writer acknowledges after its wait.
    Acknowledge(usize),
    /// An entry is evicted or expires.
    Vanish(usize),
    /// A late request is executed.
    ExecuteLate(usize),
}

impl Model for Generations {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let switch = Switch {
            phase: Phase::On,
            generation: 0,
            step: 0,
        };
        let reader = Reader {
            step: Reading::Idle,
            floor: Floor::default(),
            reads: self.bounds.reads,
            nonces: 0,
        };
        let writer = Writer {
            step: Writing::Idle,
            fence: None,
            nonces: 0,
        };
        vec![State {
            table: 0,
            cells: vec![Cell::Empty; usize::from(self.bounds.trips) + 1],
            late: Vec::new(),
            switch,
            views: [Some(switch); REPLICAS],
            readers: [reader.clone(), reader],
            writers: [writer.clone(), writer],
            ledger: Ledger::new(false),
            trips: self.bounds.trips,
            evictions: self.bounds.evictions,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for r in 0..REPLICAS {
            if state.views[r] != Some(state.switch) {
                actions.push(Action::Refresh(r));
            }
            if state.views[r].is_some() {
                actions.push(Action::Expire(r));
            }
            match state.readers[r].step {
                Reading::Idle if state.readers[r].reads > 0 => actions.push(Action::BeginRead(r)),
                Reading::Idle => {}
                Reading::Looking(_) => actions.push(Action::Look(r)),
                Reading::Missed(_) => actions.push(Action::Read(r)),
            }
            match state.writers[r].step {
                Writing::Idle if state.views[r].is_some() => actions.push(Action::BeginWrite(r)),
                Writing::Idle | Writing::Done => {}
                Writing::Fencing(..) | Writing::Confirming { .. } => {
                    actions.push(Action::Serve(r));
                    if state.trips > 0 {
                        actions.push(Action::FailAndTrip(r));
                    }
                }
                Writing::Committing(_) => actions.push(Action::Commit(r)),
                Writing::Looking { .. } => actions.push(Action::LookAtSwitch(r)),
                Writing::Waiting { switch, .. } => {
                    let waits = self.variant != Variant::WritersDoNotWait;
                    if !waits || state.has_waited_since(switch.step) {
                        actions.push(Action::Acknowledge(r));
                    }
                }
            }
        }
        let waits = self.variant != Variant::StepsDoNotWait;
        if state.switch.phase != Phase::On && (!waits || state.has_waited_since(state.switch.step))
        {
            actions.push(Action::Step);
        }
        if state.trips > 0 && state.switch.phase != Phase::Warm {
            actions.push(Action::Flush);
        }
        if state.evictions > 0 {
            let cells = state.cells.iter().enumerate();
            let full = cells.filter(|(_, cell)| **cell != Cell::Empty);
            actions.extend(full.map(|(generation, _)| Action::Vanish(generation)));
        }
        actions.extend((0..state.late.len()).map(Action::ExecuteLate));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Refresh(r) => state.views[r] = Some(state.switch),
            Action::Expire(r) => state.views[r] = None,
            Action::Step => {
                state.switch.step += 1;
                state.switch.phase = match state.switch.phase {
                    Phase::Warm if self.variant != Variant::NoReady => Phase::Ready,
                    _ => Phase::On,
                };
            }
            Action::Flush => self.trip(&mut state),
            Action::BeginRead(r) => {
                let reader = &mut state.readers[r];
                reader.reads -= 1;
                reader.floor = state.ledger.floor();
                reader.step = match state.views[r] {
                    Some(switch) if switch.phase == Phase::On => {
                        Reading::Looking(switch.generation)
                    }
                    _ => Reading::Missed(None),
                };
            }
            Action::Look(r) => look(&mut state, r)?,
            Action::Read(r) => read(&mut state, r)?,
            Action::BeginWrite(w) => {
                let switch = state.views[w]?;
                state.writers[w].step = if switch.phase == Phase::Warm {
                    Writing::Committing(switch)
                } else {
                    let fence = state.nonce_of_writer(w);
                    Writing::Fencing(switch, fence)
                };
            }
            Action::Serve(w) => self.serve(&mut state, w)?,
            Action::FailAndTrip(w) => self.fail_and_trip(&mut state, w)?,
            Action::Commit(w) => {
                let Writing::Committing(before) = state.writers[w].step else {
                    return None;
                };
                state.table += 1;
                let version = state.table;
                state.writers[w].step = Writing::Looking { before, version };
            }
            Action::LookAtSwitch(w) => {
                let Writing::Looking { before, version } = state.writers[w].step else {
                    return None;
                };
                let switch = if self.variant == Variant::LookBeforeCommit {
                    before
                } else {
                    state.views[w]?
                };
                state.writers[w].step = if switch.phase == Phase::Warm {
                    Writing::Waiting { switch, version }
                } else {
                    Writing::Confirming {
                        switch,
                        confirm: state.nonce_of_writer(w),
                        version,
                    }
                };
            }
            Action::Acknowledge(w) => {
                let Writing::Waiting { version, .. } = state.writers[w].step else {
                    return None;
                };
                state.ledger.acknowledge(version);
                state.writers[w].step = Writing::Done;
            }
            Action::Vanish(generation) => {
                state.evictions -= 1;
                state.cells[generation] = Cell::Empty;
            }
            Action::ExecuteLate(i) => {
                let (generation, request) = state.late.remove(i);
                request.execute(&mut state.cells[generation]);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(FRESH, |_: &Self, state: &State| {
            !state.ledger.is_stale
        })]
    }
}

impl State {
    /// Whether every view from before this step of the switch has expired.
    fn has_waited_since(&self, step: u8) -> bool {
        let mut views = self.views.iter().flatten();
        views.all(|view| view.step >= step)
    }

    fn nonce_of_writer(&mut self, w: usize) -> Nonce {
        let writer = &mut self.writers[w];
        writer.nonces += 1;
        Nonce {
            client: 2 + w,
            number: writer.nonces,
        }
    }

    /// A writer confirms by renewing its own fence in this generation, or by overwriting. The
    /// model omits a failed renewal before the overwrite.
    fn confirm_request(&self, w: usize, switch: Switch, confirm: Nonce) -> Request {
        match self.writers[w].fence {
            Some((before, fence))
                if before.generation == switch.generation
                    && self.cells[switch.generation] == Cell::Fence(fence) =>
            {
                Request::SetIfEqual {
                    expected: Cell::Fence(fence),
                    value: Cell::Fence(confirm),
                }
            }
            _ => overwrite(confirm),
        }
    }
}

fn overwrite(fence: Nonce) -> Request {
    Request::Overwrite(Cell::Fence(fence))
}

fn look(state: &mut State, r: usize) -> Option<()> {
    let Reading::Looking(generation) = state.readers[r].step else {
        return None;
    };
    let reader = &mut state.readers[r];
    reader.step = match state.cells[generation] {
        Cell::Value(version) => {
            state.ledger.return_read(version, reader.floor);
            Reading::Idle
        }
        Cell::Lease(_) | Cell::Fence(_) => Reading::Missed(None),
        Cell::Empty => {
            reader.nonces += 1;
            let lease = Nonce {
                client: r,
                number: reader.nonces,
            };
            state.cells[generation] = Cell::Lease(lease);
            Reading::Missed(Some((generation, lease)))
        }
    };
    Some(())
}

fn read(state: &mut State, r: usize) -> Option<()> {
    let reader = &mut state.readers[r];
    let Reading::Missed(lease) = reader.step else {
        return None;
    };
    state.ledger.return_read(state.table, reader.floor);
    reader.step = Reading::Idle;
    if let Some((generation, lease)) = lease {
        let fill = Request::SetIfEqual {
            expected: Cell::Lease(lease),
            value: Cell::Value(state.table),
        };
        state.late.push((generation, fill));
        state.late.sort_unstable();
    }
    Some(())
}

impl Generations {
    fn trip(self, state: &mut State) {
        state.trips -= 1;
        state.switch.step += 1;
        state.switch.phase = Phase::Warm;
        if self.variant != Variant::SameGeneration {
            state.switch.generation += 1;
        }
    }

    fn fail_and_trip(self, state: &mut State, w: usize) -> Option<()> {
        let (switch, request) = match state.writers[w].step {
            Writing::Fencing(switch, fence) => (switch, overwrite(fence)),
            Writing::Confirming {
                switch, confirm, ..
            } => (switch, state.confirm_request(w, switch, confirm)),
            _ => return None,
        };
        state.late.push((switch.generation, request));
        state.late.sort_unstable();
        if state.switch.step == switch.step {
            self.trip(state);
        }
        let before = state.switch;
        state.views[w] = Some(before);
        state.writers[w].step = match state.writers[w].step {
            Writing::Confirming { version, .. } => Writing::Looking { before, version },
            _ => Writing::Committing(before),
        };
        Some(())
    }

    fn serve(self, state: &mut State, w: usize) -> Option<()> {
        match state.writers[w].step {
            Writing::Fencing(switch, fence) => {
                overwrite(fence).execute(&mut state.cells[switch.generation]);
                state.writers[w].fence = Some((switch, fence));
                state.writers[w].step = Writing::Committing(switch);
            }
            Writing::Confirming {
                switch,
                confirm,
                version,
            } => {
                let request = state.confirm_request(w, switch, confirm);
                let is_unbroken = matches!(request, Request::SetIfEqual { .. });
                request.execute(&mut state.cells[switch.generation]);
                state.ledger.acknowledge(version);
                let was_in_use = |(before, _): (Switch, Nonce)| {
                    before.phase == Phase::On && switch.phase == Phase::On
                };
                let may_publish = self.variant == Variant::PublishBeforeUse
                    || state.writers[w].fence.is_some_and(was_in_use);
                if is_unbroken && may_publish {
                    let publish = Request::SetIfEqual {
                        expected: Cell::Fence(confirm),
                        value: Cell::Value(version),
                    };
                    state.late.push((switch.generation, publish));
                    state.late.sort_unstable();
                }
                state.writers[w].step = Writing::Done;
            }
            _ => return None,
        }
        Some(())
    }
}
