//! Near caches, for one key: replicas keep what they read in memory, a directory lists them, and
//! a write fences all of them before it commits.
//!
//! Time is abstract: a replica's view of the directory may expire at any moment. A wait for the
//! lifetime of a view ends only when every view from before the wait has expired. A replica that
//! joins also waits for the longest time of a write, so that no commit is running that has not fenced
//! it. The second level
//! is a cell that one fence of each writer keeps from being filled; its own protocol is that of
//! [`crate::coherence`].

use stateright::{Model, Property};

use crate::{
    cell::{Floor, Ledger},
    coherence::{FRESH, Kind, MONOTONIC},
};

/// The protocol, and simpler variants that lack a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The protocol of the service.
    Directory,
    /// A fence drops the entry and holds nothing.
    DropWithoutHold,
    /// Writers make replicas drop the entry between the commit and the confirmation.
    DropAfterCommit,
    /// A replica serves from memory as soon as it is listed.
    JoinWithoutSettle,
    /// A replica serves from memory while a write that has not fenced it commits.
    JoinDuringCommit,
    /// Writers do not look at the directory after the commit.
    NoLookAfterCommit,
    /// Writers do not wait after they have evicted a replica.
    EvictWithoutSettle,
    /// Writers remove a silent replica from the directory at once, and then wait.
    StrikeOffAtOnce,
    /// A leaving replica is removed from the directory without a wait.
    RemoveWithoutSettle,
    /// A read installs its result although a fence has come since it was sent.
    InstallOverFence,
    /// A read looks for holds when its result arrives, and not when it is sent.
    HoldSeenOnArrival,
    /// A replica keeps its entries when it leaves and joins again.
    KeepOverRejoin,
    /// A read that was sent before the replica was active installs its result.
    InstallBeforeActive,
    /// Holds may end before the write does, and the writer does not fence again.
    HoldsEndEarly,
    /// Writers acknowledge without fencing the replicas.
    NoFences,
    /// A replica serves from memory without a valid view.
    ServeWithoutView,
}

/// The bounds of the exploration.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Reads of each replica, one after the other.
    pub reads: u8,
    /// Fences that get no response.
    pub failures: u8,
    /// Evictions from the second level, and holds that end before their write.
    pub evictions: u8,
    /// Times that a replica joins.
    pub joins: u8,
    /// Replicas that stop for ever.
    pub crashes: u8,
}

impl Bounds {
    /// Whether reads never go back. An evicted fence lets them.
    fn is_monotonic(self) -> bool {
        self.evictions == 0
    }
}

#[derive(Debug, Clone, Copy)]
pub struct NearCaches<const N: usize> {
    pub variant: Variant,
    /// The write of each replica, if any.
    pub writers: [Option<Kind>; N],
    /// Whether each replica has joined at the beginning.
    pub joined: [bool; N],
    pub bounds: Bounds,
}

/// The status of a replica in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    Absent,
    Active { incarnation: u8 },
    Leaving { incarnation: u8, since: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Directory<const N: usize> {
    /// Counts the changes.
    step: u8,
    listed: [Status; N],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State<const N: usize> {
    table: u8,
    /// The value in the second level, if any.
    second: Option<u8>,
    directory: Directory<N>,
    replicas: [Replica<N>; N],
    writers: [Writer<N>; N],
    pub ledger: Ledger,
    failures: u8,
    evictions: u8,
    joins: u8,
    crashes: u8,
    /// Incarnations so far.
    incarnations: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Replica<const N: usize> {
    is_alive: bool,
    /// `None` if it has expired.
    view: Option<Directory<N>>,
    /// The incarnation that joined, and the step of the directory with it.
    joined: Option<(u8, u8)>,
    /// Whether it has waited since it joined.
    is_active: bool,
    near: Option<u8>,
    /// Holds, by writer.
    holds: [bool; N],
    reading: Reading,
    floor: Floor,
    reads: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reading {
    Idle,
    /// Was sent. The incarnation may install the result, unless a fence has come since.
    Sent {
        installs: Option<u8>,
        is_fenced: bool,
    },
    Found {
        version: u8,
        installs: Option<u8>,
        is_fenced: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writer<const N: usize> {
    step: Writing,
    /// The incarnations that this write has fenced.
    fenced: [Option<u8>; N],
    /// The write has to wait until no view is older than this step.
    waits_for: u8,
    /// Whether its fence is in the second level.
    has_fence: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writing {
    Idle,
    /// Fences, before the commit. `found` is the version at the decision.
    Fencing {
        found: u8,
    },
    /// Has sent the transaction.
    Committing {
        found: u8,
    },
    /// Fences after the commit, in a variant.
    Dropping {
        version: u8,
    },
    /// Is about to confirm in the second level.
    Confirming {
        version: u8,
    },
    /// Is about to look at the directory.
    Looking {
        version: u8,
    },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A replica reads the directory.
    Refresh(usize),
    /// A replica's view expires.
    Expire(usize),
    /// A replica joins.
    Join(usize),
    /// A replica has waited since it joined.
    Activate(usize),
    /// A replica removes another one that has been leaving for long enough.
    Remove(usize, usize),
    /// A replica stops for ever.
    Crash(usize),
    /// A read is served from memory.
    Hit(usize),
    /// A read is sent.
    Send(usize),
    /// A read finds the value in the second level.
    FindSecond(usize),
    /// A read finds the version in the table, and fills the second level.
    FindTable(usize),
    /// The result of a read arrives, and is returned and installed.
    Arrive(usize),
    /// A writer decides and begins to fence.
    Begin(usize),
    /// A writer fences a replica.
    Fence(usize, usize),
    /// A replica does not respond to a fence, and the writer evicts it.
    Evict(usize, usize),
    /// A writer has fenced every replica of its view, and sends the transaction.
    Commit(usize),
    /// The transaction is applied, or there was nothing to change.
    Apply(usize),
    /// A writer has fenced after the commit, in a variant.
    Dropped(usize),
    /// A writer confirms in the second level.
    Confirm(usize),
    /// A writer looks at the directory, and acknowledges.
    Acknowledge(usize),
    /// A writer's hold ends, after the acknowledgement.
    Release(usize, usize),
    /// A writer's hold ends by time, before the acknowledgement.
    HoldEnds(usize, usize),
    /// A writer's fence vanishes from the second level.
    FenceVanishes(usize),
}

impl<const N: usize> Model for NearCaches<N> {
    type State = State<N>;
    type Action = Action;

    fn init_states(&self) -> Vec<State<N>> {
        let incarnations: [u8; N] = std::array::from_fn(|r| u8::try_from(r).unwrap_or(0));
        let listed = std::array::from_fn(|r| {
            let incarnation = incarnations[r];
            if self.joined[r] {
                Status::Active { incarnation }
            } else {
                Status::Absent
            }
        });
        let directory = Directory { step: 0, listed };
        let replica = |r: usize| Replica {
            is_alive: true,
            view: Some(directory),
            joined: self.joined[r].then_some((incarnations[r], 0)),
            is_active: self.joined[r],
            near: None,
            holds: [false; N],
            reading: Reading::Idle,
            floor: Floor::default(),
            reads: self.bounds.reads,
        };
        let writer = Writer {
            step: Writing::Idle,
            fenced: [None; N],
            waits_for: 0,
            has_fence: false,
        };
        vec![State {
            table: 0,
            second: None,
            directory,
            replicas: std::array::from_fn(replica),
            writers: std::array::from_fn(|_| writer.clone()),
            ledger: Ledger::new(self.bounds.is_monotonic()),
            failures: self.bounds.failures,
            evictions: self.bounds.evictions,
            joins: self.bounds.joins,
            crashes: self.bounds.crashes,
            incarnations: u8::try_from(N).unwrap_or(u8::MAX),
        }]
    }

    fn actions(&self, state: &State<N>, actions: &mut Vec<Action>) {
        for r in 0..N {
            let replica = &state.replicas[r];
            if !replica.is_alive {
                continue;
            }
            self.replica_actions(state, r, actions);
            self.read_actions(state, r, actions);
            self.write_actions(state, r, actions);
        }
        for (w, writer) in state.writers.iter().enumerate() {
            let has_ended = writer.step == Writing::Done || !state.replicas[w].is_alive;
            for p in (0..N).filter(|p| state.replicas[*p].holds[w]) {
                if has_ended {
                    actions.push(Action::Release(w, p));
                } else if state.evictions > 0 {
                    actions.push(Action::HoldEnds(w, p));
                }
            }
            if writer.has_fence && state.evictions > 0 {
                actions.push(Action::FenceVanishes(w));
            }
        }
    }

    fn next_state(&self, last: &State<N>, action: Action) -> Option<State<N>> {
        let mut state = last.clone();
        match action {
            Action::Refresh(r) => self.refresh(&mut state, r),
            Action::Expire(r) => state.replicas[r].view = None,
            Action::Join(r) => Self::join(&mut state, r),
            Action::Activate(r) => state.replicas[r].is_active = true,
            Action::Remove(r, p) => {
                state.change(p, Status::Absent);
                state.replicas[r].view = Some(state.directory);
            }
            Action::Crash(r) => {
                state.crashes -= 1;
                state.replicas[r] = Replica {
                    is_alive: false,
                    view: None,
                    joined: None,
                    is_active: false,
                    near: None,
                    holds: [false; N],
                    reading: Reading::Idle,
                    ..state.replicas[r].clone()
                };
            }
            Action::Hit(r) => {
                let version = state.replicas[r].near?;
                state.replicas[r].reads -= 1;
                let floor = state.ledger.floor();
                state.ledger.return_read(version, floor);
            }
            Action::Send(r) => self.send(&mut state, r),
            Action::FindSecond(r) => {
                let version = state.second?;
                state.replicas[r].find(version)?;
            }
            Action::FindTable(r) => {
                let version = state.table;
                state.replicas[r].find(version)?;
                if state.writers.iter().all(|writer| !writer.has_fence) {
                    state.second = Some(version);
                }
            }
            Action::Arrive(r) => self.arrive(&mut state, r)?,
            Action::Begin(w) => {
                let found = state.table;
                state.second = None;
                state.writers[w].has_fence = true;
                state.writers[w].step = Writing::Fencing { found };
            }
            Action::Fence(w, p) => self.fence(&mut state, w, p)?,
            Action::Evict(w, p) => self.evict(&mut state, w, p)?,
            Action::Commit(w) => {
                let Writing::Fencing { found } = state.writers[w].step else {
                    return None;
                };
                state.writers[w].step = Writing::Committing { found };
            }
            Action::Apply(w) => self.apply(&mut state, w)?,
            Action::Dropped(w) => {
                let version = state.writers[w].step.version()?;
                state.writers[w].step = Writing::Confirming { version };
            }
            Action::Confirm(w) => {
                let version = state.writers[w].step.version()?;
                state.second = None;
                state.writers[w].has_fence = true;
                state.writers[w].step = Writing::Looking { version };
            }
            Action::Acknowledge(w) => {
                let version = state.writers[w].step.version()?;
                state.ledger.acknowledge(version);
                state.writers[w].has_fence = false;
                state.writers[w].step = Writing::Done;
            }
            Action::Release(w, p) => state.replicas[p].holds[w] = false,
            Action::HoldEnds(w, p) => {
                state.evictions -= 1;
                state.replicas[p].holds[w] = false;
                // The writer measures the hold time, too: it fences the replica again.
                if self.variant != Variant::HoldsEndEarly {
                    state.writers[w].fenced[p] = None;
                }
            }
            Action::FenceVanishes(w) => {
                state.evictions -= 1;
                state.writers[w].has_fence = false;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always(FRESH, |_: &Self, state: &State<N>| {
            !state.ledger.is_stale
        })];
        if self.bounds.is_monotonic() {
            properties.push(Property::always(MONOTONIC, |_: &Self, state: &State<N>| {
                !state.ledger.went_back
            }));
        }
        properties
    }
}

impl Writing {
    fn version(self) -> Option<u8> {
        match self {
            Self::Dropping { version }
            | Self::Confirming { version }
            | Self::Looking { version } => Some(version),
            Self::Idle | Self::Fencing { .. } | Self::Committing { .. } | Self::Done => None,
        }
    }
}

impl<const N: usize> State<N> {
    /// Whether every view from before this step of the directory has expired.
    fn has_waited_since(&self, step: u8) -> bool {
        let mut views = self.replicas.iter().filter_map(|replica| replica.view);
        views.all(|view| view.step >= step)
    }

    fn change(&mut self, p: usize, status: Status) {
        self.directory.step += 1;
        self.directory.listed[p] = status;
    }
}

impl<const N: usize> Replica<N> {
    fn find(&mut self, found: u8) -> Option<()> {
        let Reading::Sent {
            installs,
            is_fenced,
        } = self.reading
        else {
            return None;
        };
        self.reading = Reading::Found {
            version: found,
            installs,
            is_fenced,
        };
        Some(())
    }

    fn incarnation(&self) -> Option<u8> {
        self.joined.map(|(incarnation, _)| incarnation)
    }

    /// Whether its view lists it as active.
    fn is_listed(&self, r: usize) -> bool {
        let (Some(view), Some(incarnation)) = (self.view, self.incarnation()) else {
            return false;
        };
        view.listed[r] == Status::Active { incarnation }
    }
}

impl<const N: usize> NearCaches<N> {
    fn replica_actions(&self, state: &State<N>, r: usize, actions: &mut Vec<Action>) {
        let replica = &state.replicas[r];
        if replica.view != Some(state.directory) {
            actions.push(Action::Refresh(r));
        }
        if replica.view.is_some() {
            actions.push(Action::Expire(r));
        }
        if replica.joined.is_none() && state.joins > 0 {
            actions.push(Action::Join(r));
        }
        if let Some((_, since)) = replica.joined
            && !replica.is_active
            && replica.is_listed(r)
            && (self.variant == Variant::JoinWithoutSettle
                || state.has_waited_since(since) && self.have_writes_ended(state, r))
        {
            actions.push(Action::Activate(r));
        }
        let view = replica.view.iter();
        for (p, status) in view.flat_map(|view| view.listed.iter().enumerate()) {
            if let Status::Leaving { since, .. } = *status
                && state.directory.listed[p] == *status
                && (self.variant == Variant::RemoveWithoutSettle || state.has_waited_since(since))
            {
                actions.push(Action::Remove(r, p));
            }
        }
        if state.crashes > 0 {
            actions.push(Action::Crash(r));
        }
    }

    /// Whether every write that has not fenced this replica has committed, or has yet to look at
    /// the directory before it commits.
    fn have_writes_ended(&self, state: &State<N>, r: usize) -> bool {
        let incarnation = state.replicas[r].incarnation();
        self.variant == Variant::JoinDuringCommit
            || state.writers.iter().all(|writer| {
                let is_committing = matches!(writer.step, Writing::Committing { .. });
                !is_committing || writer.fenced[r] == incarnation
            })
    }

    fn read_actions(&self, state: &State<N>, r: usize, actions: &mut Vec<Action>) {
        let replica = &state.replicas[r];
        match replica.reading {
            Reading::Idle if replica.reads > 0 => {
                let may_serve = self.variant == Variant::ServeWithoutView || replica.is_listed(r);
                if replica.near.is_some() && replica.is_active && may_serve {
                    actions.push(Action::Hit(r));
                }
                actions.push(Action::Send(r));
            }
            Reading::Idle => {}
            Reading::Sent { .. } => {
                actions.push(Action::FindTable(r));
                if state.second.is_some() {
                    actions.push(Action::FindSecond(r));
                }
            }
            Reading::Found { .. } => actions.push(Action::Arrive(r)),
        }
    }

    fn write_actions(&self, state: &State<N>, w: usize, actions: &mut Vec<Action>) {
        let (replica, writer) = (&state.replicas[w], &state.writers[w]);
        match writer.step {
            Writing::Idle if self.writers[w].is_some() && replica.view.is_some() => {
                actions.push(Action::Begin(w));
            }
            Writing::Idle | Writing::Done => {}
            Writing::Fencing { .. } => {
                let drops_later = self.variant == Variant::DropAfterCommit;
                if drops_later || self.is_covered(state, w) {
                    actions.push(Action::Commit(w));
                }
                if !drops_later {
                    Self::fence_actions(state, w, actions);
                }
            }
            Writing::Committing { .. } => actions.push(Action::Apply(w)),
            Writing::Dropping { .. } => {
                if self.is_covered(state, w) {
                    actions.push(Action::Dropped(w));
                }
                Self::fence_actions(state, w, actions);
            }
            Writing::Confirming { .. } => actions.push(Action::Confirm(w)),
            Writing::Looking { .. } => {
                let looks = self.variant != Variant::NoLookAfterCommit;
                if !looks || self.is_covered(state, w) {
                    actions.push(Action::Acknowledge(w));
                } else {
                    Self::fence_actions(state, w, actions);
                }
            }
        }
    }

    fn fence_actions(state: &State<N>, w: usize, actions: &mut Vec<Action>) {
        let Some(view) = state.replicas[w].view else {
            return;
        };
        for (p, status) in view.listed.iter().enumerate() {
            let (Status::Active { incarnation } | Status::Leaving { incarnation, .. }) = *status
            else {
                continue;
            };
            if state.writers[w].fenced[p] == Some(incarnation) {
                continue;
            }
            let responds = state.replicas[p].incarnation() == Some(incarnation);
            if responds {
                actions.push(Action::Fence(w, p));
            }
            let is_active = matches!(status, Status::Active { .. });
            if is_active && w != p && (!responds || state.failures > 0) {
                actions.push(Action::Evict(w, p));
            }
        }
    }

    /// Whether this write has fenced every replica of its view, or waited for it to leave.
    fn is_covered(&self, state: &State<N>, w: usize) -> bool {
        let writer = &state.writers[w];
        let Some(view) = state.replicas[w].view else {
            return false;
        };
        if self.variant == Variant::NoFences {
            return true;
        }
        let mut listed = view.listed.iter().zip(writer.fenced);
        state.has_waited_since(writer.waits_for)
            && listed.all(|(status, fenced)| match *status {
                Status::Absent => true,
                Status::Active { incarnation } => fenced == Some(incarnation),
                Status::Leaving { incarnation, since } => {
                    fenced == Some(incarnation)
                        || self.variant == Variant::EvictWithoutSettle
                        || state.has_waited_since(since)
                }
            })
    }

    fn refresh(&self, state: &mut State<N>, r: usize) {
        let directory = state.directory;
        let replica = &mut state.replicas[r];
        replica.view = Some(directory);
        if replica.joined.is_some() && !replica.is_listed(r) {
            replica.joined = None;
            replica.is_active = false;
            replica.holds = [false; N];
            if self.variant != Variant::KeepOverRejoin {
                replica.near = None;
            }
        }
    }

    fn join(state: &mut State<N>, r: usize) {
        state.joins -= 1;
        let incarnation = state.incarnations;
        state.incarnations += 1;
        state.change(r, Status::Active { incarnation });
        let (directory, step) = (state.directory, state.directory.step);
        let replica = &mut state.replicas[r];
        replica.view = Some(directory);
        replica.joined = Some((incarnation, step));
    }

    fn send(&self, state: &mut State<N>, r: usize) {
        let floor = state.ledger.floor();
        let replica = &mut state.replicas[r];
        replica.reads -= 1;
        replica.floor = floor;
        let is_active = replica.is_active || self.variant == Variant::InstallBeforeActive;
        let is_held = replica.holds.contains(&true) && self.variant != Variant::HoldSeenOnArrival;
        replica.reading = Reading::Sent {
            installs: replica.incarnation().filter(|_| is_active && !is_held),
            is_fenced: false,
        };
    }

    fn arrive(&self, state: &mut State<N>, r: usize) -> Option<()> {
        let replica = &mut state.replicas[r];
        let Reading::Found {
            version,
            installs,
            is_fenced,
        } = replica.reading
        else {
            return None;
        };
        replica.reading = Reading::Idle;
        let is_fenced = is_fenced && self.variant != Variant::InstallOverFence;
        let is_held = replica.holds.contains(&true) && self.variant == Variant::HoldSeenOnArrival;
        let is_same = installs.is_some() && installs == replica.incarnation();
        if is_same && !is_fenced && !is_held {
            replica.near = Some(version);
        }
        let floor = replica.floor;
        state.ledger.return_read(version, floor);
        Some(())
    }

    fn fence(&self, state: &mut State<N>, w: usize, p: usize) -> Option<()> {
        let replica = &mut state.replicas[p];
        let incarnation = replica.incarnation()?;
        replica.near = None;
        let holds = !matches!(
            self.variant,
            Variant::DropWithoutHold | Variant::DropAfterCommit
        );
        replica.holds[w] |= holds;
        if let Reading::Sent { is_fenced, .. } | Reading::Found { is_fenced, .. } =
            &mut replica.reading
        {
            *is_fenced = true;
        }
        state.writers[w].fenced[p] = Some(incarnation);
        Some(())
    }

    fn evict(&self, state: &mut State<N>, w: usize, p: usize) -> Option<()> {
        let view = state.replicas[w].view?;
        let Status::Active { incarnation } = view.listed[p] else {
            return None;
        };
        if state.replicas[p].incarnation() == Some(incarnation) {
            state.failures -= 1;
        }
        if state.directory.listed[p] == view.listed[p] {
            let since = state.directory.step + 1;
            if self.variant == Variant::StrikeOffAtOnce {
                state.change(p, Status::Absent);
                state.writers[w].waits_for = since;
            } else {
                state.change(p, Status::Leaving { incarnation, since });
            }
        }
        state.replicas[w].view = Some(state.directory);
        Some(())
    }

    fn apply(&self, state: &mut State<N>, w: usize) -> Option<()> {
        let Writing::Committing { found } = state.writers[w].step else {
            return None;
        };
        let version = match self.writers[w]? {
            Kind::Change => {
                state.table += 1;
                state.table
            }
            Kind::NoOp => found,
        };
        state.writers[w].step = if self.variant == Variant::DropAfterCommit {
            Writing::Dropping { version }
        } else {
            Writing::Confirming { version }
        };
        Some(())
    }
}
