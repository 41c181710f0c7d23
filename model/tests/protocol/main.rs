//! The cache protocol as a model, checked exhaustively within bounds: the protocol holds, and
//! every simpler variant breaks.

#![expect(clippy::panic, reason = "a test that cannot go on has failed")]

mod cell;
mod coherence;
mod generation;
mod near_cache;

use std::{collections::BTreeSet, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};

use coherence::{Coherence, FRESH, Kind, MONOTONIC};
use generation::Generations;
use near_cache::NearCaches;

/// Bounds within which every simpler variant breaks. Each is explored in seconds.
const SMALL: coherence::Bounds = coherence::Bounds {
    reads: 1,
    evictions: 1,
    failures: 1,
    crashes: 1,
};
const SMALL_SWITCH: generation::Bounds = generation::Bounds {
    reads: 1,
    trips: 1,
    evictions: 0,
};

const SMALL_NEAR: near_cache::Bounds = near_cache::Bounds {
    reads: 2,
    failures: 0,
    evictions: 0,
    joins: 0,
    crashes: 0,
};

/// Explores every state within the bounds; every property must hold in each.
fn assert_holds<M>(what: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: std::fmt::Debug + std::hash::Hash + Clone + PartialEq + Send + Sync,
    M::Action: std::fmt::Debug + Clone + PartialEq + Send + Sync,
{
    let began = Instant::now();
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!(
        "{what}: {} states, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f32()
    );
    checker.assert_properties();
}

/// Finds the shortest path to a state in which the property does not hold.
fn assert_breaks<M>(what: &str, model: M, property: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: std::fmt::Debug + std::hash::Hash + Clone + PartialEq + Send + Sync,
    M::Action: std::fmt::Debug + Clone + PartialEq + Send + Sync,
{
    let began = Instant::now();
    let checker = model
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AllOf(BTreeSet::from([property])))
        .spawn_bfs()
        .join();
    let path = checker
        .discovery(property)
        .unwrap_or_else(|| panic!("{what}: no counterexample"));
    let actions = path.into_actions();
    println!(
        "{what}: broken in {} steps after {} states, {:.1} s: {actions:?}",
        actions.len(),
        checker.unique_state_count(),
        began.elapsed().as_secs_f32()
    );
}

fn coherence(
    variant: coherence::Variant,
    writers: [Kind; 2],
    bounds: coherence::Bounds,
) -> Coherence {
    Coherence {
        variant,
        writers,
        bounds,
    }
}

const CHANGES: [Kind; 2] = [Kind::Change, Kind::Change];
const CHANGE_AND_NO_OP: [Kind; 2] = [Kind::Change, Kind::NoOp];

#[test]
fn the_protocol_never_returns_a_stale_version() {
    for writers in [CHANGES, CHANGE_AND_NO_OP] {
        let model = coherence(coherence::Variant::LeaseFenceConfirm, writers, SMALL);
        assert_holds(&format!("lease, fence, confirm; {writers:?}"), model);
    }
}

#[test]
fn without_eviction_reads_do_not_go_back() {
    let bounds = coherence::Bounds {
        evictions: 0,
        ..SMALL
    };
    for writers in [CHANGES, CHANGE_AND_NO_OP] {
        let model = coherence(coherence::Variant::LeaseFenceConfirm, writers, bounds);
        assert_holds(&format!("no eviction; {writers:?}"), model);
    }
}

#[test]
fn every_simpler_protocol_returns_a_stale_version() {
    use coherence::Variant;
    for (variant, writers) in [
        (Variant::ReadAndWriteAside, CHANGES),
        (Variant::DeleteAfterCommit, CHANGES),
        (Variant::FillWithoutLease, CHANGES),
        (Variant::AcknowledgeFailedDelete, CHANGES),
        (Variant::FenceBeforeCommitOnly, CHANGES),
        (Variant::AcknowledgeBeforeConfirm, CHANGES),
        (Variant::PublishAfterCommit, CHANGES),
        (Variant::PublishOnAnyConfirm, CHANGES),
        (Variant::JoinAnyFlight, CHANGES),
        (Variant::NoOpWithoutFence, CHANGE_AND_NO_OP),
        (Variant::LeaseBesideRead, CHANGES),
    ] {
        let model = coherence(variant, writers, SMALL);
        assert_breaks(&format!("{variant:?}"), model, FRESH);
    }
}

#[test]
fn publishing_over_another_writers_fence_lets_reads_go_back() {
    let bounds = coherence::Bounds {
        evictions: 0,
        ..SMALL
    };
    let model = coherence(coherence::Variant::PublishOverForeignFence, CHANGES, bounds);
    assert_breaks("PublishOverForeignFence", model, MONOTONIC);
}

#[test]
fn the_switch_never_returns_a_stale_version() {
    let model = Generations {
        variant: generation::Variant::Switch,
        bounds: SMALL_SWITCH,
    };
    assert_holds("the switch", model);
}

#[test]
fn every_simpler_switch_returns_a_stale_version() {
    use generation::Variant;
    for variant in [
        Variant::WritersDoNotWait,
        Variant::StepsDoNotWait,
        Variant::NoReady,
        Variant::LookBeforeCommit,
        Variant::PublishBeforeUse,
        Variant::SameGeneration,
    ] {
        let model = Generations {
            variant,
            bounds: SMALL_SWITCH,
        };
        assert_breaks(&format!("{variant:?}"), model, FRESH);
    }
}

/// Bounds with each kind of event that the near caches survive, one kind at a time.
fn events_of_near_caches() -> [([bool; 2], near_cache::Bounds); 4] {
    let (both, one) = ([true, true], [true, false]);
    [
        (
            both,
            near_cache::Bounds {
                evictions: 2,
                ..SMALL_NEAR
            },
        ),
        (
            both,
            near_cache::Bounds {
                failures: 1,
                joins: 1,
                ..SMALL_NEAR
            },
        ),
        (
            both,
            near_cache::Bounds {
                crashes: 1,
                joins: 1,
                ..SMALL_NEAR
            },
        ),
        (
            one,
            near_cache::Bounds {
                joins: 1,
                evictions: 1,
                ..SMALL_NEAR
            },
        ),
    ]
}

#[test]
fn near_caches_never_return_a_stale_version() {
    for (joined, bounds) in events_of_near_caches() {
        let model = NearCaches {
            variant: near_cache::Variant::Directory,
            writers: [Some(Kind::Change), None],
            joined,
            bounds,
        };
        assert_holds(&format!("near caches; {joined:?} {bounds:?}"), model);
    }
    let model = NearCaches {
        variant: near_cache::Variant::Directory,
        writers: CHANGE_AND_NO_OP.map(Some),
        joined: [true, true],
        bounds: SMALL_NEAR,
    };
    assert_holds("near caches; a change and a no-op", model);
}

#[test]
fn every_simpler_near_cache_returns_a_stale_version() {
    use near_cache::{Bounds, Variant};
    let (both, one) = ([true, true], [true, false]);
    let evictions = Bounds {
        evictions: 2,
        ..SMALL_NEAR
    };
    let failures = Bounds {
        failures: 1,
        joins: 1,
        ..SMALL_NEAR
    };
    let joins = Bounds {
        joins: 1,
        ..SMALL_NEAR
    };
    for (variant, joined, bounds) in [
        (Variant::DropWithoutHold, both, SMALL_NEAR),
        (Variant::DropAfterCommit, both, evictions),
        (Variant::JoinWithoutSettle, one, joins),
        (Variant::NoLookAfterCommit, both, evictions),
        (Variant::EvictWithoutSettle, both, failures),
        (Variant::RemoveWithoutSettle, both, failures),
        (Variant::InstallOverFence, both, SMALL_NEAR),
        (Variant::HoldSeenOnArrival, both, SMALL_NEAR),
        (Variant::KeepOverRejoin, both, failures),
        (Variant::InstallBeforeActive, one, joins),
        (Variant::HoldsEndEarly, both, evictions),
        (Variant::NoFences, both, SMALL_NEAR),
        (Variant::ServeWithoutView, both, failures),
    ] {
        let model = NearCaches {
            variant,
            writers: CHANGES.map(Some),
            joined,
            bounds,
        };
        assert_breaks(&format!("{variant:?}"), model, FRESH);
    }
}

#[test]
fn reads_go_back_if_a_replica_joins_during_a_commit() {
    let model = NearCaches {
        variant: near_cache::Variant::JoinDuringCommit,
        writers: [Some(Kind::Change), None],
        joined: [true, false],
        bounds: near_cache::Bounds {
            joins: 1,
            ..SMALL_NEAR
        },
    };
    assert_breaks("JoinDuringCommit", model, MONOTONIC);
}

#[test]
fn a_replica_that_is_removed_from_the_directory_at_once_returns_a_stale_version() {
    let model = NearCaches {
        variant: near_cache::Variant::StrikeOffAtOnce,
        writers: [Some(Kind::Change), None, Some(Kind::Change)],
        joined: [true, true, false],
        bounds: near_cache::Bounds {
            failures: 1,
            ..SMALL_NEAR
        },
    };
    assert_breaks("StrikeOffAtOnce", model, FRESH);
}

#[test]
#[ignore = "explores hundreds of millions of states; see docs/coherence.md"]
fn the_protocol_holds_within_larger_bounds() {
    let two_evictions = coherence::Bounds {
        evictions: 2,
        ..SMALL
    };
    let two_failures = coherence::Bounds {
        failures: 2,
        crashes: 0,
        ..SMALL
    };
    let two_reads = coherence::Bounds {
        reads: 2,
        failures: 0,
        ..SMALL
    };
    for bounds in [two_evictions, two_failures, two_reads] {
        let model = coherence(coherence::Variant::LeaseFenceConfirm, CHANGES, bounds);
        assert_holds(&format!("{bounds:?}"), model);
    }
}

#[test]
#[ignore = "explores hundreds of millions of states; see docs/coherence.md"]
fn the_switch_holds_within_larger_bounds() {
    let bounds = generation::Bounds {
        evictions: 1,
        ..SMALL_SWITCH
    };
    let model = Generations {
        variant: generation::Variant::Switch,
        bounds,
    };
    assert_holds(&format!("{bounds:?}"), model);
}

#[test]
#[ignore = "explores hundreds of millions of states; see docs/coherence.md"]
fn near_caches_hold_within_larger_bounds() {
    let bounds = near_cache::Bounds {
        reads: 2,
        failures: 1,
        evictions: 1,
        joins: 1,
        crashes: 1,
    };
    let two = NearCaches {
        variant: near_cache::Variant::Directory,
        writers: [Some(Kind::Change), None],
        joined: [true, true],
        bounds,
    };
    assert_holds(&format!("two replicas; {bounds:?}"), two);
    let three = NearCaches {
        variant: near_cache::Variant::Directory,
        writers: [Some(Kind::Change), None, None],
        joined: [true, true, false],
        bounds: near_cache::Bounds {
            reads: 1,
            evictions: 0,
            crashes: 0,
            ..bounds
        },
    };
    assert_holds("three replicas", three);
}
