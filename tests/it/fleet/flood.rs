//! The effect of one caller's flood on another caller's latency: `just flood`.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use account_service::proto::account_v1 as pb;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::Fleet;
use crate::harness::Client;

const ORG: &str = "flood-org";
const FOUNDER: &str = "founder";
/// Connections of the flood, and concurrent calls on each. A call costs the service much
/// and the cache nothing: a batch of valid checks, and a last one that is invalid.
const CONNECTIONS: usize = 4;
const CALLS: usize = 64;
const CHECKS: usize = 100;
/// Sequential calls of the guest in each part.
const GUEST_CALLS: usize = 600;
const GUEST_PAUSE: Duration = Duration::from_millis(5);

struct Latencies(Vec<Duration>);

impl Latencies {
    fn quantile(&self, share: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index of a short list"
        )]
        let place = (self.0.len() as f64 * share) as usize;
        self.0[place.min(self.0.len() - 1)].as_secs_f64() * 1000.0
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| self.quantile(share));
        write!(f, "p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms")
    }
}

fn check() -> pb::MembershipCheck {
    pb::MembershipCheck {
        organization_name: ORG.to_owned(),
        username: FOUNDER.to_owned(),
        minimum_role: 0,
    }
}

/// Measures the latency of checks in a thread of its own, so that the flood's callers do
/// not delay the measurement.
async fn guest(addr: String) -> Latencies {
    let measure = async move {
        let mut client = Client::connect(format!("http://{addr}")).await.unwrap();
        let mut latencies = Vec::with_capacity(GUEST_CALLS);
        for _ in 0..GUEST_CALLS {
            let request = pb::CheckMembershipRequest {
                organization_name: ORG.to_owned(),
                username: FOUNDER.to_owned(),
                ..pb::CheckMembershipRequest::default()
            };
            let began = Instant::now();
            client.check_membership(request).await.unwrap();
            latencies.push(began.elapsed());
            sleep(GUEST_PAUSE).await;
        }
        latencies.sort_unstable();
        Latencies(latencies)
    };
    let measure = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(measure)
    };
    tokio::task::spawn_blocking(measure).await.unwrap()
}

async fn hog(addr: &str, is_over: &AtomicBool, counts: &[AtomicUsize; 2]) {
    let client = Client::connect(format!("http://{addr}")).await.unwrap();
    let calls = (0..CALLS).map(|_| {
        let mut client = client.clone();
        async move {
            while !is_over.load(Ordering::Relaxed) {
                let mut checks = vec![check(); CHECKS];
                checks.push(pb::MembershipCheck::default());
                let request = pb::BatchCheckMembershipsRequest {
                    checks,
                    consistency: None,
                };
                let code = client.batch_check_memberships(request).await.unwrap_err();
                let is_refused = code.code() == Code::ResourceExhausted;
                counts[usize::from(is_refused)].fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    join_all(calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: `just flood`"]
async fn a_flood_does_not_slow_other_callers() {
    let fleet = Fleet::start(1).await;
    let mut founder = fleet.client();
    let request = pb::CreateUserRequest {
        username: FOUNDER.to_owned(),
        ..pb::CreateUserRequest::default()
    };
    founder.create_user(request).await.unwrap();
    let request = pb::CreateOrganizationRequest {
        organization_name: ORG.to_owned(),
        founding_user: FOUNDER.to_owned(),
        ..pb::CreateOrganizationRequest::default()
    };
    founder.create_organization(request).await.unwrap();
    // A delay of 1 ms, as a real cache has.
    let cache = &fleet.backends.momento;
    cache.delay("GetBatch", Duration::from_millis(1));
    let addr = fleet.places[0].addr.clone();
    guest(addr.clone()).await;
    let alone = guest(addr.clone()).await;
    println!("alone: {alone}");
    let is_over = AtomicBool::new(false);
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let flood = join_all((0..CONNECTIONS).map(|_| hog(&addr, &is_over, &counts)));
    let flooded = async {
        sleep(Duration::from_secs(2)).await;
        let flooded = guest(addr.clone()).await;
        is_over.store(true, Ordering::Relaxed);
        flooded
    };
    let (_, flooded) = tokio::join!(flood, flooded);
    println!("beside a flood: {flooded}");
    let [served, refused] = counts.map(AtomicUsize::into_inner);
    println!("flood: {served} calls were processed, {refused} were rejected");
    let ratio = |share| flooded.quantile(share) / alone.quantile(share);
    println!("ratio: p50 {:.2}, p99 {:.2}", ratio(0.5), ratio(0.99));
}
