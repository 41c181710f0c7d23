//! Histories of the real service under faults: several replicas, concurrent
//! clients, a network and backends that misbehave by a seed. What the clients
//! saw is checked afterwards.
//!
//! `HISTORY_SEED=7 cargo test --test it histories` runs that seed alone,
//! `HISTORY_OPERATIONS=1000000` at least as many operations as it says, and
//! `HISTORY_WORLDS=24` so many worlds side by side.

mod checker;
mod faults;
mod record;
mod world;

use self::{faults::Profile, world::Report};

/// Operations of the tests of every day. CI asks for more.
const OPERATIONS: usize = 2_000;
/// Worlds side by side.
const WORLDS: u64 = 3;

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Runs worlds until there were enough operations; prints what was done.
async fn run(what: &str, profile: &Profile, operations: usize, first_seed: u64) -> Report {
    let mut total = Report::default();
    let mut seed = first_seed;
    let worlds_at_once = from_env("HISTORY_WORLDS").unwrap_or(WORLDS);
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
async fn no_replica_answers_stale_whatever_fails() {
    let operations = wanted_operations() * 5 / 10;
    let report = run("everything fails", &Profile::hostile(), operations, 0).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nothing_is_evicted_and_nobody_crashes_answers_are_linearizable() {
    let operations = wanted_operations() * 3 / 10;
    let report = run("late and lost", &Profile::lossy(), operations, 1_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_may_be_older_are_no_older_than_asked() {
    let operations = wanted_operations() * 2 / 10;
    let report = run("remembered", &Profile::remembering(), operations, 3_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_survives_what_broken_protocols_do_not() {
    let operations = wanted_operations() * 2 / 10;
    let report = run("evicted", &Profile::evicting(), operations, 2_000_000).await;
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

/// The histories notice what the service lacks.
#[cfg(feature = "sabotage")]
async fn assert_noticed(sabotage: account_service::coherence::Sabotage) {
    const ENOUGH: usize = 100_000;
    let profile = Profile {
        sabotage: Some(sabotage),
        ..Profile::evicting()
    };
    let report = run(&format!("{sabotage:?}"), &profile, ENOUGH, 2_000_000).await;
    assert!(!report.violations.is_empty(), "{sabotage:?} went unnoticed");
}

#[cfg(feature = "sabotage")]
mod sabotage {
    use account_service::coherence::Sabotage;

    use super::assert_noticed;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn publishing_instead_of_confirming_is_noticed() {
        assert_noticed(Sabotage::PublishAfterCommit).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn filling_without_a_lease_is_noticed() {
        assert_noticed(Sabotage::NoLease).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn acknowledging_before_confirming_is_noticed() {
        assert_noticed(Sabotage::AcknowledgeBeforeConfirm).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn joining_any_table_read_is_noticed() {
        assert_noticed(Sabotage::JoinAnyFlight).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn changing_nothing_without_a_fence_is_noticed() {
        assert_noticed(Sabotage::NoOpWithoutFence).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn taking_the_lease_beside_the_read_is_noticed() {
        assert_noticed(Sabotage::LeaseBesideRead).await;
    }
}
