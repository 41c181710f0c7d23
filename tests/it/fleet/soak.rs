//! Mixed load for a chosen time, with faults of every kind: `just soak`.

use std::{fmt, fs, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Fleet, Policy, under_load};
use crate::harness::{
    binary::{memory_kib, scrape},
    script::error_body,
};

/// Environment variable with the duration in minutes.
const MINUTES: &str = "SOAK_MINUTES";
const REPLICAS: usize = 3;
const WORKERS: usize = 12;
/// The replica that is never restarted: its use of resources must not grow.
const STEADY: usize = 0;
/// Time between two faults.
const BETWEEN: Duration = Duration::from_secs(8);
/// How long a fault lasts.
const LASTS: Duration = Duration::from_secs(3);

/// The resources of a process.
#[derive(Debug, Clone, Copy)]
struct Held {
    after: Duration,
    memory_kb: u64,
    files: usize,
    tasks: u64,
    connections: u64,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>5} s: {} KiB resident, {} files, {} tasks, {} connections",
            self.after.as_secs(),
            self.memory_kb,
            self.files,
            self.tasks,
            self.connections
        )
    }
}

fn measure(fleet: &Fleet, began: Instant) -> Held {
    let pid = fleet.pid(STEADY).unwrap();
    let metrics = scrape(fleet.places[STEADY].metrics);
    let metric = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    };
    Held {
        after: began.elapsed(),
        memory_kb: memory_kib(pid, "VmRSS:"),
        files: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        tasks: metric("account_tasks "),
        connections: metric("account_connections "),
    }
}

/// Causes a random fault; returns its name.
async fn disturb(fleet: &Fleet) -> &'static str {
    let Fleet { backends, .. } = fleet;
    let (table, cache) = (&backends.dynamodb, &backends.momento);
    let victim = fastrand::usize(STEADY + 1..REPLICAS);
    let throttled = error_body("ThrottlingException");
    let conflict = r#"{"__type":"com.amazonaws.dynamodb.v20120810#TransactionCanceledException","Message":"Transaction cancelled","CancellationReasons":[{"Code":"TransactionConflict"}]}"#;
    let what = match fastrand::u8(0..13) {
        0 => {
            fleet.kill(victim);
            sleep(LASTS).await;
            fleet.start_replica(victim);
            "replica killed"
        }
        1 => {
            fleet.terminate(victim).await;
            fleet.start_replica(victim);
            "replica restarted"
        }
        2 => {
            cache.delay("GetBatch", Duration::from_millis(30));
            "cache slow"
        }
        3 => {
            cache.delay("GetBatch", Duration::from_secs(3600));
            "cache silent to reads"
        }
        4 => {
            for call in ["Get", "GetBatch", "SetIf", "BesideSetIf"] {
                cache.refuse(call, "", 0, usize::MAX);
            }
            "cache down"
        }
        5 => {
            for call in ["SetIf", "BesideSetIf"] {
                cache.delay(call, Duration::from_secs(3600));
            }
            "cache silent to writes"
        }
        6 => {
            backends.flush_cache().await;
            "cache emptied"
        }
        7 => {
            for _ in 0..50 {
                cache.lose_reply("SetIf", "");
            }
            "replies of the cache lost"
        }
        8 => {
            for _ in 0..20 {
                table.lose_reply("TransactWriteItems", "");
            }
            "replies of the table lost"
        }
        9 => {
            table.answer("TransactWriteItems", 50, 400, &throttled);
            table.answer("BatchGetItem", 50, 400, &throttled);
            "table throttles"
        }
        10 => {
            table.answer("TransactWriteItems", 50, 400, conflict);
            "transactions conflict"
        }
        11 => {
            table.delay("BatchGetItem", Duration::from_millis(200));
            table.delay("TransactWriteItems", Duration::from_millis(200));
            "table slow"
        }
        _ => {
            for call in [
                "GetItem",
                "BatchGetItem",
                "TransactWriteItems",
                "BesideGetItem",
            ] {
                table.refuse(call, "", 0, usize::MAX);
            }
            "table down"
        }
    };
    println!("{what}");
    sleep(LASTS).await;
    table.clear_rules();
    cache.clear_rules();
    for place in 0..REPLICAS {
        fleet.serving(place).await;
    }
    what
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as long as `SOAK_MINUTES`: `just soak`"]
async fn a_replica_leaks_no_resources_under_load_and_faults() {
    let minutes: f64 = std::env::var(MINUTES).map_or(1.0, |text| text.parse().unwrap());
    let duration = Duration::from_secs_f64(minutes * 60.0);
    let fleet = Fleet::start_with_near_caches(REPLICAS).await;
    let disturbances = async {
        let began = Instant::now();
        let mut faults = std::collections::BTreeMap::<_, usize>::new();
        let mut seen = Vec::new();
        while began.elapsed() < duration {
            sleep(BETWEEN).await;
            *faults.entry(disturb(&fleet).await).or_default() += 1;
            fleet.backends.forget_calls();
            let held = measure(&fleet, began);
            println!("{held}");
            seen.push(held);
        }
        // Calls in progress end.
        sleep(BETWEEN).await;
        seen.push(measure(&fleet, began));
        (faults, seen)
    };
    let (load, (faults, seen)) =
        under_load(&fleet, Policy::recommended(), WORKERS, disturbances).await;
    let report = load.report();
    println!("{report}");
    println!("faults: {faults:?}");
    let mut failures = std::collections::BTreeMap::<_, usize>::new();
    for failed in &report.failed {
        *failures.entry(failed).or_default() += 1;
    }
    println!("failed: {failures:#?}");
    assert!(report.wrong.is_empty(), "{report}");
    load.verify_all(&fleet).await;
    let (first, last) = (seen[seen.len() / 4], seen[seen.len() - 1]);
    println!("after a quarter {first}\nat the end {last}");
    assert!(last.memory_kb <= first.memory_kb * 5 / 4, "memory grows");
    assert!(last.files <= first.files + 16, "files are left open");
    assert!(last.tasks <= first.tasks + 64, "tasks are left");
    let mut fleet = fleet;
    for place in 0..fleet.places.len() {
        fleet.terminate(place).await;
    }
    fleet.places.clear();
}
