//! One world: backends, replicas that die and come again, clients, and what
//! they saw.

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
use pb::Role;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::{
    checker,
    faults::{Evict, Faults, Kill, Profile, Tally},
    record::{Clock, ORGANIZATIONS, Operation, Told, USERS, What},
};
use crate::harness::{Backends, Client, Replica, Way, no_older_than, script::Script};

const REPLICAS: usize = 3;
const CLIENTS: usize = 6;
const OPERATIONS_OF_A_CLIENT: usize = 60;
/// Times that a replica's start is tried.
const STARTS: u32 = 20;
/// Founds the organizations, and acts.
const ROOT: &str = "root";

/// What worlds came to.
#[derive(Debug, Default)]
pub struct Report {
    pub operations: usize,
    pub told: BTreeMap<String, usize>,
    pub faults: BTreeMap<&'static str, usize>,
    pub violations: Vec<String>,
}

impl Report {
    pub fn add(&mut self, other: Self) {
        self.operations += other.operations;
        for (told, count) in other.told {
            *self.told.entry(told).or_default() += count;
        }
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
            "{} operations {:?}, {faults} faults {:?}, {} violations",
            self.operations,
            self.told,
            self.faults,
            self.violations.len()
        )
    }
}

/// A replica in a runtime of its own, so that it can be killed.
struct Victim {
    _runtime: Mortal,
    _replica: Replica,
    _way: Way,
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
    clients: RwLock<Vec<Client>>,
    history: Mutex<Vec<Operation>>,
    clock: Clock,
}

/// Runs a world to its end and checks what was seen.
pub async fn run(seed: u64, profile: Profile) -> Report {
    let world = Arc::new(World {
        seed,
        profile,
        backends: Backends::start().await,
        tally: Tally::default(),
        is_cache_gone: Arc::default(),
        started: AtomicUsize::new(0),
        clients: RwLock::default(),
        history: Mutex::default(),
        clock: Clock::start(),
    });
    world.found().await;
    let mut keepers = tokio::task::JoinSet::new();
    for place in 0..REPLICAS {
        let (victim, client, faults) = world.start_replica().await;
        world.clients.write().unwrap().push(client);
        keepers.spawn(keep_replica(world.clone(), place, victim, faults));
    }
    keepers.spawn(disturb_the_cache(world.clone()));
    let clients = (0..CLIENTS).map(|client| tokio::spawn(drive(world.clone(), client)));
    for client in join_all(clients).await {
        client.unwrap();
    }
    keepers.shutdown().await;
    world.report()
}

impl World {
    /// Founds the organizations, while nothing fails yet.
    async fn found(&self) {
        let founder = self.backends.replica().await;
        // On a machine that is too busy, an answer may not be in time.
        let is_there = |answer: Result<(), Status>| match answer {
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

    fn chance(&self, of: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.wrapping_mul(1_000_003).wrapping_add(of))
    }

    fn settings(&self, replica: usize) -> coherence::Settings {
        let mut timing = coherence::Timing::default();
        if self.profile.expires {
            timing.fence_max_age = Duration::from_millis(75);
            timing.lease_ttl = Duration::from_millis(60);
            timing.view_ttl = Duration::from_millis(320);
        }
        if let Some(fence_ttl_ms) = self.profile.fence_ttl_ms {
            timing.fence_ttl = Duration::from_millis(fence_ttl_ms);
        }
        let defaults = coherence::Settings::default();
        // What is kept hides some mistakes, what expires hides others.
        let expires_soon = self.seed.is_multiple_of(2);
        let entry_ttl = self.profile.entry_ttl_ms.filter(|_| expires_soon);
        let entry_ttl = entry_ttl.map(Duration::from_millis);
        let ttl = |default| entry_ttl.unwrap_or(default);
        coherence::Settings {
            membership_ttl: ttl(defaults.membership_ttl),
            profile_ttl: ttl(defaults.profile_ttl),
            absent_ttl: ttl(defaults.absent_ttl),
            cache_read_timeout: Duration::from_millis(self.profile.cache_read_timeout_ms),
            // A cache that is not asked hides mistakes.
            cache_failures: u32::MAX,
            table_reads_at_once: defaults.table_reads_at_once,
            wall_clock: wall_clock(replica),
            timing,
            sabotage: self.profile.sabotage,
            invalidator: None,
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
        let (way, settings) = self.backends.way(script.clone(), script).await;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let spawner = runtime.handle().clone();
        let runtime = Mortal(Some(runtime));
        let cache = self.settings(number);
        let start = async move {
            // As whatever runs replicas does: try until it starts.
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
            _runtime: runtime,
            _replica: replica,
            _way: way,
        };
        (victim, client, faults)
    }

    fn client(&self, chance: &mut fastrand::Rng) -> Client {
        let clients = self.clients.read().unwrap();
        clients[chance.usize(..clients.len())].clone()
    }

    /// How old the answer to this may be.
    fn staleness(&self, what: What, chance: &mut fastrand::Rng) -> Duration {
        match (what, self.profile.longest_staleness_ms) {
            (What::Check(..), Some(longest)) if chance.bool() => {
                Duration::from_millis(chance.u64(1..=longest))
            }
            _ => Duration::ZERO,
        }
    }

    fn report(&self) -> Report {
        let mut history = self.history.lock().unwrap().clone();
        history.sort_by_key(|operation| operation.began);
        let mut violations = checker::stale_answers(&history);
        if self.profile.is_linearizable {
            violations.extend(checker::not_linearizable(&history));
        }
        let mut told = BTreeMap::new();
        for operation in &history {
            let name = format!("{:?}", operation.told);
            let name = name.split('(').next().unwrap_or_default().to_owned();
            *told.entry(name).or_default() += 1;
        }
        let with_seed = |violation| format!("seed {}: {violation}", self.seed);
        Report {
            operations: history.len(),
            told,
            faults: self.tally.lock().unwrap().clone(),
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

/// Lets the replica be killed, and starts another in its place. Never ends.
async fn keep_replica(world: Arc<World>, place: usize, victim: Victim, faults: Arc<Faults>) {
    let mut chance = world.chance(100 + place as u64);
    let mut running = (victim, faults);
    loop {
        if chance.u32(0..10) < world.profile.kills {
            let kills = [Kill::AfterFence, Kill::AfterCommit, Kill::BeforeConfirm];
            running
                .1
                .kill_at(kills[chance.usize(..3)], chance.usize(..8));
        }
        running.1.died.notified().await;
        drop(running);
        let (victim, client, faults) = world.start_replica().await;
        world.clients.write().unwrap()[place] = client;
        running = (victim, faults);
    }
}

/// Wipes the cache, and lets it be gone for a while. Never ends.
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

async fn drive(world: Arc<World>, number: usize) {
    let mut chance = world.chance(number as u64);
    for _ in 0..OPERATIONS_OF_A_CLIENT {
        let client = world.client(&mut chance);
        let what = choose(&mut chance, world.profile.is_narrow);
        let staleness = world.staleness(what, &mut chance);
        let began = world.clock.now();
        let told = ask(client, what, staleness).await;
        let operation = Operation {
            what,
            told,
            // As if it had been asked when its answer may be from.
            began: began.saturating_sub(staleness.as_nanos()),
            ended: world.clock.now(),
        };
        world.history.lock().unwrap().push(operation);
        if told == Told::Unknown {
            // A replica that is down answers at once; do not only ask that one.
            tokio::time::sleep(Duration::from_millis(chance.u64(1..20))).await;
        }
    }
}

fn choose(chance: &mut fastrand::Rng, is_narrow: bool) -> What {
    let (organization, user) = if is_narrow {
        (0, 0)
    } else {
        (chance.usize(..ORGANIZATIONS), chance.usize(..USERS))
    };
    let role = if chance.bool() {
        Role::Member
    } else {
        Role::Admin
    };
    // Where all meet in one place, writes would leave it fenced all the time.
    let checks_more = if is_narrow { 3 } else { 1 };
    let dice = chance.u32(0..60 * checks_more + 40);
    match dice.saturating_sub(60 * (checks_more - 1)) {
        0..60 => What::Check(organization, user),
        60..73 => What::Add(organization, user, role),
        73..84 => What::Remove(organization, user),
        84..90 => What::ChangeRole(organization, user, role),
        90..96 => What::CreateUser(user),
        _ => What::DeleteUser(user),
    }
}

async fn ask(mut client: Client, what: What, staleness: Duration) -> Told {
    let answer = match what {
        What::CreateUser(user) => {
            let username = user_name(user);
            let request = pb::CreateUserRequest {
                username,
                ..pb::CreateUserRequest::default()
            };
            client.create_user(request).await.map(drop)
        }
        What::DeleteUser(user) => {
            let username = user_name(user);
            let request = pb::DeleteUserRequest {
                username,
                ..pb::DeleteUserRequest::default()
            };
            client.delete_user(request).await.map(drop)
        }
        What::Add(organization, user, role) => {
            let request = pb::AddUserToOrganizationRequest {
                organization_name: organization_name(organization),
                member_username: user_name(user),
                role: role.into(),
                adding_user: ROOT.to_owned(),
                ..pb::AddUserToOrganizationRequest::default()
            };
            client.add_user_to_organization(request).await.map(drop)
        }
        What::ChangeRole(organization, user, role) => {
            let request = pb::ChangeMemberRoleRequest {
                organization_name: organization_name(organization),
                member_username: user_name(user),
                role: role.into(),
                acting_user: ROOT.to_owned(),
                ..pb::ChangeMemberRoleRequest::default()
            };
            client.change_member_role(request).await.map(drop)
        }
        What::Remove(organization, user) => {
            let request = pb::RemoveUserFromOrganizationRequest {
                organization_name: organization_name(organization),
                member_username: user_name(user),
                acting_user: ROOT.to_owned(),
                ..pb::RemoveUserFromOrganizationRequest::default()
            };
            let answer = client.remove_user_from_organization(request).await;
            answer.map(drop)
        }
        What::Check(organization, user) => {
            let request = pb::CheckMembershipRequest {
                organization_name: organization_name(organization),
                username: user_name(user),
                consistency: (!staleness.is_zero()).then(|| no_older_than(staleness)),
                ..pb::CheckMembershipRequest::default()
            };
            match client.check_membership(request).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let role = answer.is_member.then(|| answer.role());
                    return Told::IsMember(role);
                }
                Err(status) => Err(status),
            }
        }
    };
    answer.map_or_else(|status| refused(&status), |()| Told::Done)
}

fn refused(status: &Status) -> Told {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    match reason {
        Some("USER_ALREADY_EXISTS" | "MEMBERSHIP_ALREADY_EXISTS") => Told::Exists,
        Some("USER_NOT_FOUND") => Told::NoUser,
        Some("MEMBERSHIP_NOT_FOUND") => Told::NoMember,
        Some(
            "CACHE_UNAVAILABLE" | "CONTENTION" | "OVERLOADED" | "STORE_UNAVAILABLE"
            | "STORE_THROTTLED",
        ) => Told::Nothing,
        Some("APPLIED_NOT_CONFIRMED" | "OUTCOME_UNKNOWN" | "DEADLINE_EXCEEDED") => Told::Unknown,
        None if matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
        ) =>
        {
            Told::Unknown
        }
        _ => panic!("not an answer to this: {status:?}"),
    }
}
