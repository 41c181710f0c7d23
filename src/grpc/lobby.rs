//! Where calls wait for their turn when too many are under way: in one line for
//! each caller, and whoever has used the processors least goes first.
//!
//! How many may be under way follows from how late the processors are: while they
//! keep up, as many as the settings say, so that slow backends fill no lines;
//! while they do not, fewer and fewer, so that the flood of one caller waits here
//! and not before the calls of others.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::Gauge;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

/// The least limit: enough to keep processors busy with calls that wait for
/// nothing else. For those that do, it rises again, as processors keep up.
const LEAST: usize = 8;
/// Calls of one caller that wait; those beyond are refused, but not at once: a
/// refusal that costs nothing to wait for is asked for again.
const MAX_WAITING: usize = 4096;
/// What a call is taken to use until it is known, in microseconds.
const ESTIMATE_US: u64 = 100;
/// What a caller who has used less than others may use before it has to wait for
/// them, in microseconds. Who was away, or asked for little, saves up no more.
const CREDIT_US: u64 = 10_000;
/// The part of the places that one caller does not get: 1/4, at least one.
const OTHERS_SHARE: usize = 4;
/// How often the limit follows the lateness of the processors.
const WINDOW: Duration = Duration::from_millis(50);
/// Mean lateness at which the processors do not keep up.
const LATE: Duration = Duration::from_millis(2);
/// Who calls, as far as turns are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Flow {
    /// A caller with a name.
    Caller(Arc<str>),
    /// Where nobody has a name: a connection.
    Connection(u64),
}

/// How late the processors are: how long calls that came lay there before they
/// were first looked at.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    sum_us: AtomicU64,
    count: AtomicU64,
}

impl Lateness {
    /// A call lay there for so long.
    pub(super) fn note(&self, late: Duration) {
        self.sum_us.fetch_add(micros(late), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The mean since this was last asked for. A call that is noted meanwhile may
    /// count in part.
    fn take_mean(&self) -> Duration {
        let sum_us = self.sum_us.swap(0, Ordering::Relaxed);
        let count = self.count.swap(0, Ordering::Relaxed);
        Duration::from_micros(sum_us / count.max(1))
    }
}

/// Why a call does not get its turn.
#[derive(Debug)]
pub(super) struct Crowded;

/// Lets a bounded number of calls be under way.
#[derive(Debug)]
pub(super) struct Lobby {
    state: Mutex<State>,
    greatest: usize,
    told: Gauge,
}

#[derive(Debug)]
struct State {
    under_way: usize,
    waiting: usize,
    limit: usize,
    /// Calls had to wait since this was last looked at.
    is_contended: bool,
    /// What whoever went last had used.
    clock_us: u64,
    lines: HashMap<Flow, Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// What the caller has used, in microseconds: of the processors or, if that is
    /// more, its share of the places for the time that it held them.
    used_us: u64,
    under_way: usize,
    waiting: VecDeque<oneshot::Sender<Pass>>,
}

/// A call that is under way, until this is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    lobby: Arc<Lobby>,
    flow: Flow,
    since: Instant,
    busy_us: AtomicU64,
    is_used: bool,
}

impl Lobby {
    /// At most `greatest` calls at once; `told` tells the limit.
    pub(super) fn new(greatest: usize, told: Gauge) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "limits are small")]
        told.set(greatest as f64);
        Self {
            state: Mutex::new(State {
                under_way: 0,
                waiting: 0,
                limit: greatest,
                is_contended: false,
                clock_us: 0,
                lines: HashMap::new(),
            }),
            greatest,
            told,
        }
    }

    /// A turn, if there is one at once.
    pub(super) fn try_enter(self: &Arc<Self>, flow: &Flow) -> Option<Pass> {
        let mut state = self.lock();
        let has_room = state.under_way < state.limit;
        if !has_room || state.line(flow).under_way >= state.share() {
            return None;
        }
        state.start(flow);
        Some(self.pass(flow))
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Crowded`], after `patience` and not before: its turn did not come.
    pub(super) async fn enter(
        self: &Arc<Self>,
        flow: &Flow,
        patience: Duration,
    ) -> Result<Pass, Crowded> {
        let (turn, admitted) = oneshot::channel();
        // Kept where it gets no place in the line: then nobody calls it.
        let _unplaced = {
            let mut state = self.lock();
            state.is_contended = true;
            state.forget_gone(flow);
            let line = state.line(flow);
            if line.waiting.len() < MAX_WAITING {
                line.waiting.push_back(turn);
                state.waiting += 1;
                // There may have been room since this caller looked.
                self.admit(&mut state);
                None
            } else {
                Some(turn)
            }
        };
        match timeout(patience, admitted).await {
            Ok(Ok(pass)) => Ok(pass),
            Ok(Err(_)) | Err(_) => Err(Crowded),
        }
    }

    /// Lets in whose turn it is, as long as there is room.
    fn admit(self: &Arc<Self>, state: &mut State) {
        while state.under_way < state.limit {
            let Some((flow, turn)) = state.next() else {
                return;
            };
            match turn.send(self.pass(&flow)) {
                Ok(()) => state.start(&flow),
                // Whoever waited has gone, and has used nothing.
                Err(mut pass) => pass.is_used = false,
            }
        }
    }

    fn pass(self: &Arc<Self>, flow: &Flow) -> Pass {
        Pass {
            lobby: self.clone(),
            flow: flow.clone(),
            since: Instant::now(),
            busy_us: AtomicU64::new(0),
            is_used: true,
        }
    }

    /// Keeps the limits as the lateness of the processors lets them be. Never
    /// ends.
    pub(super) async fn keep(lobbies: [&Arc<Self>; 2], lateness: &Lateness) {
        loop {
            sleep(WINDOW).await;
            let lateness = lateness.take_mean();
            for lobby in lobbies {
                lobby.follow(lateness);
            }
        }
    }

    fn follow(self: &Arc<Self>, lateness: Duration) {
        let mut state = self.lock();
        let is_contended = std::mem::take(&mut state.is_contended);
        let least = LEAST.min(self.greatest);
        state.limit = if lateness > LATE {
            // What is not used need not be taken away step by step.
            let used = state.limit.min(state.under_way.max(least));
            (used * 4 / 5).max(least)
        } else if is_contended {
            (state.limit + state.limit / 8 + 1).min(self.greatest)
        } else {
            self.greatest
        };
        #[expect(clippy::cast_precision_loss, reason = "limits are small")]
        self.told.set(state.limit as f64);
        self.admit(&mut state);
        state.forget_idle();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The line of whoever just came: with no more credit than others leave it.
    fn line(&mut self, flow: &Flow) -> &mut Line {
        let least = self.clock_us.saturating_sub(CREDIT_US);
        let line = self.lines.entry(flow.clone()).or_default();
        line.used_us = line.used_us.max(least);
        line
    }

    /// Places that one caller may have.
    fn share(&self) -> usize {
        self.limit - (self.limit / OTHERS_SHARE).max(1).min(self.limit - 1)
    }

    fn start(&mut self, flow: &Flow) {
        self.under_way += 1;
        let line = self.line(flow);
        line.under_way += 1;
        let used_us = line.used_us;
        line.used_us += ESTIMATE_US;
        self.clock_us = self.clock_us.max(used_us);
    }

    /// The first in the line of whoever has used least, and has not its share.
    fn next(&mut self) -> Option<(Flow, oneshot::Sender<Pass>)> {
        let share = self.share();
        while self.waiting > 0 {
            let lines = self.lines.iter_mut();
            let lines =
                lines.filter(|(_, line)| !line.waiting.is_empty() && line.under_way < share);
            let (flow, line) = lines.min_by_key(|(_, line)| line.used_us)?;
            let flow = flow.clone();
            while let Some(turn) = line.waiting.pop_front() {
                self.waiting -= 1;
                if !turn.is_closed() {
                    return Some((flow, turn));
                }
            }
        }
        None
    }

    /// Takes those out of a line who have given up. Patience is much the same for
    /// all: who came first gives up first.
    fn forget_gone(&mut self, flow: &Flow) {
        let Some(line) = self.lines.get_mut(flow) else {
            return;
        };
        while line.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            line.waiting.pop_front();
            self.waiting -= 1;
        }
    }

    /// Forgets callers who are away and would come back with nothing to their
    /// debit.
    fn forget_idle(&mut self) {
        let clock_us = self.clock_us;
        self.lines.retain(|_, line| {
            line.under_way > 0 || !line.waiting.is_empty() || line.used_us > clock_us
        });
    }
}

impl Pass {
    /// The call has kept a processor busy for so long.
    pub(super) fn charge(&self, busy: Duration) {
        self.busy_us.fetch_add(micros(busy), Ordering::Relaxed);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.is_used {
            return;
        }
        let lobby = self.lobby.clone();
        let mut state = lobby.lock();
        state.under_way -= 1;
        let share_us = micros(self.since.elapsed()) / (state.limit as u64).max(1);
        let used_us = self.busy_us.load(Ordering::Relaxed).max(share_us);
        if let Some(line) = state.lines.get_mut(&self.flow) {
            line.under_way -= 1;
            line.used_us = (line.used_us + used_us).saturating_sub(ESTIMATE_US);
        }
        lobby.admit(&mut state);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};

    const PATIENCE: Duration = Duration::from_millis(100);

    fn lobby(greatest: usize) -> Arc<Lobby> {
        Arc::new(Lobby::new(greatest, Gauge::noop()))
    }

    /// Who is under way, and who waits.
    fn counts(lobby: &Lobby) -> (usize, usize) {
        let state = lobby.lock();
        (state.under_way, state.waiting)
    }

    /// Takes all places, for as many callers as it needs.
    fn fill(lobby: &Arc<Lobby>) -> Vec<Pass> {
        let flows = (1000..).map(Flow::Connection);
        let passes = flows.map_while(|flow| lobby.try_enter(&flow));
        passes.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_used_least_goes_first() {
        let lobby = lobby(2);
        let (hog, guest) = (Flow::Connection(1), Flow::Connection(2));
        let spent = lobby.try_enter(&hog).unwrap();
        spent.charge(Duration::from_millis(20));
        drop(spent);
        let mut filled = fill(&lobby);
        let calls = [&hog, &hog, &hog, &guest, &guest].map(|flow| {
            let lobby = lobby.clone();
            async move {
                let pass = lobby.enter(flow, PATIENCE).await.unwrap();
                (flow.clone(), pass)
            }
        });
        let mut waiting: FuturesUnordered<_> = calls.map(Box::pin).into_iter().collect();
        assert!(futures_util::poll!(waiting.next()).is_pending());
        filled.pop();
        let mut order = Vec::new();
        while let Some((flow, pass)) = waiting.next().await {
            pass.charge(Duration::from_micros(if flow == hog { 1000 } else { 100 }));
            order.push(flow == guest);
            drop(pass);
        }
        assert_eq!(order, [true, true, false, false, false]);
        assert_eq!(counts(&lobby), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_does_not_get_all_places_however_little_it_uses() {
        let lobby = lobby(16);
        let (hog, guest) = (Flow::Connection(1), Flow::Connection(2));
        let passes: Vec<_> = std::iter::from_fn(|| lobby.try_enter(&hog)).collect();
        assert_eq!(passes.len(), 12);
        let (more, other) = tokio::join!(lobby.enter(&hog, PATIENCE), async {
            lobby.enter(&guest, PATIENCE).await
        });
        assert!(more.is_err());
        assert!(other.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn places_that_are_held_are_charged_and_credit_is_bounded() {
        let lobby = lobby(4);
        let (holder, trickle) = (Flow::Connection(1), Flow::Connection(2));
        let always = lobby.try_enter(&trickle).unwrap();
        let held = lobby.try_enter(&holder).unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
        drop(held);
        let used = |flow: &Flow| lobby.lock().line(flow).used_us;
        assert_eq!(used(&holder), 1_000_000);
        drop(lobby.try_enter(&holder));
        // Who always has a call under way saves nothing up either.
        assert_eq!(used(&trickle), 1_000_000 - CREDIT_US);
        drop(always);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_leaves_no_trace() {
        let lobby = lobby(2);
        let flow = Flow::Connection(1);
        let passes = fill(&lobby);
        let refused = join_all((0..MAX_WAITING + 8).map(|_| lobby.enter(&flow, PATIENCE)));
        let began = Instant::now();
        assert!(refused.await.iter().all(Result::is_err));
        // Those whom no line took were not sent away sooner.
        assert_eq!(began.elapsed(), PATIENCE);
        drop(passes);
        assert_eq!(counts(&lobby), (0, 0));
        let passes = fill(&lobby);
        assert_eq!(passes.len(), 2);
        assert!(lobby.try_enter(&flow).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn late_processors_lower_the_limit_to_its_least_and_not_below() {
        let lobby = lobby(64);
        let passes = fill(&lobby);
        assert_eq!(passes.len(), 64);
        lobby.follow(Duration::from_millis(3));
        assert_eq!(lobby.lock().limit, 51);
        for _ in 0..50 {
            lobby.follow(Duration::from_millis(3));
        }
        assert_eq!(lobby.lock().limit, LEAST);
        drop(passes);
        lobby.lock().is_contended = true;
        lobby.follow(Duration::ZERO);
        assert_eq!(lobby.lock().limit, LEAST + 2);
        lobby.follow(Duration::ZERO);
        assert_eq!(lobby.lock().limit, 64);
    }
}
