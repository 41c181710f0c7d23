//! The cache protocol as a model, checked exhaustively within bounds: the protocol holds, and
//! every simpler variant breaks.

#![expect(clippy::panic, reason = "a test that cannot go on has failed")]

mod cell;
mod coherence;
mod generation;

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use coherence::{Coherence, FRESH, Kind, MONOTONIC};
use generation::Generations;

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
        .finish_when(HasDiscoveries::AnyFailures)
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
