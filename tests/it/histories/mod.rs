//! Histories of the real service under faults: several replicas, concurrent
//! clients, and faults of the network and the backends that a seed determines. The
//! responses to the clients are checked afterwards.
//!
//! `HISTORY_SEED=7 cargo test --test it histories` runs seed 7 alone,
//! `HISTORY_OPERATIONS=1000000` at least a million operations, and
//! `HISTORY_WORLDS=24` 24 worlds at once.

mod checker;
mod faults;
mod record;
mod world;

use self::{faults::Profile, world::Report};

/// Operations in `cargo test`. CI runs more.
const OPERATIONS: usize = 2_000;
/// Variable with the step that `tests/sabotage/branches.patch` leaves out.
const SABOTAGE: &str = "SABOTAGE";
/// Worlds at once.
const WORLDS: u64 = 3;

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Runs worlds until there were enough operations; prints a report.
async fn run(what: &str, profile: &Profile, operations: usize, first_seed: u64) -> Report {
    let mut total = Report::default();
    let mut seed = first_seed;
    // Worlds with near caches have three times as many operations.
    let (usual, most) = if profile.is_near {
        (1, WORLDS)
    } else {
        (WORLDS, u64::MAX)
    };
    let worlds_at_once = from_env("HISTORY_WORLDS").unwrap_or(usual).min(most);
    loop {
        let only = from_env("HISTORY_SEED");
        let seeds = match only {
            Some(seed) => seed..seed + 1,
            None => seed..seed + worlds_at_once,
        };
        seed += worlds_at_once;
        let worlds = seeds.map(|seed| tokio::spawn(world::run(seed, profile.clone())));
        for world in futures_util::future::join_all(worlds).await {
            total.add(world.unwrap());
        }
        if only.is_some() || total.operations >= operations || !total.violations.is_empty() {
            println!("{what}: seeds {first_seed}..{seed}, {total}");
            return total;
        }
    }
}

fn wanted_operations() -> usize {
    from_env("HISTORY_OPERATIONS").map_or(OPERATIONS, |wanted| usize::try_from(wanted).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_response_is_stale_under_any_fault() {
    let operations = wanted_operations() * 5 / 10;
    let report = run("everything fails", &Profile::hostile(), operations, 0).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_without_evictions_and_crashes_are_linearizable() {
    let operations = wanted_operations() * 3 / 10;
    let report = run("late and lost", &Profile::lossy(), operations, 1_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_that_may_be_stale_are_within_the_requested_staleness() {
    let operations = wanted_operations() * 2 / 10;
    let report = run("remembered", &Profile::remembering(), operations, 3_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_passes_histories_that_broken_protocols_fail() {
    let operations = wanted_operations() * 2 / 10;
    let report = run("evicted", &Profile::evicting(), operations, 2_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_response_from_memory_is_stale_under_any_fault() {
    let operations = wanted_operations() * 5 / 10;
    let profile = Profile::near_hostile();
    let report = run("everything fails, near", &profile, operations, 4_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_near_caches_without_crashes_are_linearizable() {
    let operations = wanted_operations() * 3 / 10;
    let profile = Profile::near_lossy();
    let report = run("late and lost, near", &profile, operations, 5_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_passes_histories_that_broken_near_caches_fail() {
    let operations = wanted_operations() * 2 / 10;
    let profile = Profile::near_broken();
    let report = run("interrupted, near", &profile, operations, 6_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    let profile = Profile::near_expiring();
    let report = run("expiring, near", &profile, operations, 7_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

/// `tests/sabotage/run` runs this with the service whose step [`SABOTAGE`] leaves out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "of the service as it is not"]
async fn a_protocol_without_one_of_its_steps_is_noticed() {
    const ENOUGH: usize = 100_000;
    let sabotage = std::env::var(SABOTAGE).expect("the name of a step");
    let (profile, first_seed) = match sabotage.as_str() {
        "near_look" => (Profile::near_expiring(), 7_000_000),
        "near_view" => (Profile::near_cut(), 8_000_000),
        near if near.starts_with("near_") => (Profile::near_broken(), 6_000_000),
        _ => (Profile::evicting(), 2_000_000),
    };
    let report = run(&sabotage, &profile, ENOUGH, first_seed).await;
    assert!(!report.violations.is_empty(), "{sabotage} went unnoticed");
}
