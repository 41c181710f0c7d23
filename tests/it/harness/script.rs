//! Records the calls to a server, and applies the rules of a test to them.

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

/// The prefix of the names of the service's background calls.
pub const BESIDE: &str = "Beside";

/// The body of a DynamoDB error response.
pub fn error_body(code: &str) -> String {
    format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"said the test"}}"#)
}

/// The recorded calls to a server, and the rules for further ones.
#[derive(Default)]
pub struct Script {
    seen: Mutex<Vec<(String, String)>>,
    /// W3C's `traceparent` and `tracestate` of calls that had them.
    traces: Mutex<Vec<String>>,
    rules: Mutex<Vec<Rule>>,
    /// The capacity units of calls; `None` if they are not metered.
    charges: Mutex<Option<Vec<(String, f64)>>>,
    /// Replaces the rules.
    chaos: Option<Arc<dyn Chaos>>,
    /// Whether all calls are rejected.
    is_cut_off: AtomicBool,
}

/// Decides the fate of each call.
#[tonic::async_trait]
pub trait Chaos: Send + Sync + 'static {
    /// Returns the fate of a call that has arrived.
    async fn on_call(&self, call: &str, about: &str) -> Fate;
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
    Respond(u16, String),
    Delay(Duration),
    Refuse,
    LoseReply,
}

/// Holds a call.
#[derive(Debug, Default)]
pub struct Gate {
    reached: Notify,
    released: Notify,
}

/// The fate of a call.
#[derive(Debug)]
pub enum Fate {
    /// It is served.
    Served,
    /// It is rejected.
    Refused,
    /// It is served, and its reply is lost.
    Unanswered,
    /// It is served, and its reply is held.
    ReplyHeld(Arc<Gate>),
    /// It is not served. Its response has this status and body.
    Responded(u16, String),
    /// It is served twice.
    ServedTwice,
    /// It is served, and its reply is delayed.
    Slow(Duration),
    /// A batch of the cache: it is served, and its replies end after this many.
    Cut(usize),
    /// It is served, and its reply is never sent.
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
    /// Waits until the call arrives.
    pub async fn reached(&self) {
        tokio::time::timeout(PATIENCE, self.0.reached.notified())
            .await
            .expect("the call to be held did not arrive");
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
    /// A script without rules. It records no calls.
    pub fn chaotic(chaos: Arc<dyn Chaos>) -> Self {
        Self {
            chaos: Some(chaos),
            ..Self::default()
        }
    }

    /// Holds the next `call` whose text contains `about`, after letting `skip` such calls
    /// pass.
    pub fn hold(&self, call: &'static str, about: &str, skip: usize) -> Held {
        let gate = Arc::new(Gate::default());
        self.add(call, about, skip, 1, Action::Hold(gate.clone()));
        Held(gate)
    }

    /// Serves the next `call` whose text contains `about`, and holds its reply.
    pub fn hold_reply(&self, call: &'static str, about: &str) -> Held {
        let gate = Arc::new(Gate::default());
        self.add(call, about, 0, 1, Action::HoldReply(gate.clone()));
        Held(gate)
    }

    /// Holds every further `call` whose text contains `about`.
    pub fn hold_all(&self, call: &'static str, about: &str) -> HeldAll {
        let opens = Arc::new(Semaphore::new(0));
        self.add(call, about, 0, usize::MAX, Action::Wait(opens.clone()));
        HeldAll(opens)
    }

    /// Responds to the next `times` such calls with this status and body.
    pub fn answer(&self, call: &'static str, times: usize, status: u16, body: &str) {
        self.add(call, "", 0, times, Action::Respond(status, body.to_owned()));
    }

    /// Responds to every further `call` whose text contains `about`.
    pub fn answer_about(&self, call: &'static str, about: &str, status: u16, body: &str) {
        let action = Action::Respond(status, body.to_owned());
        self.add(call, about, 0, usize::MAX, action);
    }

    /// Delays every further `call`.
    pub fn delay(&self, call: &'static str, delay: Duration) {
        self.delay_about(call, "", delay);
    }

    /// Delays every further `call` whose text contains `about`.
    pub fn delay_about(&self, call: &'static str, about: &str, delay: Duration) {
        self.add(call, about, 0, usize::MAX, Action::Delay(delay));
    }

    /// Rejects the next `times` such calls, after letting `skip` of them pass.
    pub fn refuse(&self, call: &'static str, about: &str, skip: usize, times: usize) {
        self.add(call, about, skip, times, Action::Refuse);
    }

    /// Serves the next such call, but loses its reply.
    pub fn lose_reply(&self, call: &'static str, about: &str) {
        self.add(call, about, 0, 1, Action::LoseReply);
    }

    /// Rejects all further calls. Calls that already wait are not affected.
    pub fn cut_off(&self) {
        self.is_cut_off.store(true, Ordering::SeqCst);
    }

    /// Removes all rules.
    pub fn clear_rules(&self) {
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

    /// Records the capacity units of all further calls.
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

    /// The capacity units of the calls since `meter`, without background calls.
    pub fn charged(&self) -> f64 {
        let charges = self.charges.lock().unwrap();
        let charges = charges.iter().flatten();
        let of_rpcs = charges.filter(|(call, _)| !call.starts_with(BESIDE));
        of_rpcs.map(|(_, units)| units).sum()
    }

    /// The calls since `forget_calls`, as `2 x Get`, without background calls.
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

    /// The texts of the calls of this name since `forget_calls`.
    pub fn seen(&self, call: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let seen = seen.iter().filter(|(name, _)| name == call);
        seen.map(|(_, about)| about.clone()).collect()
    }

    /// All calls with their texts, including background calls.
    pub fn all_seen(&self) -> Vec<(String, String)> {
        let seen = self.seen.lock().unwrap();
        let seen = seen.iter().map(|(call, about)| {
            let call = call.strip_prefix(BESIDE).unwrap_or(call);
            (call.to_owned(), about.clone())
        });
        seen.collect()
    }

    /// Records the trace headers of a call.
    pub fn in_trace(&self, parent: &str, state: &str) {
        let headers = format!("{parent} {state}");
        self.traces.lock().unwrap().push(headers);
    }

    /// The recorded trace headers.
    pub fn traces(&self) -> Vec<String> {
        self.traces.lock().unwrap().clone()
    }

    /// Records a call that has arrived; returns its fate.
    pub async fn on_call(&self, call: &str, about: &str) -> Fate {
        if let Some(chaos) = &self.chaos {
            return chaos.on_call(call, about).await;
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
            Some(Action::HoldReply(gate)) => Fate::ReplyHeld(gate),
            Some(Action::Respond(status, body)) => Fate::Responded(status, body),
            Some(Action::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Fate::Served
            }
            Some(Action::Hold(gate)) => {
                gate.pass().await;
                Fate::Served
            }
            Some(Action::Wait(opens)) => {
                // The semaphore has no permits: `acquire` returns when it is closed.
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
