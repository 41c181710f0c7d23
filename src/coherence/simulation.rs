//! Simulations of the near cache and of the operation budget, with their real code, on a paused
//! clock: hit ratio, costs and memory. `just simulate` prints the tables of docs/performance.md.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant as WallClock},
};

use tokio::time::{Instant, advance};
use uuid::Uuid;

use super::{
    CoherenceSettings, Timing,
    entries::EntryCache,
    near_cache::{NearCache, Required},
    operation_budget::{READ, WRITE},
    replica_directory::Epoch,
};
use crate::{
    cache::MomentoClient,
    domain::{
        FreeText, Key, Labels, Membership, Organization, OrganizationName, Record, Role, Stamp,
        State, Timestamp, Uid, User, Username,
    },
    peer::WriteId,
};

const HOUR: Duration = Duration::from_secs(3600);
/// The clock advances by this.
const TICK: Duration = Duration::from_millis(10);
/// Pairs share users and organizations: two memberships for each user, 50 for each organization.
const MEMBERSHIPS_OF_USER: usize = 2;
const MEMBERS_OF_ORGANIZATION: usize = 50;
/// Every replica is active, in the same epoch.
const EPOCH: Option<Epoch> = Some(Epoch(1));
/// List prices of us-east-1 in November 2026, in dollars: a million operations of Momento, and a
/// million read units of DynamoDB on demand.
const MILLION_OPERATIONS: f64 = 0.50;
const MILLION_READ_UNITS: f64 = 0.125;
/// Momento's default quota of operations a second.
const QUOTA: u32 = 100;

#[derive(Clone, Copy)]
struct Load {
    checks_per_second: u32,
    pairs: usize,
    replicas: usize,
}

/// Counts of the measured time.
#[derive(Default)]
struct Tally {
    checks: u64,
    /// Checks that memory answered.
    hits: u64,
    table_reads: u64,
    operations: u64,
    /// Operations of the present second, and most of a second.
    second: u64,
    most_of_a_second: u64,
}

struct Simulation {
    load: Load,
    /// The near cache, and the budget and times to live of each replica.
    replicas: Vec<(NearCache, EntryCache)>,
    /// Entries in Momento: the time of their table read, and their end.
    shared: HashMap<Key, (Instant, Instant)>,
    memberships: Vec<[Key; 3]>,
    /// The sums of the pairs' shares, by Zipf's law with exponent 1.
    shares: Vec<f64>,
    counts: Tally,
}

impl Simulation {
    fn new(load: Load) -> Self {
        let settings = CoherenceSettings {
            near_ttl: Some(HOUR),
            cache_operations_per_second: Some(QUOTA),
            ..CoherenceSettings::default()
        };
        let replica = |_| {
            let entries = EntryCache::new(MomentoClient::default(), settings.clone());
            entries.budget.share_among(load.replicas);
            (NearCache::new(&settings), entries)
        };
        let mut sum = 0.0;
        let shares = (1..=load.pairs).map(|rank| {
            sum += 1.0 / f64::from(u32::try_from(rank).unwrap());
            sum
        });
        Self {
            replicas: (0..load.replicas).map(replica).collect(),
            shared: HashMap::new(),
            memberships: shuffled_pairs(load.pairs),
            shares: shares.collect(),
            counts: Tally::default(),
            load,
        }
    }

    /// Runs for this time. A pair is changed each second.
    async fn run(&mut self, time: Duration) {
        self.counts = Tally::default();
        let ticks_of_second = Duration::from_secs(1).as_millis() / TICK.as_millis();
        for tick in 0..time.as_millis() / TICK.as_millis() {
            advance(TICK).await;
            for _ in 0..arrivals(f64::from(self.load.checks_per_second) * TICK.as_secs_f64()) {
                self.check();
            }
            if tick % ticks_of_second == 0 {
                self.change_role();
                let counts = &mut self.counts;
                counts.most_of_a_second = counts.most_of_a_second.max(counts.second);
                counts.second = 0;
            }
        }
    }

    /// One check, at any replica.
    fn check(&mut self) {
        let share = fastrand::f64() * self.shares.last().unwrap();
        let pair = self.shares.partition_point(|sum| *sum < share);
        let (near_cache, entries) = &self.replicas[fastrand::usize(..self.replicas.len())];
        let now = Instant::now();
        let required = Required {
            epoch: EPOCH,
            since: None,
        };
        let is_near = |key: &&Key| {
            let entry = near_cache.get(key);
            entry.is_some_and(|entry| entry.meets(required, now))
        };
        let missing: Vec<_> = self.memberships[pair]
            .iter()
            .filter(|key| !is_near(key))
            .collect();
        self.counts.checks += 1;
        if missing.is_empty() {
            self.counts.hits += 1;
            return;
        }
        let is_looked_up = entries.budget.try_look_up(missing.len());
        let mut operations = if is_looked_up {
            missing.len() as u64 * u64::from(READ)
        } else {
            0
        };
        for key in missing {
            let shared = self.shared.get(key).filter(|(_, end)| *end > now);
            let read = match shared {
                Some((read, _)) if is_looked_up => *read,
                _ => {
                    self.counts.table_reads += 1;
                    if is_looked_up && entries.budget.try_fill() {
                        operations += 2 * u64::from(WRITE);
                        let end = now + entries.ttl(key, true);
                        self.shared.insert(key.clone(), (now, end));
                    }
                    now
                }
            };
            let ticket = near_cache.begin_read(key, EPOCH, now);
            let near_ttl = entries.near_ttl(key, true);
            let life = near_ttl.saturating_sub(now.duration_since(read));
            near_cache.install(key, Arc::new(Some(record(key))), ticket, life);
        }
        self.counts.add_operations(operations);
    }

    /// A promotion of any pair, by its calls in docs/remote-calls.md: it fences the membership in
    /// Momento and in all near caches, compares three premises, and publishes.
    fn change_role(&mut self) {
        let pair = fastrand::usize(..self.memberships.len());
        let [_, _, membership] = &self.memberships[pair];
        let write = WriteId(Uuid::from_u128(fastrand::u128(..)));
        let keys = std::slice::from_ref(membership);
        let now = Instant::now();
        for (near_cache, _) in &self.replicas {
            near_cache.fence(keys, write, now + Timing::default().fence_ttl);
            near_cache.release(keys, write);
        }
        let (_, entries) = &self.replicas[fastrand::usize(..self.replicas.len())];
        let budget = &entries.budget;
        let peeks = budget.try_peek(1);
        budget.fence();
        budget.fence();
        budget.compare(3);
        let publishes = budget.try_publish();
        if publishes {
            let end = now + entries.ttl(membership, true);
            self.shared.insert(membership.clone(), (now, end));
        } else {
            self.shared.remove(membership);
        }
        let operations =
            2 * WRITE + 3 * READ + u32::from(peeks) * READ + u32::from(publishes) * WRITE;
        self.counts.add_operations(operations.into());
    }

    /// The bill of a million checks.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn dollars(&self) -> f64 {
        let of_checks = |count: u64| count as f64 / self.counts.checks as f64;
        of_checks(self.counts.operations) * MILLION_OPERATIONS
            + of_checks(self.counts.table_reads) * MILLION_READ_UNITS
    }
}

impl Tally {
    fn add_operations(&mut self, operations: u64) {
        self.operations += operations;
        self.second += operations;
    }
}

impl fmt::Display for Simulation {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load {
            checks_per_second,
            pairs,
            replicas,
        } = self.load;
        let Tally {
            checks,
            hits,
            most_of_a_second,
            ..
        } = self.counts;
        let seconds = checks as f64 / f64::from(checks_per_second);
        write!(
            f,
            "| {checks_per_second} | {pairs} | {replicas} | {:.1} % | {:.1} | {most_of_a_second} | {:.1} | {:.3} |",
            hits as f64 / checks as f64 * 100.0,
            self.counts.operations as f64 / seconds,
            self.counts.table_reads as f64 / seconds,
            self.dollars(),
        )
    }
}

/// The keys of the pairs. The ranks of pairs of a user or an organization are independent.
fn shuffled_pairs(pairs: usize) -> Vec<[Key; 3]> {
    let organizations = (pairs / MEMBERS_OF_ORGANIZATION).max(1);
    let mut memberships: Vec<_> = (0..pairs)
        .map(|pair| {
            let username =
                Username::parse_new(&format!("user-{:07}", pair / MEMBERSHIPS_OF_USER)).unwrap();
            let name = format!("organization-{:05}", fastrand::usize(..organizations));
            let organization = OrganizationName::parse_new(&name).unwrap();
            [
                Key::User(username.clone()),
                Key::Organization(organization.clone()),
                Key::Membership(organization, username),
            ]
        })
        .collect();
    fastrand::shuffle(&mut memberships);
    memberships
}

/// The number of events in a period, by Poisson's law with this mean.
fn arrivals(mean: f64) -> u64 {
    let mut arrivals = 0;
    let mut left = mean;
    loop {
        left += fastrand::f64().ln();
        if left < 0.0 {
            return arrivals;
        }
        arrivals += 1;
    }
}

/// A usual record with this key.
fn record(key: &Key) -> Record {
    let uid = Uid::from_text("9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5e");
    let stamp = Stamp::created(Timestamp(0));
    let text = |text: &str| FreeText::parse_new(text).unwrap();
    match key {
        Key::User(username) => Record::User(User {
            username: username.clone(),
            first_name: text("Olivia"),
            last_name: text("Smith"),
            display_name: text("Olivia Smith"),
            email: None,
            external_id: None,
            labels: Labels::default(),
            state: State::Active,
            deletion: None,
            uid,
            stamp,
        }),
        Key::Organization(organization_name) => Record::Organization(Organization {
            organization_name: organization_name.clone(),
            founding_user: "user-0000000".to_owned(),
            display_name: text("Example"),
            external_id: None,
            labels: Labels::default(),
            state: State::Active,
            deletion: None,
            uid,
            stamp,
        }),
        Key::Membership(organization_name, member_username) => Record::Membership(Membership {
            organization_name: organization_name.clone(),
            member_username: member_username.clone(),
            role: Some(Role::Member),
            adding_user: Some("user-0000000".to_owned()),
            member_uid: uid.clone(),
            organization_uid: uid,
            expire_time: None,
            labels: Labels::default(),
            stamp,
        }),
    }
}

#[tokio::test(start_paused = true)]
#[ignore = "takes minutes: just simulate"]
async fn checks_cost_little_within_the_default_quota() {
    println!(
        "| checks/s | pairs | replicas | in memory | Momento's operations/s | most of a second | table reads/s | $ for a million checks |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for checks_per_second in [100, 1000, 10_000] {
        for pairs in [1000, 10_000, 100_000, 1_000_000] {
            for replicas in [1, 3, 10] {
                let mut simulation = Simulation::new(Load {
                    checks_per_second,
                    pairs,
                    replicas,
                });
                // Until the first entries have ended.
                simulation.run(HOUR + HOUR / 4).await;
                simulation.run(HOUR / 4).await;
                println!("{simulation}");
                if (checks_per_second, pairs, replicas) == (1000, 100_000, 3) {
                    assert!(simulation.dollars() <= 0.10);
                }
            }
        }
    }
}

#[tokio::test]
#[ignore = "measures the memory of the process: just simulate"]
async fn an_entry_takes_little_more_memory_than_its_weight() {
    const MEMBERSHIPS: usize = 100_000;
    let settings = CoherenceSettings {
        near_cache_bytes: 1 << 30,
        ..CoherenceSettings::default()
    };
    let near_cache = NearCache::new(&settings);
    let memberships = shuffled_pairs(MEMBERSHIPS);
    let before = resident_bytes();
    let began = WallClock::now();
    for [_, _, key] in &memberships {
        let ticket = near_cache.begin_read(key, EPOCH, Instant::now());
        near_cache.install(key, Arc::new(Some(record(key))), ticket, HOUR);
    }
    let took = began.elapsed();
    let each = |bytes: u64| bytes / u64::try_from(MEMBERSHIPS).unwrap();
    let (resident, weight) = (each(resident_bytes() - before), each(near_cache.bytes()));
    println!(
        "{MEMBERSHIPS} memberships: {resident} bytes each in memory, {weight} by weight; installed in {took:?}"
    );
    assert!(
        resident < weight * 5 / 4,
        "{resident} bytes, {weight} by weight"
    );
}

/// The memory of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}
