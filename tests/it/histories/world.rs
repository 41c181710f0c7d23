//! One world: backends, replicas that are killed and replaced, clients, and their
//! history.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use account_service::{coherence, domain::Timestamp, proto::account_v1 as pb};
use futures_util::future::join_all;
use pb::{Role, Source, State};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::{
    checker,
    faults::{Evict, Faults, Kill, Profile, Tally},
    record::{ADDRESSES, Call, Clock, ORGANIZATIONS, Operation, Outcome, Part, USERS},
};
use crate::harness::{
    Backends, Client, PATIENCE, Replica, Way, no_older_than,
    peer_network::{Path, PeerNetwork},
    script::Script,
};

const REPLICAS: usize = 3;
const CLIENTS: usize = 6;
const OPERATIONS_OF_A_CLIENT: usize = 60;
/// Attempts to start a replica.
const STARTS: u32 = 20;
/// Attempts at a write that has a request id.
const ATTEMPTS: usize = 3;
/// Checks of the claims at the end of a world.
const FINAL_CHECKS: usize = 3;
/// Counts checks that memory answered, among the faults.
const FROM_MEMORY: &str = "from memory";
/// The time for which deletions can be undone: longer than a world.
const UNDELETE_WINDOW: prost_types::Duration = prost_types::Duration {
    seconds: 24 * 3600,
    nanos: 0,
};
/// The user that founds the organizations, and acts in them.
const ROOT: &str = "root";

/// The results of worlds.
#[derive(Debug, Default)]
pub struct Report {
    pub operations: usize,
    pub outcomes: BTreeMap<String, usize>,
    pub faults: BTreeMap<&'static str, usize>,
    /// Checks that memory answered.
    pub from_memory: usize,
    pub violations: Vec<String>,
}

impl Report {
    pub fn add(&mut self, other: Self) {
        self.operations += other.operations;
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.from_memory += other.from_memory;
        for (fault, count) in other.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        self.violations.extend(other.violations);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: usize = self.faults.values().sum();
        write!(
            f,
            "{} operations {:?}, {} checks from memory, {faults} faults {:?}, {} violations",
            self.operations,
            self.outcomes,
            self.from_memory,
            self.faults,
            self.violations.len()
        )
    }
}

/// A replica in a runtime of its own, so that it can be killed.
struct Victim {
    runtime: Mortal,
    replica: Replica,
    network: Arc<PeerNetwork>,
    _way: Way,
}

/// The parts of a running replica that faults need.
struct Reach {
    client: Client,
    runtime: tokio::runtime::Handle,
    network: Arc<PeerNetwork>,
    faults: Arc<Faults>,
}

/// A runtime that does not wait for its tasks when it is dropped.
struct Mortal(Option<tokio::runtime::Runtime>);

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct World {
    seed: u64,
    profile: Profile,
    backends: Backends,
    tally: Tally,
    is_cache_gone: Arc<AtomicBool>,
    started: AtomicUsize,
    replicas: RwLock<Vec<Reach>>,
    history: Mutex<Vec<Operation>>,
    clock: Clock,
}

/// Runs a world to its end and checks its history.
pub async fn run(seed: u64, profile: Profile) -> Report {
    let world = Arc::new(World {
        seed,
        profile,
        backends: Backends::start().await,
        tally: Tally::default(),
        is_cache_gone: Arc::default(),
        started: AtomicUsize::new(0),
        replicas: RwLock::default(),
        history: Mutex::default(),
        clock: Clock::start(),
    });
    world.found().await;
    let mut keepers = tokio::task::JoinSet::new();
    let mut victims = Vec::new();
    for _ in 0..REPLICAS {
        let (victim, client, faults) = world.start_replica().await;
        world
            .replicas
            .write()
            .unwrap()
            .push(victim.reach(client, &faults));
        victims.push((victim, faults));
    }
    if world.profile.is_near {
        let all_active = async {
            while !victims.iter().all(|(victim, _)| victim.replica.is_active()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // On a busy machine, not all replicas may be active at the same time.
        let _ = tokio::time::timeout(PATIENCE / 3, all_active).await;
    }
    for (place, (victim, faults)) in victims.into_iter().enumerate() {
        keepers.spawn(keep_replica(world.clone(), place, victim, faults));
    }
    keepers.spawn(disturb_the_cache(world.clone()));
    keepers.spawn(disturb_replicas(world.clone()));
    let clients = (0..CLIENTS).map(|client| tokio::spawn(drive(world.clone(), client)));
    for client in join_all(clients).await {
        client.unwrap();
    }
    keepers.shutdown().await;
    let mut report = world.report();
    let claims = world.contradictory_claims().await;
    report.violations.extend(claims);
    report
}

impl Victim {
    fn reach(&self, client: Client, faults: &Arc<Faults>) -> Reach {
        let runtime = self.runtime.0.as_ref().unwrap();
        Reach {
            client,
            runtime: runtime.handle().clone(),
            network: self.network.clone(),
            faults: faults.clone(),
        }
    }
}

impl World {
    /// Founds the organizations, before the faults begin.
    async fn found(&self) {
        let founder = self.backends.replica().await;
        // On a busy machine, a call may time out.
        let is_there = |response: Result<(), Status>| match response {
            Ok(()) => true,
            Err(status) => status.code() == Code::AlreadyExists,
        };
        while !is_there(founder.create_user(ROOT).await.map(drop)) {}
        for organization in 0..ORGANIZATIONS {
            let name = organization_name(organization);
            while !is_there(founder.create_organization(&name, ROOT).await.map(drop)) {}
        }
        founder.settle().await;
    }

    /// Checks that an address belongs to at most one user, and that its look-up finds that
    /// user. Checks again while a late transaction may still change both.
    async fn contradictory_claims(&self) -> Vec<String> {
        let witness = self.backends.replica().await;
        let mut violations = Vec::new();
        for _ in 0..FINAL_CHECKS {
            violations = self.check_claims(witness.client.clone()).await;
            if violations.is_empty() {
                break;
            }
            tokio::time::sleep(checker::STRAGGLE).await;
        }
        violations
    }

    async fn check_claims(&self, mut client: Client) -> Vec<String> {
        let strongly = || {
            let requirement = pb::read_consistency::Requirement::FullyConsistent(true);
            Some(pb::ReadConsistency {
                requirement: Some(requirement),
            })
        };
        let mut users = Vec::new();
        for user in 0..USERS {
            let request = pb::GetUserRequest {
                username: user_name(user),
                consistency: strongly(),
            };
            users.extend(client.get_user(request).await.ok());
        }
        let users: Vec<_> = users
            .into_iter()
            .map(|it| it.into_inner().user.unwrap())
            .collect();
        let mut violations = Vec::new();
        for number in 0..ADDRESSES {
            let email = address(number);
            let request = pb::LookupUserRequest {
                email: email.clone(),
                consistency: strongly(),
                ..pb::LookupUserRequest::default()
            };
            let found = client.lookup_user(request).await.ok();
            let found = found.map(|it| it.into_inner().user.unwrap().username);
            let with_it = users.iter().filter(|user| user.email == email);
            let with_it: Vec<_> = with_it.map(|user| user.username.clone()).collect();
            if with_it != Vec::from_iter(found.clone()) {
                let mismatch = format!("{email} finds {found:?}, but belongs to {with_it:?}");
                violations.push(format!("seed {}: {mismatch}", self.seed));
            }
        }
        violations
    }

    fn chance(&self, of: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.wrapping_mul(1_000_003).wrapping_add(of))
    }

    fn settings(&self, replica: usize) -> coherence::CoherenceSettings {
        let mut timing = coherence::Timing::default();
        if self.profile.expires {
            timing.fence_max_age = Duration::from_millis(75);
            timing.lease_ttl = Duration::from_millis(60);
            timing.view_ttl = Duration::from_millis(320);
            timing.fence_attempt = Duration::from_millis(100);
            timing.fence_patience = Duration::from_millis(200);
            timing.rejoin_pause = Duration::from_millis(50);
        }
        if let Some(fence_ttl_ms) = self.profile.fence_ttl_ms {
            timing.fence_ttl = Duration::from_millis(fence_ttl_ms);
        }
        if self.profile.is_near {
            // Long, to the time in which a silent replica is evicted.
            timing.view_ttl = Duration::from_millis(640);
            // No write is running when a world without kills begins.
            let earlier_writes = timing.fence_ttl.min(Duration::from_millis(500));
            timing.join_wait = timing.settle() + earlier_writes;
        }
        let defaults = coherence::CoherenceSettings::default();
        // Long times to live hide some mistakes, short ones hide others.
        let expires_soon = self.seed.is_multiple_of(2);
        let entry_ttl = self.profile.entry_ttl_ms.filter(|_| expires_soon);
        let entry_ttl = entry_ttl.map(Duration::from_millis);
        let ttl = |default| entry_ttl.unwrap_or(default);
        coherence::CoherenceSettings {
            membership_ttl: ttl(defaults.membership_ttl),
            profile_ttl: ttl(defaults.profile_ttl),
            absent_ttl: ttl(defaults.absent_ttl),
            cache_read_timeout: Duration::from_millis(self.profile.cache_read_timeout_ms),
            // An open circuit breaker would hide mistakes.
            cache_failures: u32::MAX,
            wall_clock: wall_clock(replica),
            near_ttl: self.profile.is_near.then_some(Duration::from_secs(3600)),
            timing,
            ..defaults
        }
    }

    async fn start_replica(&self) -> (Victim, Client, Arc<Faults>) {
        let number = self.started.fetch_add(1, Ordering::SeqCst);
        let momento = self.backends.embedded.momento.evictor();
        let cache = self.backends.serve_settings().backends.cache_name;
        let evict: Evict = Arc::new(move |key| momento.evict(&cache, key.as_bytes()));
        let faults = Arc::new(Faults::new(
            self.seed,
            number,
            self.profile.clone(),
            self.tally.clone(),
            evict,
            self.is_cache_gone.clone(),
        ));
        let script = Arc::new(Script::chaotic(faults.clone()));
        let (way, mut settings) = self.backends.way(script.clone(), script).await;
        let network = Arc::new(PeerNetwork::start().await);
        if self.profile.is_near {
            settings.server.peers.peer_addr = Some(network.listens);
            settings.server.peers.peer_advertise = Some(network.advertised.to_string());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let spawner = runtime.handle().clone();
        let runtime = Mortal(Some(runtime));
        let cache = self.settings(number);
        let start = async move {
            // Retries the start, as an orchestrator does.
            for _ in 0..STARTS {
                if let Ok(replica) = Replica::try_start_with(&settings, cache.clone()).await {
                    return replica;
                }
            }
            panic!("the replica does not start");
        };
        let replica = spawner.spawn(start).await.unwrap();
        let channel = Channel::from_shared(format!("http://{}", replica.addr)).unwrap();
        let client = Client::new(channel.connect_lazy());
        let victim = Victim {
            runtime,
            replica,
            network,
            _way: way,
        };
        (victim, client, faults)
    }

    fn client(&self, chance: &mut fastrand::Rng) -> Client {
        let replicas = self.replicas.read().unwrap();
        replicas[chance.usize(..replicas.len())].client.clone()
    }

    /// The staleness that the client accepts.
    fn staleness(&self, call: Call, chance: &mut fastrand::Rng) -> Duration {
        match (call, self.profile.longest_staleness_ms) {
            (Call::Check(..) | Call::GetUser(_), Some(longest)) if chance.bool() => {
                Duration::from_millis(chance.u64(1..=longest))
            }
            _ => Duration::ZERO,
        }
    }

    fn report(&self) -> Report {
        let mut history = self.history.lock().unwrap().clone();
        history.sort_by_key(|operation| operation.began);
        let mut violations = checker::stale_responses(&history);
        if self.profile.is_linearizable {
            violations.extend(checker::not_linearizable(&history));
        }
        let mut outcomes = BTreeMap::new();
        for operation in &history {
            let name = format!("{:?}", operation.outcome);
            let name = name.split('(').next().unwrap_or_default().to_owned();
            *outcomes.entry(name).or_default() += 1;
        }
        let with_seed = |violation| format!("seed {}: {violation}", self.seed);
        let mut faults = self.tally.lock().unwrap().clone();
        Report {
            operations: history.len(),
            outcomes,
            from_memory: faults.remove(FROM_MEMORY).unwrap_or_default(),
            faults,
            violations: violations.into_iter().map(with_seed).collect(),
        }
    }
}

/// Replicas' wall clocks differ by minutes.
fn wall_clock(replica: usize) -> fn() -> Timestamp {
    match replica % 3 {
        0 => Timestamp::now,
        1 => || Timestamp(Timestamp::now().0 + 60_000),
        _ => || Timestamp(Timestamp::now().0 - 60_000),
    }
}

fn organization_name(organization: usize) -> String {
    format!("org-{organization}")
}

fn user_name(user: usize) -> String {
    format!("user-{user}")
}

/// The time of a replica that is replaced to end its work.
const STOP_TIME: Duration = Duration::from_millis(700);

/// Never returns without a time.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Schedules kills and restarts of the replica, and starts another in its place. Never returns.
async fn keep_replica(world: Arc<World>, place: usize, victim: Victim, faults: Arc<Faults>) {
    let mut chance = world.chance(100 + place as u64);
    let mut running = (victim, faults);
    loop {
        let restarts = world.profile.restarts;
        let restart = (restarts > 0 && chance.u32(0..10) < restarts)
            .then(|| Duration::from_millis(chance.u64(100..1500)));
        if chance.u32(0..10) < world.profile.kills {
            let kills = [Kill::AfterFence, Kill::AfterCommit, Kill::BeforeConfirm];
            running
                .1
                .kill_at(kills[chance.usize(..3)], chance.usize(..8));
        }
        let is_restarted = tokio::select! {
            () = running.1.died.notified() => false,
            () = after(restart) => true,
        };
        if is_restarted {
            *world.tally.lock().unwrap().entry("restarted").or_default() += 1;
            let (victim, client, faults) = world.start_replica().await;
            world.replicas.write().unwrap()[place] = victim.reach(client, &faults);
            let (mut former, _faults) = std::mem::replace(&mut running, (victim, faults));
            former.replica.stop();
            // It leaves the directory, and ends its running calls and writes.
            tokio::time::sleep(STOP_TIME).await;
            continue;
        }
        drop(running);
        let (victim, client, faults) = world.start_replica().await;
        world.replicas.write().unwrap()[place] = victim.reach(client, &faults);
        running = (victim, faults);
    }
}

/// Wipes the cache, and makes it unreachable for a while. Never returns.
async fn disturb_the_cache(world: Arc<World>) {
    let mut chance = world.chance(200);
    loop {
        tokio::time::sleep(Duration::from_millis(chance.u64(20..400))).await;
        if chance.u32(0..10) < world.profile.wipes {
            *world.tally.lock().unwrap().entry("wiped").or_default() += 1;
            world.backends.flush_cache().await;
        }
        if chance.u32(0..10) < world.profile.outages {
            *world.tally.lock().unwrap().entry("outages").or_default() += 1;
            world.is_cache_gone.store(true, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(chance.u64(1..900))).await;
            if chance.bool() {
                world.backends.flush_cache().await;
            }
            world.is_cache_gone.store(false, Ordering::SeqCst);
        }
    }
}

/// Interrupts paths between replicas, pauses replicas, and deletes the replica directory. Never
/// returns.
async fn disturb_replicas(world: Arc<World>) {
    const DIRECTORY: &str = "SERVICE#replicas";
    let count = |fault| *world.tally.lock().unwrap().entry(fault).or_default() += 1;
    let mut chance = world.chance(300);
    let table = world.backends.table();
    loop {
        tokio::time::sleep(Duration::from_millis(chance.u64(20..300))).await;
        let place = chance.usize(..REPLICAS);
        let (runtime, network, faults) = {
            let replicas = world.replicas.read().unwrap();
            let reach = &replicas[place];
            (
                reach.runtime.clone(),
                reach.network.clone(),
                reach.faults.clone(),
            )
        };
        if chance.u32(0..10) < world.profile.cuts {
            let paths = [
                ("path silent", Path::Silent),
                ("path closed", Path::Closed),
                ("replies of a replica lost", Path::RepliesLost),
                (
                    "path slow",
                    Path::Slow(Duration::from_millis(chance.u64(1..200))),
                ),
            ];
            let (fault, path) = paths[chance.usize(..paths.len())];
            count(fault);
            network.set(path);
            let are_gone = chance.bool();
            if are_gone {
                count("registers gone");
                faults.are_registers_gone.store(true, Ordering::SeqCst);
            }
            // Longer than its view is valid, and than others take to evict it.
            let longest = if are_gone { 3000 } else { 900 };
            tokio::time::sleep(Duration::from_millis(chance.u64(1..longest))).await;
            network.set(Path::Open);
            faults.are_registers_gone.store(false, Ordering::SeqCst);
        }
        if chance.u32(0..10) < world.profile.pauses {
            count("replica paused");
            let pause = Duration::from_millis(chance.u64(50..1500));
            // Blocks the only thread of the replica, as SIGSTOP does.
            runtime.spawn(async move { std::thread::sleep(pause) });
        }
        if chance.u32(0..10) < world.profile.directory_losses {
            count("directory deleted");
            table.delete(DIRECTORY, DIRECTORY).await;
        }
    }
}

async fn drive(world: Arc<World>, number: usize) {
    let mut chance = world.chance(number as u64);
    // Memory answers fast.
    let times = if world.profile.is_near { 3 } else { 1 };
    for _ in 0..OPERATIONS_OF_A_CLIENT * times {
        let call = choose(&mut chance, &world.profile);
        let staleness = world.staleness(call, &mut chance);
        let began = world.clock.now();
        let outcome = send_until_known(&world, &mut chance, call, staleness).await;
        let operation = Operation {
            call,
            outcome,
            // The data may be this old, so the checker treats the call as that much earlier.
            began: began.saturating_sub(staleness.as_nanos()),
            ended: world.clock.now(),
        };
        world.history.lock().unwrap().push(operation);
    }
}

fn choose(chance: &mut fastrand::Rng, profile: &Profile) -> Call {
    let (organization, user) = if profile.is_narrow {
        (0, 0)
    } else {
        (chance.usize(..ORGANIZATIONS), chance.usize(..USERS))
    };
    let role = if chance.bool() {
        Role::Member
    } else {
        Role::Admin
    };
    if profile.is_narrow {
        // All calls concern one membership: more writes would keep it fenced all the time, and held
        // out of memory.
        if profile.is_near && chance.u32(0..6) > 0 {
            return Call::Check(organization, user);
        }
        return match chance.u32(0..220) {
            0..180 => Call::Check(organization, user),
            180..193 => Call::Add(organization, user, role),
            193..204 => Call::Remove(organization, user),
            204..210 => Call::ChangeRole(organization, user, role),
            210..216 => Call::CreateUser(user),
            _ => Call::DeleteUser(user),
        };
    }
    // Active more often than suspended; created more often than deleted.
    let state = if profile.suspends && chance.u32(0..5) < 2 {
        State::Suspended
    } else {
        State::Active
    };
    let part = if chance.bool() {
        Part::First
    } else {
        Part::Last
    };
    match chance.u32(0..106) {
        0..50 => Call::Check(organization, user),
        50..57 => Call::GetUser(user),
        57..68 => Call::Add(organization, user, role),
        68..74 => Call::Remove(organization, user),
        74..79 => Call::ChangeRole(organization, user, role),
        79..81 => Call::Transfer(organization, user),
        81..86 => Call::CreateUser(user),
        86..88 => Call::DeleteUser(user),
        88..90 => Call::SetUserState(user, state),
        90..92 => Call::SetOrganizationState(organization, state),
        92 => Call::DeleteOrganization(organization),
        93..95 => Call::CreateOrganization(organization),
        95..98 => Call::Update(user, part, chance.u8(1..=9)),
        100 => Call::DeleteUserSoftly(user),
        101..103 => Call::UndeleteUser(user),
        103 => Call::DeleteOrganizationSoftly(organization),
        104.. => Call::UndeleteOrganization(organization),
        _ => {
            let address = chance.bool().then(|| chance.usize(..ADDRESSES));
            Call::SetEmail(user, address)
        }
    }
}

/// Sends a request. A request with an id is retried while its outcome is unknown.
async fn send_until_known(
    world: &World,
    chance: &mut fastrand::Rng,
    call: Call,
    staleness: Duration,
) -> Outcome {
    let has_id = !call.is_read() && chance.bool();
    let request_id = has_id.then(|| uuid::Uuid::from_u128(chance.u128(1..)).to_string());
    let request_id = request_id.unwrap_or_default();
    let attempts = if has_id { ATTEMPTS } else { 1 };
    let mut outcome = Outcome::Nothing;
    for attempt in 1..=attempts {
        let client = world.client(chance);
        outcome = match (
            send(world, client, call, staleness, &request_id).await,
            attempt,
        ) {
            (outcome, 1) => outcome,
            // A retry of an applied request returns success.
            (Outcome::Done, _) => Outcome::Done,
            // An earlier attempt may still be in progress.
            _ => Outcome::Unknown,
        };
        if outcome != Outcome::Unknown {
            break;
        }
        // A replica that is down fails at once: without a pause, all attempts may hit it.
        tokio::time::sleep(Duration::from_millis(chance.u64(1..20))).await;
    }
    outcome
}

fn address(number: usize) -> String {
    format!("address-{number}@example.com")
}

#[expect(clippy::too_many_lines, reason = "each call is short")]
async fn send(
    world: &World,
    mut client: Client,
    call: Call,
    staleness: Duration,
    request_id: &str,
) -> Outcome {
    let request_id = request_id.to_owned();
    let consistency = (!staleness.is_zero()).then(|| no_older_than(staleness));
    let response = match call {
        Call::CreateUser(user) => {
            let request = pb::CreateUserRequest {
                username: user_name(user),
                request_id,
                ..pb::CreateUserRequest::default()
            };
            client.create_user(request).await.map(drop)
        }
        Call::DeleteUser(user) => {
            let request = pb::DeleteUserRequest {
                username: user_name(user),
                request_id,
                ..pb::DeleteUserRequest::default()
            };
            client.delete_user(request).await.map(drop)
        }
        Call::DeleteUserSoftly(user) => {
            let request = pb::DeleteUserRequest {
                username: user_name(user),
                request_id,
                undelete_window: Some(UNDELETE_WINDOW),
                ..pb::DeleteUserRequest::default()
            };
            client.delete_user(request).await.map(drop)
        }
        Call::UndeleteUser(user) => {
            let request = pb::UndeleteUserRequest {
                username: user_name(user),
                request_id,
                ..pb::UndeleteUserRequest::default()
            };
            client.undelete_user(request).await.map(drop)
        }
        Call::SetUserState(user, State::Suspended) => {
            let request = pb::SuspendUserRequest {
                username: user_name(user),
                request_id,
                ..pb::SuspendUserRequest::default()
            };
            client.suspend_user(request).await.map(drop)
        }
        Call::SetUserState(user, _) => {
            let request = pb::ResumeUserRequest {
                username: user_name(user),
                request_id,
                ..pb::ResumeUserRequest::default()
            };
            client.resume_user(request).await.map(drop)
        }
        Call::Update(user, part, number) => {
            let (first, last) = match part {
                Part::First => (number.to_string(), String::new()),
                Part::Last => (String::new(), number.to_string()),
            };
            let request = pb::UpdateUserRequest {
                user: Some(pb::User {
                    username: user_name(user),
                    first_name: first,
                    last_name: last,
                    ..pb::User::default()
                }),
                request_id,
                ..pb::UpdateUserRequest::default()
            };
            client.update_user(request).await.map(drop)
        }
        Call::SetEmail(user, email) => {
            let request = pb::UpdateUserRequest {
                user: Some(pb::User {
                    username: user_name(user),
                    email: email.map(address).unwrap_or_default(),
                    ..pb::User::default()
                }),
                update_mask: Some(prost_types::FieldMask {
                    paths: vec!["email".to_owned()],
                }),
                request_id,
            };
            client.update_user(request).await.map(drop)
        }
        Call::GetUser(user) => {
            let request = pb::GetUserRequest {
                username: user_name(user),
                consistency,
            };
            match client.get_user(request).await {
                Ok(response) => {
                    let user = response.into_inner().user.unwrap();
                    let number = |text: &str| text.parse().unwrap_or(0);
                    return Outcome::IsUser(Some(super::record::Profile {
                        state: user.state(),
                        first: number(&user.first_name),
                        last: number(&user.last_name),
                    }));
                }
                Err(status) => Err(status),
            }
        }
        Call::CreateOrganization(organization) => {
            let request = pb::CreateOrganizationRequest {
                organization_name: organization_name(organization),
                founding_user: ROOT.to_owned(),
                request_id,
                ..pb::CreateOrganizationRequest::default()
            };
            client.create_organization(request).await.map(drop)
        }
        Call::DeleteOrganization(organization) => {
            let request = pb::DeleteOrganizationRequest {
                organization_name: organization_name(organization),
                actor: Some(pb::delete_organization_request::Actor::AsPlatform(true)),
                request_id,
                ..pb::DeleteOrganizationRequest::default()
            };
            client.delete_organization(request).await.map(drop)
        }
        Call::DeleteOrganizationSoftly(organization) => {
            let request = pb::DeleteOrganizationRequest {
                organization_name: organization_name(organization),
                actor: Some(pb::delete_organization_request::Actor::AsPlatform(true)),
                request_id,
                undelete_window: Some(UNDELETE_WINDOW),
                ..pb::DeleteOrganizationRequest::default()
            };
            client.delete_organization(request).await.map(drop)
        }
        Call::UndeleteOrganization(organization) => {
            let request = pb::UndeleteOrganizationRequest {
                organization_name: organization_name(organization),
                actor: Some(pb::undelete_organization_request::Actor::AsPlatform(true)),
                request_id,
                ..pb::UndeleteOrganizationRequest::default()
            };
            client.undelete_organization(request).await.map(drop)
        }
        Call::SetOrganizationState(organization, State::Suspended) => {
            let request = pb::SuspendOrganizationRequest {
                organization_name: organization_name(organization),
                request_id,
                ..pb::SuspendOrganizationRequest::default()
            };
            client.suspend_organization(request).await.map(drop)
        }
        Call::SetOrganizationState(organization, _) => {
            let request = pb::ResumeOrganizationRequest {
                organization_name: organization_name(organization),
                request_id,
                ..pb::ResumeOrganizationRequest::default()
            };
            client.resume_organization(request).await.map(drop)
        }
        Call::Add(organization, user, role) => {
            let request = pb::AddUserToOrganizationRequest {
                organization_name: organization_name(organization),
                member_username: user_name(user),
                role: role.into(),
                adding_user: ROOT.to_owned(),
                request_id,
                ..pb::AddUserToOrganizationRequest::default()
            };
            client.add_user_to_organization(request).await.map(drop)
        }
        Call::ChangeRole(organization, user, role) => {
            let request = pb::ChangeMemberRoleRequest {
                organization_name: organization_name(organization),
                member_username: user_name(user),
                role: role.into(),
                acting_user: ROOT.to_owned(),
                request_id,
                ..pb::ChangeMemberRoleRequest::default()
            };
            client.change_member_role(request).await.map(drop)
        }
        Call::Remove(organization, user) => {
            let request = pb::RemoveUserFromOrganizationRequest {
                organization_name: organization_name(organization),
                member_username: user_name(user),
                acting_user: ROOT.to_owned(),
                request_id,
                ..pb::RemoveUserFromOrganizationRequest::default()
            };
            let response = client.remove_user_from_organization(request).await;
            response.map(drop)
        }
        Call::Transfer(organization, user) => {
            let request = pb::TransferOwnershipRequest {
                organization_name: organization_name(organization),
                new_owner: user_name(user),
                actor: Some(pb::transfer_ownership_request::Actor::AsPlatform(true)),
                request_id,
            };
            client.transfer_ownership(request).await.map(drop)
        }
        Call::Check(organization, user) => {
            let request = pb::CheckMembershipRequest {
                organization_name: organization_name(organization),
                username: user_name(user),
                consistency,
                ..pb::CheckMembershipRequest::default()
            };
            match client.check_membership(request).await {
                Ok(response) => {
                    let response = response.into_inner();
                    if response.source() == Source::Memory {
                        *world.tally.lock().unwrap().entry(FROM_MEMORY).or_default() += 1;
                    }
                    let role = response.is_member.then(|| response.role());
                    return Outcome::IsMember(role);
                }
                Err(status) => Err(status),
            }
        }
    };
    match response {
        Ok(()) => Outcome::Done,
        Err(status) => match (call, outcome_of_error(&status)) {
            (Call::GetUser(_), Outcome::NoUser) => Outcome::IsUser(None),
            (_, outcome) => outcome,
        },
    }
}

fn outcome_of_error(status: &Status) -> Outcome {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    match reason {
        Some(
            "USER_ALREADY_EXISTS"
            | "ORGANIZATION_ALREADY_EXISTS"
            | "MEMBERSHIP_ALREADY_EXISTS"
            | "EMAIL_ALREADY_EXISTS",
        ) => Outcome::Exists,
        Some("USER_NOT_FOUND") => Outcome::NoUser,
        Some("ORGANIZATION_NOT_FOUND") => Outcome::NoOrganization,
        Some("NOT_PERMITTED") => Outcome::NotPermitted,
        Some("MEMBERSHIP_NOT_FOUND") => Outcome::NoMember,
        Some(
            "CACHE_UNAVAILABLE" | "CONTENTION" | "OVERLOADED" | "STORE_UNAVAILABLE"
            | "STORE_THROTTLED",
        ) => Outcome::Nothing,
        Some("APPLIED_NOT_CONFIRMED" | "OUTCOME_UNKNOWN" | "DEADLINE_EXCEEDED") => Outcome::Unknown,
        None if matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
        ) =>
        {
            Outcome::Unknown
        }
        // The connection of a replica that stops.
        None if status.message().starts_with("h2 protocol error") => Outcome::Unknown,
        _ => panic!("unexpected status: {status:?}"),
    }
}
