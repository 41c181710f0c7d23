//! Where calls wait for their turn when too many are under way: in one line for
//! each caller, and whoever has used the processors least goes first.
//!
//! How many may be under way follows from the processors: while they keep up, as
//! many as the settings say, so that slow backends fill no lines; while they do
//! not, fewer and fewer, so that the flood of one caller waits here and not before
//! the calls of others.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use metrics::Gauge;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::cpu_load::{Turn, Turns};
use crate::auth::Name;

/// Calls of one caller that wait; those beyond are refused, but not at once: a
/// refusal that costs nothing to wait for is asked for again.
const MAX_WAITING: usize = 4096;
/// The processor time for which a call is given a place, in microseconds: one that
/// is expected to use more, a large batch, takes more places.
const PLACE_US: u64 = 100;
/// Calls for which there are places, however much they use, while the processors
/// keep up: a call that waits for a slow backend holds up no processor.
const FEWEST_CALLS: u64 = 16;
/// What a call is expected to use whose caller is not known, in microseconds.
const FIRST_US: u64 = 50;
/// By how much a caller's last call changes what its next one is expected to use:
/// 1/8 of the difference.
const MEMORY: u64 = 8;
/// The part of what a caller has used and is expected to use that is forgotten in
/// each window in which it is away: half of it in two seconds.
const FADING: u64 = 64;
/// Windows after which a caller who is alone again is taken to be: ten seconds.
const COMPANY: u32 = 200;
/// What a caller who has used less than others may use before it has to wait for
/// them, in microseconds. Who was away, or asked for little, saves up no more.
const CREDIT_US: u64 = 10_000;
/// The part of the places that is set aside for callers who have few: 1/4, at
/// least one.
const SET_ASIDE: u64 = 4;

/// Who calls, as far as turns are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::grpc) enum Flow {
    /// A caller with a name.
    Caller(Name),
    /// Where nobody has a name: a connection.
    Connection(u64),
}

/// Why a call does not get its turn.
#[derive(Debug)]
pub(super) struct Crowded;

/// Lets a bounded number of calls be under way.
#[derive(Debug)]
pub(super) struct Lobby {
    state: Mutex<State>,
    least: u64,
    greatest: u64,
    told: Gauge,
    /// For calls that use much.
    turns: Turns,
}

#[derive(Debug)]
struct State {
    taken: Taken,
    waiting: usize,
    /// Places there are.
    limit: u64,
    most_for_a_call: u64,
    /// Calls had to wait since this was last looked at.
    is_contended: bool,
    /// For how many windows there is taken to be more than one caller.
    company: u32,
    /// What whoever went last had used.
    clock_us: u64,
    lines: HashMap<Flow, Line, RandomState>,
}

#[derive(Debug)]
struct Line {
    /// What the caller has used, in microseconds: of the processors or, if that is
    /// more, its share of the places for the time that it held them.
    used_us: u64,
    /// What its calls use of the processors, in the mean, in microseconds.
    mean_us: u64,
    taken: u64,
    waiting: VecDeque<oneshot::Sender<Pass>>,
}

/// Places that are taken.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    /// Of those for everyone.
    common: u64,
    /// Of those that are set aside.
    set_aside: u64,
}

/// What a call takes when it begins.
#[derive(Debug, Clone, Copy)]
struct Claim {
    places: Taken,
    /// What its caller was charged in advance, in microseconds.
    expected_us: u64,
}

/// What a call used, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    /// Of the processors.
    busy_us: u64,
    /// Its places' part of all places, for the time that it held them.
    share_us: u64,
}

/// A call that is under way, until this is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    lobby: Arc<Lobby>,
    flow: Flow,
    since: Instant,
    claim: Claim,
    busy_us: AtomicU64,
    is_used: bool,
}

impl Lobby {
    /// At most `greatest` calls at once; never fewer than `least`, which is to
    /// keep the processors busy with calls that wait for nothing else. For those
    /// that do, the limit rises again, as the processors keep up. `told` tells it;
    /// calls that use much of the processors take `turns`.
    pub(super) fn new(least: usize, greatest: usize, told: Gauge, turns: Turns) -> Self {
        let [least, greatest] = [least.min(greatest), greatest].map(|it| it as u64);
        #[expect(clippy::cast_precision_loss, reason = "limits are small")]
        told.set(greatest as f64);
        Self {
            state: Mutex::new(State {
                taken: Taken::default(),
                waiting: 0,
                limit: greatest,
                most_for_a_call: (greatest / FEWEST_CALLS).max(1),
                is_contended: false,
                company: 0,
                clock_us: 0,
                lines: HashMap::default(),
            }),
            least,
            greatest,
            told,
            turns,
        }
    }

    /// A turn, if there is one at once.
    pub(super) fn try_enter(self: &Arc<Self>, flow: &Flow) -> Option<Pass> {
        let mut state = self.lock();
        state.line(flow);
        let claim = state.start(flow)?;
        Some(self.pass(flow, claim))
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
        while let Some((flow, turn)) = state.next() {
            let Some(claim) = state.start(&flow) else {
                return;
            };
            if let Err(mut pass) = turn.send(self.pass(&flow, claim)) {
                // Whoever waited has gone, and has used nothing.
                pass.is_used = false;
                state.end(&flow, claim, None);
            }
        }
    }

    fn pass(self: &Arc<Self>, flow: &Flow, claim: Claim) -> Pass {
        Pass {
            lobby: self.clone(),
            flow: flow.clone(),
            since: Instant::now(),
            claim,
            busy_us: AtomicU64::new(0),
            is_used: true,
        }
    }

    /// Lowers the limit while the processors do not keep up, and raises it again.
    /// To be called from time to time.
    pub(super) fn follow(self: &Arc<Self>, processors_keep_up: bool) {
        let mut state = self.lock();
        state.forget_idle();
        let is_contended = std::mem::take(&mut state.is_contended) || state.waiting > 0;
        let limit = match (state.has_company(), is_contended) {
            (true, _) if !processors_keep_up => state.limit / 2,
            (true, true) => state.limit + state.limit / 8 + 1,
            (true, false) | (false, _) => state.limit * 2,
        };
        state.limit = limit.clamp(self.least, self.greatest);
        #[expect(clippy::cast_precision_loss, reason = "limits are small")]
        self.told.set(state.limit as f64);
        self.admit(&mut state);
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

    /// Places that are set aside for callers who have few, also while others have
    /// more than there are, as the limit has fallen since.
    fn set_aside(&self) -> u64 {
        (self.limit / SET_ASIDE).max(1)
    }

    /// Whether there are places for everyone.
    fn has_common_room(&self) -> bool {
        self.taken.common < self.limit - self.set_aside()
    }

    /// How many places that are set aside one caller may have.
    fn set_aside_for_one(&self) -> u64 {
        if self.taken.set_aside < self.set_aside() {
            (self.set_aside() / (self.lines.len() as u64).max(1)).max(1)
        } else {
            0
        }
    }

    /// Which places a caller who has taken so many may take for what it expects to
    /// use. The last one to come may take more than are left, as many as there are.
    fn room(&self, taken: u64, expected_us: u64) -> Option<Taken> {
        let places = (expected_us / PLACE_US).clamp(1, self.most_for_a_call);
        if self.has_common_room() {
            return Some(Taken {
                common: places.min(self.limit - self.set_aside()),
                set_aside: 0,
            });
        }
        let left = self.set_aside_for_one().saturating_sub(taken);
        (left > 0).then(|| Taken {
            common: 0,
            set_aside: places.min(left),
        })
    }

    /// A call begins, if there is room.
    fn start(&mut self, flow: &Flow) -> Option<Claim> {
        let line = self.lines.get(flow)?;
        let (used_us, expected_us) = (line.used_us, line.mean_us);
        let places = self.room(line.taken, expected_us)?;
        let line = self.lines.get_mut(flow)?;
        line.taken += places.sum();
        line.used_us += expected_us;
        self.taken.common += places.common;
        self.taken.set_aside += places.set_aside;
        self.clock_us = self.clock_us.max(used_us);
        Some(Claim {
            places,
            expected_us,
        })
    }

    /// A call ends; what it used, if it began.
    fn end(&mut self, flow: &Flow, claim: Claim, used: Option<Used>) {
        self.taken.common -= claim.places.common;
        self.taken.set_aside -= claim.places.set_aside;
        let Some(line) = self.lines.get_mut(flow) else {
            return;
        };
        line.taken -= claim.places.sum();
        let Used { busy_us, share_us } = used.unwrap_or_default();
        line.used_us = (line.used_us + busy_us.max(share_us)).saturating_sub(claim.expected_us);
        if used.is_some() {
            let forgotten = line.mean_us / MEMORY;
            line.mean_us = (line.mean_us - forgotten + busy_us / MEMORY).max(FIRST_US);
        }
    }

    /// The first in the line of whoever has used least, of those for whom there is
    /// room.
    fn next(&mut self) -> Option<(Flow, oneshot::Sender<Pass>)> {
        while self.waiting > 0 {
            // Those who wait may be many, and most often there is no room.
            let for_one = if self.has_common_room() {
                u64::MAX
            } else {
                self.set_aside_for_one()
            };
            if for_one == 0 {
                return None;
            }
            let lines = self.lines.iter();
            let lines = lines.filter(|(_, line)| !line.waiting.is_empty() && line.taken < for_one);
            let (flow, _) = lines.min_by_key(|(_, line)| line.used_us)?;
            let flow = flow.clone();
            let line = self.lines.get_mut(&flow)?;
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

    /// Whether there have been several callers of late: one alone takes nothing away
    /// from anybody.
    fn has_company(&self) -> bool {
        self.company > 0
    }

    /// Forgets little by little what callers who are away have used, and that their
    /// calls use much; then them.
    fn forget_idle(&mut self) {
        let clock_us = self.clock_us;
        self.company = if self.lines.len() > 1 {
            COMPANY
        } else {
            self.company.saturating_sub(1)
        };
        self.lines.retain(|_, line| {
            let is_away = line.taken == 0 && line.waiting.is_empty();
            if is_away {
                let debit_us = line.used_us.saturating_sub(clock_us);
                line.used_us -= debit_us.div_ceil(FADING);
                line.mean_us -= line.mean_us.div_ceil(FADING);
            }
            !is_away || line.used_us > clock_us || line.mean_us >= FIRST_US
        });
    }
}

impl Taken {
    fn sum(self) -> u64 {
        self.common + self.set_aside
    }
}

impl Default for Line {
    fn default() -> Self {
        Self {
            used_us: 0,
            mean_us: FIRST_US,
            taken: 0,
            waiting: VecDeque::new(),
        }
    }
}

impl Pass {
    /// Whether the call uses much of the processors, as far as can be told: what it has
    /// used, or what its caller's calls use.
    pub(super) fn uses_much(&self) -> bool {
        let busy_us = self.busy_us.load(Ordering::Relaxed);
        let busy = Duration::from_micros(busy_us.max(self.claim.expected_us));
        busy > self.lobby.turns.much()
    }

    /// The turns of the call.
    pub(super) fn turns(&self) -> Turn {
        self.lobby.turns.of_a_call()
    }

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
        let held_us = micros(self.since.elapsed()) * self.claim.places.sum();
        let used = Used {
            busy_us: self.busy_us.load(Ordering::Relaxed),
            share_us: held_us / state.limit.max(1),
        };
        state.end(&self.flow, self.claim, Some(used));
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
    const LEAST: usize = 8;

    fn lobby(greatest: usize) -> Arc<Lobby> {
        Arc::new(Lobby::new(
            LEAST,
            greatest,
            Gauge::noop(),
            Turns::new(1, Duration::MAX),
        ))
    }

    /// Who is under way, and who waits.
    fn counts(lobby: &Lobby) -> (u64, usize) {
        let state = lobby.lock();
        (state.taken.sum(), state.waiting)
    }

    /// Takes all places, for as many callers as it needs.
    fn fill(lobby: &Arc<Lobby>) -> Vec<Pass> {
        let flows = (1000..).map(Flow::Connection);
        let passes = flows.map_while(|flow| lobby.try_enter(&flow));
        passes.collect()
    }

    /// Takes all places that this caller may have.
    fn take_all(lobby: &Arc<Lobby>, flow: &Flow) -> Vec<Pass> {
        std::iter::from_fn(|| lobby.try_enter(flow)).collect()
    }

    /// One call of this caller that uses so much of the processors.
    fn spend(lobby: &Arc<Lobby>, flow: &Flow, busy: Duration) {
        lobby.try_enter(flow).unwrap().charge(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_used_least_goes_first() {
        let lobby = lobby(2);
        let (hog, guest) = (Flow::Connection(1), Flow::Connection(2));
        spend(&lobby, &hog, Duration::from_millis(20));
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
        let passes = take_all(&lobby, &hog);
        assert_eq!(passes.len(), 12);
        let (more, other) = tokio::join!(lobby.enter(&hog, PATIENCE), async {
            lobby.enter(&guest, PATIENCE).await
        });
        assert!(more.is_err());
        assert!(other.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_expected_to_use_much_take_more_places() {
        let lobby = lobby(640);
        let flow = Flow::Connection(1);
        spend(&lobby, &flow, Duration::from_millis(16));
        // 20 places each, an eighth of what the first one used, as long as there is
        // one of 480.
        let passes = take_all(&lobby, &flow);
        assert_eq!((passes.len(), counts(&lobby)), (24, (480, 0)));
        let other = Flow::Connection(2);
        assert!(lobby.try_enter(&other).is_some());
        drop(passes);
        assert_eq!(counts(&lobby), (0, 0));
        for _ in 0..2000 {
            lobby.follow(true);
        }
        assert!(lobby.lock().lines.is_empty());
        assert_eq!(take_all(&lobby, &flow).len(), 480);
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
    async fn a_call_is_charged_for_each_place_that_it_holds() {
        let lobby = lobby(640);
        let flow = Flow::Connection(1);
        spend(&lobby, &flow, Duration::from_millis(16));
        let large = lobby.try_enter(&flow).unwrap();
        assert_eq!(large.claim.places.sum(), 20);
        tokio::time::advance(Duration::from_secs(4)).await;
        drop(large);
        // 20 of 640 places for four seconds, after 16 ms.
        assert_eq!(lobby.lock().line(&flow).used_us, 125_000 + 16_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_expected_use_follows_the_calls_by_an_eighth() {
        let lobby = lobby(640);
        let flow = Flow::Connection(1);
        let mean = || lobby.lock().line(&flow).mean_us;
        assert_eq!(mean(), 50);
        spend(&lobby, &flow, Duration::from_millis(16));
        assert_eq!(mean(), 50 - 6 + 2000);
        spend(&lobby, &flow, Duration::ZERO);
        assert_eq!(mean(), 2044 - 255);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_call_takes_no_more_places_than_there_are() {
        let lobby = lobby(640);
        let (flow, other) = (Flow::Connection(1), Flow::Connection(2));
        spend(&lobby, &flow, Duration::from_millis(16));
        let _other = lobby.try_enter(&other).unwrap();
        for _ in 0..10 {
            lobby.follow(false);
        }
        assert_eq!(lobby.lock().limit, LEAST as u64);
        let large = lobby.try_enter(&flow).unwrap();
        assert_eq!(
            (large.claim.places.common, large.claim.places.set_aside),
            (6, 0)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn callers_share_the_places_that_are_set_aside() {
        let lobby = lobby(64);
        let [hog, second, third] = [1, 2, 3].map(Flow::Connection);
        let all = take_all(&lobby, &hog);
        drop(lobby.try_enter(&second));
        drop(lobby.try_enter(&third));
        let (second, third) = (take_all(&lobby, &second), take_all(&lobby, &third));
        // A third of 16.
        assert_eq!((all.len(), second.len(), third.len()), (48, 5, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_set_aside_goes_to_a_caller_who_has_not_had_its_share() {
        let lobby = lobby(8);
        let [many, one, none] = [1, 2, 3].map(Flow::Connection);
        let _common = take_all(&lobby, &many);
        let _set_aside = lobby.try_enter(&one).unwrap();
        lobby.lock().line(&none).used_us = 5000;
        let mut waiting = Box::pin(lobby.enter(&one, PATIENCE));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let mut admitted = Box::pin(lobby.enter(&none, PATIENCE));
        assert!(futures_util::poll!(&mut admitted).is_ready());
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_is_forgotten_once_it_is_away_and_all_that_it_used_has_faded() {
        let lobby = lobby(640);
        let (away, busy) = (Flow::Connection(1), Flow::Connection(2));
        spend(&lobby, &away, Duration::from_millis(16));
        spend(&lobby, &busy, Duration::from_millis(16));
        let call = lobby.try_enter(&busy).unwrap();
        let clock_us = lobby.lock().clock_us;
        lobby.lock().line(&away).used_us = clock_us + 16_000;
        let after = |windows| {
            for _ in 0..windows {
                lobby.follow(true);
            }
            let state = lobby.lock();
            let line = state.lines.get(&away);
            (state.lines.len(), line.map(|line| line.mean_us >= FIRST_US))
        };
        assert_eq!(after(1), (2, Some(true)));
        // The expected use fades first.
        assert_eq!(after(299), (2, Some(false)));
        assert_eq!(after(300), (1, None));
        assert_eq!(lobby.lock().line(&busy).mean_us, 2044);
        drop(call);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_uses_much_by_its_own_use_or_by_that_of_its_caller() {
        let turns = Turns::new(1, Duration::from_millis(1));
        let lobby = Arc::new(Lobby::new(LEAST, 640, Gauge::noop(), turns));
        let flow = Flow::Connection(1);
        let call = lobby.try_enter(&flow).unwrap();
        call.charge(Duration::from_millis(1));
        assert!(!call.uses_much());
        call.charge(Duration::from_micros(1));
        assert!(call.uses_much());
        drop(call);
        spend(&lobby, &flow, Duration::from_millis(16));
        assert!(lobby.try_enter(&flow).unwrap().uses_much());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_leaves_no_trace() {
        let lobby = lobby(2);
        let flow = Flow::Connection(1);
        let passes = fill(&lobby);
        let enter = |calls| join_all((0..calls).map(|_| lobby.enter(&flow, PATIENCE)));
        let mut refused = Box::pin(enter(MAX_WAITING + 8));
        let began = Instant::now();
        assert!(futures_util::poll!(&mut refused).is_pending());
        assert_eq!(counts(&lobby), (2, MAX_WAITING));
        assert!(refused.await.iter().all(Result::is_err));
        // A call that finds the line full is not sent away sooner.
        assert_eq!(began.elapsed(), PATIENCE);
        let mut last = Box::pin(enter(1));
        assert!(futures_util::poll!(&mut last).is_pending());
        assert_eq!(counts(&lobby), (2, 1));
        drop(last);
        drop(passes);
        assert_eq!(counts(&lobby), (0, 0));
        let passes = fill(&lobby);
        assert_eq!(passes.len(), 2);
        assert!(lobby.try_enter(&flow).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_set_aside_is_there_also_while_others_have_more_than_there_is() {
        let lobby = lobby(64);
        let (hog, guest) = (Flow::Connection(1), Flow::Connection(2));
        let passes = take_all(&lobby, &hog);
        drop(lobby.try_enter(&guest));
        for _ in 0..8 {
            lobby.follow(false);
        }
        assert_eq!((passes.len(), lobby.lock().limit), (48, LEAST as u64));
        let call = lobby.try_enter(&guest);
        assert!(call.is_some());
        assert!(lobby.try_enter(&guest).is_none());
        assert!(lobby.try_enter(&hog).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn processors_that_do_not_keep_up_lower_the_limit_to_its_least_and_not_below() {
        let lobby = lobby(64);
        let passes = fill(&lobby);
        assert_eq!(passes.len(), 64);
        lobby.follow(false);
        assert_eq!(lobby.lock().limit, 32);
        for _ in 0..50 {
            lobby.follow(false);
        }
        assert_eq!(lobby.lock().limit, LEAST as u64);
        drop(passes);
        lobby.lock().is_contended = true;
        lobby.follow(true);
        assert_eq!(lobby.lock().limit, LEAST as u64 + 2);
        for _ in 0..3 {
            lobby.follow(true);
        }
        assert_eq!(lobby.lock().limit, 64);
        let alone = self::lobby(64);
        let pass = alone.try_enter(&Flow::Connection(1));
        alone.follow(false);
        assert_eq!((pass.is_some(), alone.lock().limit), (true, 64));
    }
}
