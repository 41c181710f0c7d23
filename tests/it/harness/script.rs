//! Records the calls that a server gets, and does to them what a test wants.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore};

use super::PATIENCE;

/// Begins the names of calls that the service makes for itself, beside the RPCs.
pub const BESIDE: &str = "Beside";

/// The body of an answer by which DynamoDB refuses a call.
pub fn error_body(code: &str) -> String {
    format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"said the test"}}"#)
}

/// What happens to calls.
#[derive(Default)]
pub struct Script {
    seen: Mutex<Vec<(String, String)>>,
    /// W3C's `traceparent` and `tracestate` of calls that had them.
    traces: Mutex<Vec<String>>,
    rules: Mutex<Vec<Rule>>,
    /// What calls cost the table, in capacity units; `None`: not asked for.
    charges: Mutex<Option<Vec<(String, f64)>>>,
    /// Decides instead of the rules.
    chaos: Option<Arc<dyn Chaos>>,
    /// Whether no call arrives any more.
    is_cut_off: AtomicBool,
}

/// Decides what becomes of each call.
#[tonic::async_trait]
pub trait Chaos: Send + Sync + 'static {
    /// A call arrives.
    async fn meet(&self, call: &str, about: &str) -> Fate;
}

struct Rule {
    call: &'static str,
    about: String,
    /// Matching calls to let pass before the rule applies.
    skip: usize,
    /// Matching calls that the rule applies to.
    times: usize,
    action: Action,
}

#[derive(Clone)]
enum Action {
    Hold(Arc<Gate>),
    HoldReply(Arc<Gate>),
    Wait(Arc<Semaphore>),
    Answer(u16, String),
    Delay(Duration),
    Refuse,
    LoseReply,
}

/// Where a call waits.
#[derive(Debug, Default)]
pub struct Gate {
    reached: Notify,
    released: Notify,
}

/// What became of a call.
#[derive(Debug)]
pub enum Fate {
    /// It is to be served.
    Served,
    /// It is to be refused.
    Refused,
    /// It is to be served, and its reply lost.
    Unanswered,
    /// It is to be served, and its reply to wait.
    AnsweredLate(Arc<Gate>),
    /// It is to be answered with this status and body, and not served.
    Answered(u16, String),
    /// It is to be served twice.
    ServedTwice,
    /// It is to be served, and its reply to take so long.
    Slow(Duration),
    /// Of a cache's batch: it is to be served, and its replies to end after so
    /// many.
    Cut(usize),
    /// It is to be served, and never answered.
    Abandoned,
}

impl Gate {
    pub async fn pass(&self) {
        self.reached.notify_one();
        self.released.notified().await;
    }
}

/// A call that waits until it is released, or until this is dropped.
pub struct Held(Arc<Gate>);

impl Held {
    /// Waits until the call is there.
    pub async fn reached(&self) {
        tokio::time::timeout(PATIENCE, self.0.reached.notified())
            .await
            .expect("the call that is to be held never came");
    }

    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.released.notify_one();
    }
}

/// Calls that wait until this is dropped.
pub struct HeldAll(Arc<Semaphore>);

impl Drop for HeldAll {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Script {
    /// A script that remembers no calls.
    pub fn chaotic(chaos: Arc<dyn Chaos>) -> Self {
        Self {
            chaos: Some(chaos),
            ..Self::default()
        }
    }

    /// Holds the next `call` about something whose text contains `about`, after
    /// letting `skip` such calls pass.
    pub fn hold(&self, call: &'static str, about: &str, skip: usize) -> Held {
        let gate = Arc::new(Gate::default());
        self.add(call, about, skip, 1, Action::Hold(gate.clone()));
        Held(gate)
    }

    /// Serves the next `call` about something whose text contains `about`, and
    /// holds its reply.
    pub fn hold_reply(&self, call: &'static str, about: &str) -> Held {
        let gate = Arc::new(Gate::default());
        self.add(call, about, 0, 1, Action::HoldReply(gate.clone()));
        Held(gate)
    }

    /// Holds every further `call` about something whose text contains `about`.
    pub fn hold_all(&self, call: &'static str, about: &str) -> HeldAll {
        let opens = Arc::new(Semaphore::new(0));
        self.add(call, about, 0, usize::MAX, Action::Wait(opens.clone()));
        HeldAll(opens)
    }

    /// Answers the next `times` such calls with this status and body.
    pub fn answer(&self, call: &'static str, times: usize, status: u16, body: &str) {
        self.add(call, "", 0, times, Action::Answer(status, body.to_owned()));
    }

    /// Answers every such call about something whose text contains `about`.
    pub fn answer_about(&self, call: &'static str, about: &str, status: u16, body: &str) {
        let action = Action::Answer(status, body.to_owned());
        self.add(call, about, 0, usize::MAX, action);
    }

    /// Delays every further `call`.
    pub fn delay(&self, call: &'static str, delay: Duration) {
        self.delay_about(call, "", delay);
    }

    /// Delays every further `call` about something whose text contains `about`.
    pub fn delay_about(&self, call: &'static str, about: &str, delay: Duration) {
        self.add(call, about, 0, usize::MAX, Action::Delay(delay));
    }

    /// Refuses the next `times` such calls.
    pub fn refuse(&self, call: &'static str, about: &str, skip: usize, times: usize) {
        self.add(call, about, skip, times, Action::Refuse);
    }

    /// Serves the next such call, but loses its reply.
    pub fn lose_reply(&self, call: &'static str, about: &str) {
        self.add(call, about, 0, 1, Action::LoseReply);
    }

    /// From now on, no call arrives. Calls that wait go on.
    pub fn cut_off(&self) {
        self.is_cut_off.store(true, Ordering::SeqCst);
    }

    /// Forgets all rules.
    pub fn behave(&self) {
        self.rules.lock().unwrap().clear();
    }

    fn add(&self, call: &'static str, about: &str, skip: usize, times: usize, action: Action) {
        self.rules.lock().unwrap().push(Rule {
            call,
            about: about.to_owned(),
            skip,
            times,
            action,
        });
    }

    pub fn forget_calls(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// From now on, the table says what calls cost.
    pub fn meter(&self) {
        *self.charges.lock().unwrap() = Some(Vec::new());
    }

    pub fn is_metered(&self) -> bool {
        self.charges.lock().unwrap().is_some()
    }

    pub fn charge(&self, call: &str, units: f64) {
        let mut charges = self.charges.lock().unwrap();
        charges
            .get_or_insert_default()
            .push((call.to_owned(), units));
    }

    /// The units of the calls since they were last metered, without those that
    /// the service makes for itself.
    pub fn charged(&self) -> f64 {
        let charges = self.charges.lock().unwrap();
        let charges = charges.iter().flatten();
        let of_rpcs = charges.filter(|(call, _)| !call.starts_with(BESIDE));
        of_rpcs.map(|(_, units)| units).sum()
    }

    /// The calls since they were last forgotten, as `2 x Get`, without those that
    /// the service makes for itself.
    pub fn calls(&self) -> Vec<String> {
        let mut counts = BTreeMap::<_, usize>::new();
        let seen = self.seen.lock().unwrap();
        for (call, _) in seen.iter().filter(|(call, _)| !call.starts_with(BESIDE)) {
            *counts.entry(call.clone()).or_default() += 1;
        }
        let counts = counts.into_iter();
        counts
            .map(|(call, count)| format!("{count} x {call}"))
            .collect()
    }

    /// What the calls of this name, since they were last forgotten, were about.
    pub fn seen(&self, call: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let seen = seen.iter().filter(|(name, _)| name == call);
        seen.map(|(_, about)| about.clone()).collect()
    }

    /// Every call, also those that the service makes for itself, and what it was
    /// about.
    pub fn all_seen(&self) -> Vec<(String, String)> {
        let seen = self.seen.lock().unwrap();
        let seen = seen.iter().map(|(call, about)| {
            let call = call.strip_prefix(BESIDE).unwrap_or(call);
            (call.to_owned(), about.clone())
        });
        seen.collect()
    }

    /// A call has these headers.
    pub fn in_trace(&self, parent: &str, state: &str) {
        let headers = format!("{parent} {state}");
        self.traces.lock().unwrap().push(headers);
    }

    /// The headers of all calls that had them.
    pub fn traces(&self) -> Vec<String> {
        self.traces.lock().unwrap().clone()
    }

    /// A call arrives.
    pub async fn meet(&self, call: &str, about: &str) -> Fate {
        if let Some(chaos) = &self.chaos {
            return chaos.meet(call, about).await;
        }
        if self.is_cut_off.load(Ordering::SeqCst) {
            return Fate::Refused;
        }
        let seen = (call.to_owned(), about.to_owned());
        self.seen.lock().unwrap().push(seen);
        match self.next_action(call, about) {
            None => Fate::Served,
            Some(Action::Refuse) => Fate::Refused,
            Some(Action::LoseReply) => Fate::Unanswered,
            Some(Action::HoldReply(gate)) => Fate::AnsweredLate(gate),
            Some(Action::Answer(status, body)) => Fate::Answered(status, body),
            Some(Action::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Fate::Served
            }
            Some(Action::Hold(gate)) => {
                gate.pass().await;
                Fate::Served
            }
            Some(Action::Wait(opens)) => {
                // It has no permits: acquiring ends when it is closed.
                let _ = opens.acquire().await;
                Fate::Served
            }
        }
    }

    fn next_action(&self, call: &str, about: &str) -> Option<Action> {
        let mut rules = self.rules.lock().unwrap();
        for rule in rules.iter_mut() {
            if rule.call != call || !about.contains(&rule.about) || rule.times == 0 {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times -= 1;
            return Some(rule.action.clone());
        }
        None
    }
}
