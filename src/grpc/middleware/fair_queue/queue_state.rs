//! The state of a fair queue: slots, the usage of each caller, and which call is next.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use super::{FlowKey, Permit};

/// Waiting calls of one caller. Further calls are rejected, but not at once: a
/// rejection that costs no waiting invites an immediate retry.
pub(super) const MAX_WAITING: usize = 4096;
/// CPU time that one slot stands for, in microseconds. A call that is expected to use
/// more, such as a large batch, takes more slots.
const SLOT_US: u64 = 100;
/// Calls that always fit while the processors keep up, even if each takes the most slots: a
/// call that waits for a slow backend uses no CPU.
const MIN_CALLS: u64 = 16;
/// Expected CPU time of a call of an unknown caller, in microseconds.
pub(super) const INITIAL_MEAN_US: u64 = 50;
/// Weight of a caller's last call in its mean CPU time: 1/8.
const MEAN_WEIGHT: u64 = 8;
/// Part of an absent caller's usage and mean that is forgotten in each window: half of
/// them are gone after two seconds.
const DECAY: u64 = 64;
/// Windows after which a sole caller is treated as uncontended: ten seconds.
const CONTENTION_WINDOWS: u32 = 200;
/// Largest credit of a caller that was absent, or called rarely, in microseconds of usage:
/// it is served before callers with more usage until it has used its credit.
pub(super) const CREDIT_US: u64 = 10_000;
/// Part of the slots that is reserved for callers that hold few: 1/4, at least one.
const RESERVED_PART: u64 = 4;

/// The slots and the callers of a queue.
#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) in_use: Slots,
    pub(super) waiting: usize,
    /// Number of slots.
    pub(super) limit: u64,
    max_slots_per_call: u64,
    /// Whether a call had to wait since the limit was last adjusted.
    pub(super) is_contended: bool,
    /// Remaining windows in which the queue counts as having several callers.
    contention_windows: u32,
    /// Usage of the caller that was granted the last permit: the virtual time of the
    /// queue.
    pub(super) clock_us: u64,
    pub(super) callers: HashMap<FlowKey, CallerQueue, RandomState>,
}

#[derive(Debug)]
pub(super) struct CallerQueue {
    /// Usage of the caller, in microseconds: CPU time or, if that is larger, its share of
    /// the slots over the time that it held them.
    pub(super) used_us: u64,
    /// Mean CPU time of the caller's calls, in microseconds.
    pub(super) mean_us: u64,
    slots_in_use: u64,
    waiting: VecDeque<oneshot::Sender<Permit>>,
}

/// Numbers of slots.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slots {
    /// Slots that every caller may take.
    pub(super) shared: u64,
    /// Slots that are reserved for callers that hold few.
    pub(super) reserved: u64,
}

/// Cost of a call, as estimated when it starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) slots: Slots,
    /// CPU time that its caller is charged in advance, in microseconds.
    pub(super) expected_us: u64,
}

/// Resources that a call used, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// CPU time.
    pub(super) busy_us: u64,
    /// Share of its slots in all slots, over the time that it held them.
    pub(super) share_us: u64,
}

impl QueueState {
    /// An empty queue with `limit` slots.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            in_use: Slots::default(),
            waiting: 0,
            limit,
            max_slots_per_call: (limit / MIN_CALLS).max(1),
            is_contended: false,
            contention_windows: 0,
            clock_us: 0,
            callers: HashMap::default(),
        }
    }

    /// Adds a call to the queue of its caller. Returns `sender` if that queue is full.
    pub(super) fn enqueue(
        &mut self,
        flow: &FlowKey,
        sender: oneshot::Sender<Permit>,
    ) -> Option<oneshot::Sender<Permit>> {
        let caller = self.caller(flow);
        if caller.waiting.len() >= MAX_WAITING {
            return Some(sender);
        }
        caller.waiting.push_back(sender);
        self.waiting += 1;
        None
    }

    /// The queue of a caller, new if needed. Its credit is at most [`CREDIT_US`].
    pub(super) fn caller(&mut self, flow: &FlowKey) -> &mut CallerQueue {
        let least = self.clock_us.saturating_sub(CREDIT_US);
        let caller = self.callers.entry(flow.clone()).or_default();
        caller.used_us = caller.used_us.max(least);
        caller
    }

    /// Slots that are reserved for callers that hold few. They stay reserved even if the limit
    /// fell and other callers hold more slots than it.
    fn reserved(&self) -> u64 {
        (self.limit / RESERVED_PART).max(1)
    }

    /// Whether shared slots are free.
    fn has_shared_slots(&self) -> bool {
        self.in_use.shared < self.limit - self.reserved()
    }

    /// Reserved slots that one caller may hold.
    fn reserved_per_caller(&self) -> u64 {
        if self.in_use.reserved < self.reserved() {
            (self.reserved() / (self.callers.len() as u64).max(1)).max(1)
        } else {
            0
        }
    }

    /// The slots that a caller with `slots_in_use` may take for a call of `expected_us`.
    /// The last call that fits may take more shared slots than are free, up to all of them.
    fn available(&self, slots_in_use: u64, expected_us: u64) -> Option<Slots> {
        let slots = (expected_us / SLOT_US).clamp(1, self.max_slots_per_call);
        if self.has_shared_slots() {
            return Some(Slots {
                shared: slots.min(self.limit - self.reserved()),
                reserved: 0,
            });
        }
        let left = self.reserved_per_caller().saturating_sub(slots_in_use);
        (left > 0).then(|| Slots {
            shared: 0,
            reserved: slots.min(left),
        })
    }

    /// Starts a call, if there is room.
    pub(super) fn start(&mut self, flow: &FlowKey) -> Option<Cost> {
        let caller = self.callers.get(flow)?;
        let (used_us, expected_us) = (caller.used_us, caller.mean_us);
        let slots = self.available(caller.slots_in_use, expected_us)?;
        let caller = self.callers.get_mut(flow)?;
        caller.slots_in_use += slots.sum();
        caller.used_us += expected_us;
        self.in_use.shared += slots.shared;
        self.in_use.reserved += slots.reserved;
        self.clock_us = self.clock_us.max(used_us);
        Some(Cost { slots, expected_us })
    }

    /// Ends a call. `usage` is `None` if it never ran.
    pub(super) fn end(&mut self, flow: &FlowKey, cost: Cost, usage: Option<Usage>) {
        self.in_use.shared -= cost.slots.shared;
        self.in_use.reserved -= cost.slots.reserved;
        let Some(caller) = self.callers.get_mut(flow) else {
            return;
        };
        caller.slots_in_use -= cost.slots.sum();
        let Usage { busy_us, share_us } = usage.unwrap_or_default();
        caller.used_us = (caller.used_us + busy_us.max(share_us)).saturating_sub(cost.expected_us);
        if usage.is_some() {
            let forgotten = caller.mean_us / MEAN_WEIGHT;
            let mean_us = caller.mean_us - forgotten + busy_us / MEAN_WEIGHT;
            caller.mean_us = mean_us.max(INITIAL_MEAN_US);
        }
    }

    /// The next waiting call: the first of the caller with the lowest usage, among the
    /// callers that there is room for.
    pub(super) fn next(&mut self) -> Option<(FlowKey, oneshot::Sender<Permit>)> {
        while self.waiting > 0 {
            // Checked first: many callers may wait, and most often there is no room.
            let max_in_use = if self.has_shared_slots() {
                u64::MAX
            } else {
                self.reserved_per_caller()
            };
            if max_in_use == 0 {
                return None;
            }
            let callers = self.callers.iter();
            let callers = callers.filter(|(_, caller)| {
                !caller.waiting.is_empty() && caller.slots_in_use < max_in_use
            });
            let (flow, _) = callers.min_by_key(|(_, caller)| caller.used_us)?;
            let flow = flow.clone();
            let caller = self.callers.get_mut(&flow)?;
            while let Some(sender) = caller.waiting.pop_front() {
                self.waiting -= 1;
                if !sender.is_closed() {
                    return Some((flow, sender));
                }
            }
        }
        None
    }

    /// Removes cancelled calls from the front of a caller's queue. All calls wait about
    /// equally long, so the first ones are cancelled first.
    pub(super) fn remove_cancelled(&mut self, flow: &FlowKey) {
        let Some(caller) = self.callers.get_mut(flow) else {
            return;
        };
        while caller
            .waiting
            .front()
            .is_some_and(oneshot::Sender::is_closed)
        {
            caller.waiting.pop_front();
            self.waiting -= 1;
        }
    }

    /// Whether there were several callers lately. A sole caller delays no other.
    pub(super) fn has_several_callers(&self) -> bool {
        self.contention_windows > 0
    }

    /// Decays the usage and the mean of absent callers, and removes those with neither.
    pub(super) fn decay_idle(&mut self) {
        let clock_us = self.clock_us;
        self.contention_windows = if self.callers.len() > 1 {
            CONTENTION_WINDOWS
        } else {
            self.contention_windows.saturating_sub(1)
        };
        self.callers.retain(|_, caller| {
            let is_absent = caller.slots_in_use == 0 && caller.waiting.is_empty();
            if is_absent {
                let debit_us = caller.used_us.saturating_sub(clock_us);
                caller.used_us -= debit_us.div_ceil(DECAY);
                caller.mean_us -= caller.mean_us.div_ceil(DECAY);
            }
            !is_absent || caller.used_us > clock_us || caller.mean_us >= INITIAL_MEAN_US
        });
    }
}

impl Slots {
    pub(super) fn sum(self) -> u64 {
        self.shared + self.reserved
    }
}

impl Default for CallerQueue {
    fn default() -> Self {
        Self {
            used_us: 0,
            mean_us: INITIAL_MEAN_US,
            slots_in_use: 0,
            waiting: VecDeque::new(),
        }
    }
}
