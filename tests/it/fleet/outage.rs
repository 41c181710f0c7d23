//! Full load while the cache fails and recovers: the callers' results and the table
//! reads in each second. `docs/pictures/draw` draws them.

use std::{
    fs,
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use account_service::proto::account_v1 as pb;
use futures_util::future::join_all;
use tokio::time::{Instant, interval, sleep};
use tonic::{Code, Request};

use super::Fleet;
use crate::harness::Client;

/// Environment variable with the file for the rows.
const ROWS: &str = "OUTAGE_ROWS";
const REPLICAS: usize = 2;
/// Callers. Each sends its next request as soon as the previous call has ended.
const READERS: usize = 64;
const WRITERS: usize = 4;
/// A pause, because each change makes the embedded table slower.
const BETWEEN_WRITES: Duration = Duration::from_millis(500);
/// Users that are checked. They are no members.
const USERS: usize = 2_000;
const TABLE_TAKES: Duration = Duration::from_millis(5);
/// How long each state of the cache lasts.
const LASTS: Duration = Duration::from_secs(15);
/// The calls to the cache, including the probe of an unreachable cache.
const CALLS: [&str; 4] = ["Get", "GetBatch", "SetIf", "BesideSetIf"];
const ORG: &str = "outage-org";
const FOUNDER: &str = "founder";

/// The results of one second.
#[derive(Debug, Default, Clone)]
struct Second {
    latencies: Vec<Duration>,
    refused: usize,
    failed: usize,
    writes: usize,
    failed_writes: usize,
}

struct Watch {
    is_over: AtomicBool,
    current: Mutex<Second>,
}

async fn read(client: Client, watch: &Watch) {
    let mut client = client;
    while !watch.is_over.load(Ordering::Relaxed) {
        let mut request = Request::new(pb::CheckMembershipRequest {
            organization_name: ORG.to_owned(),
            username: format!("user-{}", fastrand::usize(0..USERS)),
            ..pb::CheckMembershipRequest::default()
        });
        request.set_timeout(Duration::from_secs(3));
        let began = Instant::now();
        let response = client.check_membership(request).await;
        let took = began.elapsed();
        let pause = {
            let mut second = watch.current.lock().unwrap();
            match response {
                Ok(_) => {
                    second.latencies.push(took);
                    Duration::ZERO
                }
                Err(status) if status.code() == Code::ResourceExhausted => {
                    second.refused += 1;
                    Duration::from_millis(100)
                }
                Err(_) => {
                    second.failed += 1;
                    Duration::from_millis(100)
                }
            }
        };
        if pause > Duration::ZERO {
            sleep(pause).await;
        }
    }
}

async fn write(client: Client, number: usize, watch: &Watch) {
    let mut client = client;
    let (organization_name, member_username) = (ORG.to_owned(), format!("writer-{number}"));
    while !watch.is_over.load(Ordering::Relaxed) {
        let mut add = Request::new(pb::AddUserToOrganizationRequest {
            organization_name: organization_name.clone(),
            member_username: member_username.clone(),
            role: pb::Role::Member.into(),
            adding_user: FOUNDER.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..pb::AddUserToOrganizationRequest::default()
        });
        add.set_timeout(Duration::from_secs(3));
        let added = client.add_user_to_organization(add).await.is_ok();
        let mut remove = Request::new(pb::RemoveUserFromOrganizationRequest {
            organization_name: organization_name.clone(),
            member_username: member_username.clone(),
            acting_user: FOUNDER.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..pb::RemoveUserFromOrganizationRequest::default()
        });
        remove.set_timeout(Duration::from_secs(3));
        let removed = client.remove_user_from_organization(remove).await.is_ok();
        {
            let mut second = watch.current.lock().unwrap();
            second.writes += usize::from(added) + usize::from(removed);
            second.failed_writes += usize::from(!added) + usize::from(!removed);
        }
        sleep(BETWEEN_WRITES).await;
    }
}

/// Writes a row for each second, until the measurement is over.
async fn write_rows(fleet: &Fleet, watch: &Watch, state: &Mutex<&'static str>) {
    let mut rows = std::env::var(ROWS)
        .ok()
        .map(|path| fs::File::create(path).unwrap());
    let head = "second,state,reads,refused,failed,p50_ms,p99_ms,table_reads,writes,failed_writes";
    let mut write_line = |line: &str| {
        println!("{line}");
        if let Some(rows) = &mut rows {
            writeln!(rows, "{line}").unwrap();
        }
    };
    write_line(head);
    let mut seconds = interval(Duration::from_secs(1));
    seconds.tick().await;
    let mut number = 0;
    fleet.backends.forget_calls();
    while !watch.is_over.load(Ordering::Relaxed) {
        seconds.tick().await;
        number += 1;
        let mut second = std::mem::take(&mut *watch.current.lock().unwrap());
        let table_reads = fleet.backends.dynamodb.seen("BatchGetItem").len();
        fleet.backends.forget_calls();
        second.latencies.sort_unstable();
        let quantile = |share: usize| {
            let place =
                (second.latencies.len() * share / 100).min(second.latencies.len().max(1) - 1);
            let took = second.latencies.get(place).copied().unwrap_or_default();
            took.as_secs_f64() * 1000.0
        };
        write_line(&format!(
            "{number},{},{},{},{},{:.2},{:.2},{table_reads},{},{}",
            state.lock().unwrap(),
            second.latencies.len(),
            second.refused,
            second.failed,
            quantile(50),
            quantile(99),
            second.writes,
            second.failed_writes,
        ));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: `docs/pictures/draw`"]
async fn the_table_is_protected_while_the_cache_is_unreachable() {
    let fleet = Fleet::start(REPLICAS).await;
    let metrics = fleet.places.iter().map(|place| place.metrics.to_string());
    println!("metrics {}", metrics.collect::<Vec<_>>().join(","));
    let founder = &fleet.client();
    let names = (0..WRITERS).map(|number| format!("writer-{number}"));
    for username in names.chain([FOUNDER.to_owned()]) {
        let request = pb::CreateUserRequest {
            username,
            ..pb::CreateUserRequest::default()
        };
        founder.clone().create_user(request).await.unwrap();
    }
    let request = pb::CreateOrganizationRequest {
        organization_name: ORG.to_owned(),
        founding_user: FOUNDER.to_owned(),
        ..pb::CreateOrganizationRequest::default()
    };
    founder.clone().create_organization(request).await.unwrap();
    let (table, cache) = (&fleet.backends.dynamodb, &fleet.backends.momento);
    table.delay("BatchGetItem", TABLE_TAKES);
    let watch = Arc::new(Watch {
        is_over: AtomicBool::new(false),
        current: Mutex::default(),
    });
    let state = Mutex::new("warming up");
    let readers = join_all((0..READERS).map(|_| read(fleet.client(), &watch)));
    let writers = join_all((0..WRITERS).map(|number| write(fleet.client(), number, &watch)));
    let states = async {
        sleep(LASTS).await;
        *state.lock().unwrap() = "well";
        sleep(LASTS).await;
        *state.lock().unwrap() = "down";
        for call in CALLS {
            cache.refuse(call, "", 0, usize::MAX);
        }
        sleep(LASTS).await;
        cache.clear_rules();
        *state.lock().unwrap() = "back";
        sleep(LASTS).await;
        *state.lock().unwrap() = "silent";
        for call in CALLS {
            cache.delay(call, Duration::from_secs(3600));
        }
        sleep(LASTS).await;
        cache.clear_rules();
        *state.lock().unwrap() = "back again";
        sleep(LASTS).await;
        *state.lock().unwrap() = "emptied";
        fleet.backends.flush_cache().await;
        sleep(LASTS).await;
        watch.is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(readers, writers, states, write_rows(&fleet, &watch, &state));
}
