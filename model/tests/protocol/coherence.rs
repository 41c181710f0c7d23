//! Lease, fence and confirm, for one key: two readers, two writers, and a cache that evicts and
//! expires entries, and delays and loses messages.

use stateright::{Model, Property};

use crate::cell::{Cell, Floor, Ledger, Nonce, Request};

pub const FRESH: &str = "no read is older than a version acknowledged before it began";
pub const MONOTONIC: &str = "no read is older than a version returned before it began";

/// The protocol, and simpler variants that lack a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The protocol of the service.
    LeaseFenceConfirm,
    /// Readers set the version that they read, writers set the version that they wrote.
    ReadAndWriteAside,
    /// Readers set the version that they read, writers delete after the commit.
    DeleteAfterCommit,
    /// Readers fill an empty entry, without a lease.
    FillWithoutLease,
    /// Writers delete after the commit, and also acknowledge if the deletion failed.
    AcknowledgeFailedDelete,
    /// Writers do not fence again after the commit.
    FenceBeforeCommitOnly,
    /// Writers acknowledge before they confirm.
    AcknowledgeBeforeConfirm,
    /// Writers set the version that they wrote, and do not confirm.
    PublishAfterCommit,
    /// Writers publish whenever their confirming fence is still in the cache.
    PublishOnAnyConfirm,
    /// Readers join a flight that has read the table already.
    JoinAnyFlight,
    /// A write that changes nothing does not confirm.
    NoOpWithoutFence,
    /// Readers read the table while they take the lease.
    LeaseBesideRead,
    /// Writers also publish if their first fence replaced another writer's.
    PublishOverForeignFence,
}

/// The kind of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Changes the record.
    Change,
    /// Finds nothing to change, and acknowledges that.
    NoOp,
}

/// The bounds of the exploration.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Reads of each reader, one after the other.
    pub reads: u8,
    /// Evictions and expiries of the entry.
    pub evictions: u8,
    /// Requests that are late or lost.
    pub failures: u8,
    /// Writers that stop for ever.
    pub crashes: u8,
}

#[derive(Debug, Clone, Copy)]
pub struct Coherence {
    pub variant: Variant,
    pub writers: [Kind; 2],
    pub bounds: Bounds,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Version of the record in the table.
    table: u8,
    cell: Cell,
    /// Requests that are executed late or never.
    late: Vec<Request>,
    readers: [Reader; 2],
    writers: [Writer; 2],
    pub ledger: Ledger,
    evictions: u8,
    failures: u8,
    crashes: u8,
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
    /// Has requested the lease.
    Leasing(Nonce),
    /// Is about to read the table, and may fill under the lease.
    Missed(Option<Nonce>),
    /// Has read the table.
    Found(u8, Option<Nonce>),
    /// Has read the table and has requested the lease, in variants that overlap both.
    FoundLeasing(u8, Nonce),
    /// Waits for the result of the other reader.
    Joined,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writer {
    step: Writing,
    nonces: u8,
}

/// A writer's fence from before its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Fence {
    nonce: Nonce,
    /// Whether it certainly replaced no other writer's fence.
    is_first: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writing {
    Idle,
    /// Is about to read the entry that its fence will replace. `found`: the decision is made
    /// already.
    Peeking {
        found: Option<u8>,
    },
    /// Has sent a fence. With `seen`, it replaces only that entry, which is no fence.
    Fencing {
        fence: Nonce,
        seen: Option<Cell>,
        found: Option<u8>,
    },
    /// Is about to read the record for its decision.
    Deciding {
        fence: Fence,
    },
    /// Is about to commit over the version found.
    Committing {
        fence: Fence,
        found: u8,
    },
    /// Has requested to replace its own fence by another one.
    Renewing {
        fence: Fence,
        confirm: Nonce,
        version: u8,
    },
    /// Has sent the confirming fence.
    Confirming {
        confirm: Nonce,
        version: u8,
    },
    /// Has sent the last request of the write, in variants that do not confirm.
    Invalidating {
        version: u8,
    },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A reader begins a read and looks into the cache.
    Look(usize),
    /// A reader begins a read, and the cache does not respond.
    LookInVain(usize),
    /// A reader begins a read and joins the other reader's.
    Join(usize),
    /// The lease request is executed, and its response arrives.
    Lease(usize),
    /// The lease request is late or lost.
    LeaseFails(usize),
    /// A reader reads the table.
    Read(usize),
    /// A reader returns the version that it read, and sends the fill.
    Return(usize),
    /// A writer begins.
    Begin(usize),
    /// A writer begins, and decides before it fences.
    BeginDecided(usize),
    /// A writer reads the entry that its fence will replace.
    Peek(usize),
    /// The writer's request is executed, and its response arrives.
    Serve(usize),
    /// The writer's request is late or lost.
    Fail(usize),
    /// A writer reads the record for its decision.
    Decide(usize),
    /// A writer commits.
    Commit(usize),
    /// A writer stops for ever.
    Crash(usize),
    /// The entry is evicted or expires.
    Vanish,
    /// A late request is executed.
    ExecuteLate(usize),
}

impl Model for Coherence {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let reader = Reader {
            step: Reading::Idle,
            floor: Floor::default(),
            reads: self.bounds.reads,
            nonces: 0,
        };
        let writer = Writer {
            step: Writing::Idle,
            nonces: 0,
        };
        vec![State {
            table: 0,
            cell: Cell::Empty,
            late: Vec::new(),
            readers: [reader.clone(), reader],
            writers: [writer.clone(), writer],
            ledger: Ledger::new(self.bounds.evictions == 0),
            evictions: self.bounds.evictions,
            failures: self.bounds.failures,
            crashes: self.bounds.crashes,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (r, reader) in state.readers.iter().enumerate() {
            match reader.step {
                Reading::Idle if reader.reads > 0 => {
                    actions.extend([Action::Look(r), Action::LookInVain(r)]);
                    if self.may_join(state.readers[1 - r].step) {
                        actions.push(Action::Join(r));
                    }
                }
                Reading::Leasing(_) | Reading::FoundLeasing(..) => {
                    actions.push(Action::Lease(r));
                    if state.failures > 0 {
                        actions.push(Action::LeaseFails(r));
                    }
                }
                Reading::Missed(_) => actions.push(Action::Read(r)),
                Reading::Found(..) => actions.push(Action::Return(r)),
                Reading::Idle | Reading::Joined => {}
            }
        }
        for (w, writer) in state.writers.iter().enumerate() {
            match writer.step {
                Writing::Idle => {
                    actions.push(Action::Begin(w));
                    if self.writers[w] == Kind::Change && self.fences_first(w) {
                        actions.push(Action::BeginDecided(w));
                    }
                }
                Writing::Peeking { .. } => actions.push(Action::Peek(w)),
                Writing::Fencing { .. }
                | Writing::Renewing { .. }
                | Writing::Confirming { .. }
                | Writing::Invalidating { .. } => {
                    actions.push(Action::Serve(w));
                    if state.failures > 0 {
                        actions.push(Action::Fail(w));
                    }
                }
                Writing::Deciding { .. } => actions.push(Action::Decide(w)),
                Writing::Committing { .. } => actions.push(Action::Commit(w)),
                Writing::Done => {}
            }
            if state.crashes > 0 && !matches!(writer.step, Writing::Idle | Writing::Done) {
                actions.push(Action::Crash(w));
            }
        }
        if state.evictions > 0 && state.cell != Cell::Empty {
            actions.push(Action::Vanish);
        }
        actions.extend((0..state.late.len()).map(Action::ExecuteLate));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Look(r) => self.look(&mut state, r),
            Action::LookInVain(r) => {
                begin_read(&mut state, r);
                state.readers[r].step = Reading::Missed(None);
            }
            Action::Join(r) => {
                begin_read(&mut state, r);
                state.readers[r].step = Reading::Joined;
            }
            Action::Lease(r) => {
                let nonce = state.readers[r].step.lease()?;
                let is_stored = lease_request(nonce).execute(&mut state.cell);
                leased(&mut state, r, is_stored.then_some(nonce));
            }
            Action::LeaseFails(r) => {
                state.failures -= 1;
                let nonce = state.readers[r].step.lease()?;
                send_late(&mut state, lease_request(nonce));
                leased(&mut state, r, None);
            }
            Action::Read(r) => {
                let Reading::Missed(lease) = state.readers[r].step else {
                    return None;
                };
                let found = state.table;
                state.readers[r].step = match lease {
                    Some(lease) if self.variant == Variant::LeaseBesideRead => {
                        Reading::FoundLeasing(found, lease)
                    }
                    lease => Reading::Found(found, lease),
                };
            }
            Action::Return(r) => self.return_read(&mut state, r)?,
            Action::Begin(w) => self.begin_write(&mut state, w),
            Action::BeginDecided(w) => {
                let found = Some(state.table);
                state.writers[w].step = Writing::Peeking { found };
            }
            Action::Peek(w) => peek(&mut state, w)?,
            Action::Serve(w) => {
                let is_stored = self.request(&state, w)?.execute(&mut state.cell);
                self.answered(&mut state, w, is_stored);
            }
            Action::Fail(w) => {
                state.failures -= 1;
                let request = self.request(&state, w)?;
                send_late(&mut state, request);
                self.failed(&mut state, w);
            }
            Action::Decide(w) => self.decide(&mut state, w)?,
            Action::Commit(w) => self.commit(&mut state, w)?,
            Action::Crash(w) => {
                state.crashes -= 1;
                if let Some(request) = self.request(&state, w) {
                    send_late(&mut state, request);
                }
                state.writers[w].step = Writing::Done;
            }
            Action::Vanish => {
                state.evictions -= 1;
                state.cell = Cell::Empty;
            }
            Action::ExecuteLate(i) => {
                let request = state.late.remove(i);
                request.execute(&mut state.cell);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always(FRESH, |_: &Self, state: &State| {
            !state.ledger.is_stale
        })];
        if self.bounds.evictions == 0 {
            properties.push(Property::always(MONOTONIC, |_: &Self, state: &State| {
                !state.ledger.went_back
            }));
        }
        properties
    }
}

impl Reading {
    fn lease(self) -> Option<Nonce> {
        match self {
            Self::Leasing(nonce) | Self::FoundLeasing(_, nonce) => Some(nonce),
            _ => None,
        }
    }
}

impl State {
    fn nonce_of_writer(&mut self, w: usize) -> Nonce {
        let writer = &mut self.writers[w];
        writer.nonces += 1;
        Nonce {
            client: 2 + w,
            number: writer.nonces,
        }
    }
}

fn begin_read(state: &mut State, r: usize) {
    let reader = &mut state.readers[r];
    reader.reads -= 1;
    reader.floor = state.ledger.floor();
}

fn lease_request(nonce: Nonce) -> Request {
    Request::SetIfAbsent(Cell::Lease(nonce))
}

/// The reader continues after the lease request, with or without the lease.
fn leased(state: &mut State, r: usize, lease: Option<Nonce>) {
    let reader = &mut state.readers[r];
    reader.step = match reader.step {
        Reading::FoundLeasing(found, _) => Reading::Found(found, lease),
        _ => Reading::Missed(lease),
    };
}

fn peek(state: &mut State, w: usize) -> Option<()> {
    let Writing::Peeking { found } = state.writers[w].step else {
        return None;
    };
    let is_fence = matches!(state.cell, Cell::Fence(_));
    state.writers[w].step = Writing::Fencing {
        fence: state.nonce_of_writer(w),
        seen: (!is_fence).then_some(state.cell),
        found,
    };
    Some(())
}

fn send_late(state: &mut State, request: Request) {
    state.late.push(request);
    state.late.sort_unstable();
}

impl Coherence {
    fn may_join(self, other: Reading) -> bool {
        match other {
            Reading::Leasing(_) | Reading::Missed(_) => true,
            Reading::Found(..) => self.variant == Variant::JoinAnyFlight,
            _ => false,
        }
    }

    fn look(self, state: &mut State, r: usize) {
        begin_read(state, r);
        let reader = &mut state.readers[r];
        reader.step = match state.cell {
            Cell::Value(version) => {
                state.ledger.return_read(version, reader.floor);
                Reading::Idle
            }
            Cell::Lease(_) | Cell::Fence(_) => Reading::Missed(None),
            Cell::Empty => {
                reader.nonces += 1;
                let nonce = Nonce {
                    client: r,
                    number: reader.nonces,
                };
                match self.variant {
                    Variant::ReadAndWriteAside
                    | Variant::DeleteAfterCommit
                    | Variant::FillWithoutLease
                    | Variant::LeaseBesideRead => Reading::Missed(Some(nonce)),
                    _ => Reading::Leasing(nonce),
                }
            }
        };
    }

    fn return_read(self, state: &mut State, r: usize) -> Option<()> {
        let Reading::Found(version, lease) = state.readers[r].step else {
            return None;
        };
        for reader in [r, 1 - r] {
            let reader_state = &mut state.readers[reader];
            if reader == r || reader_state.step == Reading::Joined {
                state.ledger.return_read(version, reader_state.floor);
                reader_state.step = Reading::Idle;
            }
        }
        if let Some(lease) = lease {
            let value = Cell::Value(version);
            send_late(
                state,
                match self.variant {
                    Variant::ReadAndWriteAside | Variant::DeleteAfterCommit => {
                        Request::Overwrite(value)
                    }
                    Variant::FillWithoutLease => Request::SetIfAbsent(value),
                    _ => Request::SetIfEqual {
                        expected: Cell::Lease(lease),
                        value,
                    },
                },
            );
        }
        Some(())
    }

    fn begin_write(self, state: &mut State, w: usize) {
        state.writers[w].step = if !self.fences_first(w) {
            let nonce = state.nonce_of_writer(w);
            let is_first = false;
            Writing::Deciding {
                fence: Fence { nonce, is_first },
            }
        } else if self.writers[w] == Kind::Change {
            Writing::Peeking { found: None }
        } else {
            Writing::Fencing {
                fence: state.nonce_of_writer(w),
                seen: None,
                found: None,
            }
        };
    }

    fn fences_first(self, w: usize) -> bool {
        let is_silent = self.writers[w] == Kind::NoOp && self.variant == Variant::NoOpWithoutFence;
        let has_no_fences = matches!(
            self.variant,
            Variant::ReadAndWriteAside
                | Variant::DeleteAfterCommit
                | Variant::AcknowledgeFailedDelete
        );
        !is_silent && !has_no_fences
    }

    /// The running request of a writer.
    fn request(self, state: &State, w: usize) -> Option<Request> {
        Some(match state.writers[w].step {
            Writing::Fencing { fence, seen, .. } => match seen {
                None => Request::Overwrite(Cell::Fence(fence)),
                Some(Cell::Empty) => Request::SetIfAbsent(Cell::Fence(fence)),
                Some(expected) => Request::SetIfEqual {
                    expected,
                    value: Cell::Fence(fence),
                },
            },
            Writing::Renewing { fence, confirm, .. } => Request::SetIfEqual {
                expected: Cell::Fence(fence.nonce),
                value: Cell::Fence(confirm),
            },
            Writing::Confirming { confirm, .. } => Request::Overwrite(Cell::Fence(confirm)),
            Writing::Invalidating { version } => match self.variant {
                Variant::ReadAndWriteAside | Variant::PublishAfterCommit => {
                    Request::Overwrite(Cell::Value(version))
                }
                _ => Request::Delete,
            },
            _ => return None,
        })
    }

    fn answered(self, state: &mut State, w: usize, is_stored: bool) {
        let step = state.writers[w].step;
        state.writers[w].step = match step {
            Writing::Fencing { seen, found, .. } if !is_stored && seen.is_some() => {
                Writing::Fencing {
                    fence: state.nonce_of_writer(w),
                    seen: None,
                    found,
                }
            }
            Writing::Fencing {
                fence, seen, found, ..
            } => {
                let fence = Fence {
                    nonce: fence,
                    is_first: seen.is_some(),
                };
                match found {
                    None => Writing::Deciding { fence },
                    Some(found) => Writing::Committing { fence, found },
                }
            }
            Writing::Renewing {
                fence,
                confirm,
                version,
            } if is_stored => {
                let is_first = fence.is_first || self.variant == Variant::PublishOverForeignFence;
                self.confirmed(state, confirm, version, is_first);
                Writing::Done
            }
            Writing::Renewing { version, .. } => {
                let confirm = state.nonce_of_writer(w);
                Writing::Confirming { confirm, version }
            }
            Writing::Confirming { confirm, version } => {
                self.confirmed(state, confirm, version, false);
                Writing::Done
            }
            Writing::Invalidating { version } => {
                state.ledger.acknowledge(version);
                Writing::Done
            }
            step => step,
        };
    }

    /// Acknowledges the write, and publishes it if no other writer can be between its fence
    /// and its confirmation.
    fn confirmed(self, state: &mut State, confirm: Nonce, version: u8, is_alone: bool) {
        state.ledger.acknowledge(version);
        if is_alone || self.variant == Variant::PublishOnAnyConfirm {
            let publish = Request::SetIfEqual {
                expected: Cell::Fence(confirm),
                value: Cell::Value(version),
            };
            send_late(state, publish);
        }
    }

    fn failed(self, state: &mut State, w: usize) {
        let step = state.writers[w].step;
        state.writers[w].step = match step {
            Writing::Fencing { found, .. } => Writing::Fencing {
                fence: state.nonce_of_writer(w),
                seen: None,
                found,
            },
            Writing::Renewing { version, .. } | Writing::Confirming { version, .. } => {
                Writing::Confirming {
                    confirm: state.nonce_of_writer(w),
                    version,
                }
            }
            Writing::Invalidating { version }
                if self.variant == Variant::AcknowledgeFailedDelete =>
            {
                state.ledger.acknowledge(version);
                Writing::Done
            }
            step => step,
        };
    }

    fn decide(self, state: &mut State, w: usize) -> Option<()> {
        let Writing::Deciding { fence } = state.writers[w].step else {
            return None;
        };
        let found = state.table;
        state.writers[w].step = match self.writers[w] {
            Kind::Change => Writing::Committing { fence, found },
            Kind::NoOp if self.variant == Variant::NoOpWithoutFence => {
                state.ledger.acknowledge(found);
                Writing::Done
            }
            Kind::NoOp => Writing::Confirming {
                confirm: state.nonce_of_writer(w),
                version: found,
            },
        };
        Some(())
    }

    fn commit(self, state: &mut State, w: usize) -> Option<()> {
        let Writing::Committing { fence, found } = state.writers[w].step else {
            return None;
        };
        if state.table != found {
            // The record has changed since the decision: the write starts again.
            state.writers[w].step = Writing::Idle;
            return Some(());
        }
        state.table += 1;
        let version = state.table;
        if self.variant == Variant::AcknowledgeBeforeConfirm {
            state.ledger.acknowledge(version);
        }
        state.writers[w].step = match self.variant {
            Variant::FenceBeforeCommitOnly => {
                state.ledger.acknowledge(version);
                Writing::Done
            }
            Variant::ReadAndWriteAside
            | Variant::DeleteAfterCommit
            | Variant::AcknowledgeFailedDelete
            | Variant::PublishAfterCommit => Writing::Invalidating { version },
            _ => Writing::Renewing {
                fence,
                confirm: state.nonce_of_writer(w),
                version,
            },
        };
        Some(())
    }
}
