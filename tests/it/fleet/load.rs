//! Mixed load with a check of every response.
//!
//! Each membership belongs to one worker. Only this worker changes it, so its role is
//! known. All workers read it. If it was not changed meanwhile, the response must be the
//! known role.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use account_service::proto::account_v1 as pb;
use futures_util::future::join_all;
use pb::Role;
use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Status};

use super::Fleet;
use crate::harness::Client;

const ORGANIZATIONS: usize = 4;
/// Users that each worker adds and removes.
const OWN_USERS: usize = 4;
const FOUNDER: &str = "founder";
/// Pause before a call that was not sent is retried.
const UNSENT_PAUSE: Duration = Duration::from_millis(10);
/// Pause of a worker between two operations.
const PAUSE: Duration = Duration::from_millis(2);

/// The retry policy of clients, from `clients/service_config_request_id.json`: each of
/// their writes has a `request_id`.
#[derive(Debug, Clone)]
pub struct Policy {
    attempts: u32,
    first_pause: Duration,
    greatest_pause: Duration,
    timeout: Duration,
    retried: Vec<Code>,
}

impl Policy {
    /// The policy that the documentation recommends.
    pub fn recommended() -> Self {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/clients/service_config_request_id.json"
        );
        let text = std::fs::read_to_string(file).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let config = &config["methodConfig"][0];
        let policy = &config["retryPolicy"];
        let seconds = |value: &serde_json::Value| {
            let seconds = value.as_str().unwrap().strip_suffix('s').unwrap();
            Duration::from_secs_f64(seconds.parse().unwrap())
        };
        assert_eq!(
            policy["retryableStatusCodes"],
            serde_json::json!(["UNAVAILABLE"])
        );
        Self {
            attempts: u32::try_from(policy["maxAttempts"].as_u64().unwrap()).unwrap(),
            first_pause: seconds(&policy["initialBackoff"]),
            greatest_pause: seconds(&policy["maxBackoff"]),
            timeout: seconds(&config["timeout"]),
            retried: vec![Code::Unavailable],
        }
    }

    /// Retries a call until it succeeds, fails with an error that is not retried, or has
    /// used all attempts. All attempts share one deadline.
    async fn call<T, F: Future<Output = Result<T, Status>>>(
        &self,
        call: impl Fn(Duration) -> F,
    ) -> Result<T, Status> {
        let deadline = Instant::now() + self.timeout;
        let mut attempt = 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let status = match call(left).await {
                Ok(response) => return Ok(response),
                Err(status) => status,
            };
            if !was_sent(&status) && Instant::now() < deadline {
                sleep(UNSENT_PAUSE).await;
                continue;
            }
            let is_retried = self.retried.contains(&status.code()) || was_cut_off(&status);
            if attempt == self.attempts || !is_retried {
                return Err(status);
            }
            let pushback = status.metadata().get("grpc-retry-pushback-ms");
            let pushback = pushback.and_then(|it| it.to_str().ok()?.parse().ok());
            let backoff = self.first_pause * 2_u32.pow(attempt - 1);
            let backoff = backoff.min(self.greatest_pause).mul_f64(fastrand::f64());
            sleep(pushback.map_or(backoff, Duration::from_millis)).await;
            attempt += 1;
        }
    }
}

/// Whether the call reached a server. A call does not if its connection is about to close
/// or, with `waitForReady`, if there is no connection. gRPC's own libraries retry such a
/// call; tonic does not.
pub fn was_sent(status: &Status) -> bool {
    let cause = std::error::Error::source(status).map(|cause| format!("{cause:?}"));
    let is_unsent = |cause: String| {
        cause.contains(r#"GoAway(b"", NO_ERROR, Remote)"#)
            || cause.contains("hyper::Error(Canceled")
            || cause.contains("ConnectError")
    };
    !cause.is_some_and(is_unsent)
}

/// Whether the connection was lost during the call. gRPC's own libraries report this as
/// UNAVAILABLE, and tonic as UNKNOWN.
fn was_cut_off(status: &Status) -> bool {
    let is_local = std::error::Error::source(status).is_some();
    status.code() == Code::Unknown && is_local
}

/// A membership.
struct Cell {
    organization: String,
    user: String,
    /// The number of changes, and the role; `None` while a change makes it unknown.
    state: Mutex<(u64, Option<Known>)>,
}

type Known = Option<Role>;

impl Cell {
    fn known(&self) -> (u64, Option<Known>) {
        *self.state.lock().unwrap()
    }

    fn set(&self, known: Option<Known>) {
        let mut state = self.state.lock().unwrap();
        *state = (state.0 + 1, known);
    }
}

/// The results of the load.
#[derive(Debug, Default)]
pub struct Report {
    /// Reads whose responses were checked.
    pub reads: usize,
    /// Changes that were acknowledged.
    pub acknowledged: usize,
    /// Calls that failed, after all attempts.
    pub failed: Vec<String>,
    /// Wrong responses.
    pub wrong: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} reads checked, {} changes acknowledged, {} calls failed {:?}, {} responses wrong {:?}",
            self.reads,
            self.acknowledged,
            self.failed.len(),
            self.failed.iter().take(3).collect::<Vec<_>>(),
            self.wrong.len(),
            self.wrong.iter().take(3).collect::<Vec<_>>(),
        )
    }
}

pub struct Load {
    policy: Policy,
    client: Client,
    cells: Vec<Arc<Cell>>,
    workers: usize,
    reads: AtomicUsize,
    acknowledged: AtomicUsize,
    failed: Mutex<Vec<String>>,
    wrong: Mutex<Vec<String>>,
}

impl Load {
    /// Creates users and organizations.
    pub async fn prepare(fleet: &Fleet, policy: Policy, workers: usize) -> Self {
        let cells = (0..workers * OWN_USERS).map(|number| {
            Arc::new(Cell {
                organization: format!("org-{}", number % ORGANIZATIONS),
                user: format!("user-{number}"),
                state: Mutex::new((0, Some(None))),
            })
        });
        let load = Self {
            policy,
            client: fleet.client(),
            cells: cells.collect(),
            workers,
            reads: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            failed: Mutex::default(),
            wrong: Mutex::default(),
        };
        let users = load.cells.iter().map(|cell| cell.user.as_str());
        for user in users.chain([FOUNDER]) {
            let mut client = load.client.clone();
            let request = pb::CreateUserRequest {
                username: user.to_owned(),
                ..pb::CreateUserRequest::default()
            };
            client.create_user(request).await.unwrap();
        }
        for organization in 0..ORGANIZATIONS {
            let mut client = load.client.clone();
            let request = pb::CreateOrganizationRequest {
                organization_name: format!("org-{organization}"),
                founding_user: FOUNDER.to_owned(),
                ..pb::CreateOrganizationRequest::default()
            };
            client.create_organization(request).await.unwrap();
        }
        load
    }

    /// Runs the workers until `is_over` is set.
    pub async fn run(&self, is_over: &AtomicBool) {
        join_all((0..self.workers).map(|worker| self.work(worker, is_over))).await;
    }

    async fn work(&self, worker: usize, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            match fastrand::u8(0..10) {
                0 => {
                    let own = worker * OWN_USERS + fastrand::usize(0..OWN_USERS);
                    self.change(&self.cells[own]).await;
                }
                1 => self.read_batch().await,
                _ => {
                    let any = fastrand::usize(0..self.cells.len());
                    self.read(&self.cells[any]).await;
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Changes the membership, and reads it after an acknowledged change.
    async fn change(&self, cell: &Cell) {
        let (_, before) = cell.known();
        let before = match before {
            Some(before) => before,
            // An earlier change may or may not have been applied.
            None => match self.resolve(cell).await {
                Some(found) => found,
                None => return,
            },
        };
        cell.set(None);
        let id = uuid::Uuid::new_v4().to_string();
        let wanted = match before {
            None => Some(Role::Member),
            Some(Role::Member) if fastrand::bool() => Some(Role::Admin),
            Some(_) => None,
        };
        match self.apply(cell, before, wanted, &id).await {
            Ok(()) => {
                cell.set(Some(wanted));
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.read(cell).await;
            }
            Err(status) => self.note_failure("change", &status),
        }
    }

    async fn apply(
        &self,
        cell: &Cell,
        before: Option<Role>,
        wanted: Option<Role>,
        id: &str,
    ) -> Result<(), Status> {
        let (organization_name, member_username) = (cell.organization.clone(), cell.user.clone());
        let acting_user = FOUNDER.to_owned();
        match (before, wanted) {
            (None, Some(role)) => {
                let request = pb::AddUserToOrganizationRequest {
                    organization_name,
                    member_username,
                    role: role.into(),
                    adding_user: acting_user,
                    request_id: id.to_owned(),
                    ..pb::AddUserToOrganizationRequest::default()
                };
                let attempt = |left| {
                    let (mut client, request) = (self.client.clone(), within(left, &request));
                    async move { client.add_user_to_organization(request).await }
                };
                self.policy.call(attempt).await.map(drop)
            }
            (_, Some(role)) => {
                let request = pb::ChangeMemberRoleRequest {
                    organization_name,
                    member_username,
                    role: role.into(),
                    acting_user,
                    request_id: id.to_owned(),
                    etag: String::new(),
                };
                let attempt = |left| {
                    let (mut client, request) = (self.client.clone(), within(left, &request));
                    async move { client.change_member_role(request).await }
                };
                self.policy.call(attempt).await.map(drop)
            }
            (_, None) => {
                let request = pb::RemoveUserFromOrganizationRequest {
                    organization_name,
                    member_username,
                    acting_user,
                    request_id: id.to_owned(),
                    etag: String::new(),
                };
                let attempt = |left| {
                    let (mut client, request) = (self.client.clone(), within(left, &request));
                    async move { client.remove_user_from_organization(request).await }
                };
                self.policy.call(attempt).await.map(drop)
            }
        }
    }

    /// Reads a membership after a change of unknown outcome. The last attempt may still be
    /// in progress, but no longer than a write may take.
    async fn resolve(&self, cell: &Cell) -> Option<Known> {
        sleep(Duration::from_secs(4)).await;
        let found = self.check(cell, true).await.ok()?;
        cell.set(Some(found));
        Some(found)
    }

    async fn read(&self, cell: &Cell) {
        let before = cell.known();
        match self.check(cell, false).await {
            Ok(found) => self.compare(cell, before, found),
            Err(status) => self.note_failure("check", &status),
        }
    }

    fn compare(&self, cell: &Cell, before: (u64, Option<Known>), found: Known) {
        if let (_, Some(known)) = before
            && cell.known() == before
        {
            self.reads.fetch_add(1, Ordering::Relaxed);
            if known != found {
                let wrong = format!("{}: {found:?} instead of {known:?}", cell.user);
                self.wrong.lock().unwrap().push(wrong);
            }
        }
    }

    async fn check(&self, cell: &Cell, is_strong: bool) -> Result<Known, Status> {
        let requirement = pb::read_consistency::Requirement::FullyConsistent(is_strong);
        let request = pb::CheckMembershipRequest {
            organization_name: cell.organization.clone(),
            username: cell.user.clone(),
            minimum_role: 0,
            consistency: Some(pb::ReadConsistency {
                requirement: Some(requirement),
            }),
            ..pb::CheckMembershipRequest::default()
        };
        let attempt = |left| {
            let (mut client, request) = (self.client.clone(), within(left, &request));
            async move { client.check_membership(request).await }
        };
        let response = self.policy.call(attempt).await?.into_inner();
        Ok(response.is_member.then(|| response.role()))
    }

    async fn read_batch(&self) {
        let cells: Vec<_> = self.cells.iter().take(20).collect();
        let before: Vec<_> = cells.iter().map(|cell| cell.known()).collect();
        let checks = cells.iter().map(|cell| pb::MembershipCheck {
            organization_name: cell.organization.clone(),
            username: cell.user.clone(),
            minimum_role: 0,
        });
        let request = pb::BatchCheckMembershipsRequest {
            checks: checks.collect(),
            consistency: None,
        };
        let attempt = |left| {
            let (mut client, request) = (self.client.clone(), within(left, &request));
            async move { client.batch_check_memberships(request).await }
        };
        match self.policy.call(attempt).await {
            Ok(response) => {
                let responses = response.into_inner().results;
                for ((cell, before), response) in cells.into_iter().zip(before).zip(responses) {
                    self.compare(cell, before, response.is_member.then(|| response.role()));
                }
            }
            Err(status) => self.note_failure("batch", &status),
        }
    }

    fn note_failure(&self, what: &str, status: &Status) {
        let cause = std::error::Error::source(status).map(|it| format!(" {it:?}"));
        let cause = cause.unwrap_or_default();
        let failed = format!("{what}: {:?} {}{cause}", status.code(), status.message());
        self.failed.lock().unwrap().push(failed);
    }

    pub fn report(&self) -> Report {
        Report {
            reads: self.reads.load(Ordering::Relaxed),
            acknowledged: self.acknowledged.load(Ordering::Relaxed),
            failed: self.failed.lock().unwrap().clone(),
            wrong: self.wrong.lock().unwrap().clone(),
        }
    }

    /// Asserts that every acknowledged change is in the table, and in the responses of each
    /// replica.
    pub async fn verify_all(&self, fleet: &Fleet) {
        for cell in &self.cells {
            let known = match cell.known() {
                (_, Some(known)) => known,
                (_, None) => self.resolve(cell).await.unwrap(),
            };
            assert_eq!(
                self.check(cell, true).await.unwrap(),
                known,
                "{}",
                cell.user
            );
            for place in &fleet.places {
                let alone = Self {
                    client: Client::connect(format!("http://{}", place.addr))
                        .await
                        .unwrap(),
                    policy: self.policy.clone(),
                    cells: Vec::new(),
                    workers: 0,
                    reads: AtomicUsize::new(0),
                    acknowledged: AtomicUsize::new(0),
                    failed: Mutex::default(),
                    wrong: Mutex::default(),
                };
                let found = alone.check(cell, false).await.unwrap();
                assert_eq!(found, known, "{} in {}", cell.user, place.addr);
            }
        }
    }
}

fn within<T: Clone>(timeout: Duration, message: &T) -> Request<T> {
    let mut request = Request::new(message.clone());
    request.set_timeout(timeout);
    request
}
