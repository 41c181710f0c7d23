//! Several replicas: their capacity, and the cost of their fences.

use std::time::Duration;

use account_service_bench::{
    figures::{Ratios, median},
    load::{Caller, Pace},
    peers::{self, Backends, Programs},
    processes::Process,
};
use anyhow::{Context as _, Result};

use crate::runs::{Bench, Measured, filled, micros, seeded, series, warm};

/// Concurrent calls for each of two replicas: half as many as for one alone, and as many.
const EACH: [usize; 2] = [32, 64];

pub(crate) async fn replicas(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let backends = Backends::start(programs, 0, 0)?;
    let one = filled(programs, &backends, &[]).await?;
    let other = warm(peers::service(programs, &backends, &[])?).await?;
    let mut pairs = [Vec::new(), Vec::new()];
    for _ in 0..bench.pairs {
        let alone = bench.run(&one, Pace::Closed(64)).await?.cpu_us;
        let busy =
            || -> Result<_> { Ok(one.subject.process.busy()? + other.subject.process.busy()?) };
        for (pairs, each) in pairs.iter_mut().zip(EACH) {
            let before = busy()?;
            let pace = Pace::Closed(each);
            let (first, second) = tokio::join!(
                one.caller.run(pace, bench.seconds),
                other.caller.run(pace, bench.seconds)
            );
            let calls = first?.calls + second?.calls;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let both = (busy()? - before).as_secs_f64() * 1e6 / calls as f64;
            pairs.push((both, 2.0 * alone));
        }
    }
    println!("\ncapacity of two replicas, relative to one:");
    for (pairs, each) in pairs.iter().zip(EACH) {
        println!(
            "{each} calls at once for each, to 64: {}",
            Ratios::of(pairs)
        );
    }
    Ok(())
}

/// Replicas with a near cache, the writer among them.
const REPLICAS: [usize; 5] = [1, 3, 10, 30, 300];
/// Longest wait until the writer has seen all of them.
const LISTED_WITHIN: Duration = Duration::from_secs(60);

/// The latency of writes, and their CPU time, by the number of replicas: compared with a service
/// that has a table of its own, and no near cache to fence.
pub(crate) async fn writes(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let own_backends = Backends::start_on(programs, 1000, 5000, 8)?;
    let alone = seeded(programs, &own_backends, &[("PEER_ADDR", "")]).await?;
    let alone = writer(&Measured::new(alone).await?).await?;
    let backends = Backends::start_on(programs, 1000, 5000, 8)?;
    let metrics = peers::free_address()?;
    let measured = filled(programs, &backends, &[("METRICS_ADDR", &metrics)]).await?;
    let fencing = writer(&measured).await?;
    println!(
        "\n| replicas | p50, ms | p50 to no near cache | p99, ms | p99 to no near cache | CPU time of a write, µs | to no near cache | CPU time of a fence at another replica, µs |\n|---|---|---|---|---|---|---|---|"
    );
    let (mut others, mut listed) = (Vec::new(), 1);
    for count in REPLICAS {
        if listed < count {
            others.push(peers::other_replicas(programs, &backends, count - listed)?);
            listed = count;
        }
        all_listed(&metrics, count).await?;
        let idle = busy(&others, bench.seconds).await?;
        // Connects the writer to the others.
        bench.run(&fencing, Pace::Closed(1)).await?;
        let [mut p50, mut p99, mut cpu] = [const { Vec::new() }; 3];
        let mut at_others = Vec::new();
        for _ in 0..bench.pairs {
            let of_alone = bench.run(&alone, Pace::Closed(1)).await?;
            let before = total_busy(&others)?;
            let of_fencing = bench.run(&fencing, Pace::Closed(1)).await?;
            let took = (total_busy(&others)? - before)
                .saturating_sub(idle.mul_f64(of_fencing.seen.duration.as_secs_f64()));
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let fences = of_fencing.seen.calls as f64 * (count - 1) as f64;
            at_others.push(took.as_secs_f64() * 1e6 / fences);
            let pair = |quantile| {
                let [of_alone, of_fencing] =
                    [&of_alone, &of_fencing].map(|run| micros(&run.seen, quantile) / 1e3);
                (of_alone, of_fencing)
            };
            p50.push(pair(0.5));
            p99.push(pair(0.99));
            cpu.push((of_alone.cpu_us, of_fencing.cpu_us));
        }
        let of_fencing =
            |pairs: &[(f64, f64)]| median(&pairs.iter().map(|pair| pair.1).collect::<Vec<_>>());
        println!(
            "| {count} | {:.2} | {} | {:.2} | {} | {:.0} | {} | {:.0} |",
            of_fencing(&p50),
            Ratios::of(&p50),
            of_fencing(&p99),
            Ratios::of(&p99),
            of_fencing(&cpu),
            Ratios::of(&cpu),
            median(&at_others),
        );
    }
    let failed = series(&metrics, "account_replica_fences_total", "failed")?;
    println!("fences that failed: {failed:.0}");
    Ok(())
}

/// The same process, called with role changes.
async fn writer(measured: &Measured) -> Result<Measured> {
    let target = peers::role_changes(measured.subject.target.addr.clone());
    Ok(Measured {
        name: measured.name,
        subject: measured.subject.clone(),
        caller: Caller::connect(target, 1).await?,
    })
}

/// Waits until the replica with these metrics has this number of replicas in its view.
async fn all_listed(metrics: &str, count: usize) -> Result<()> {
    let wait = async {
        loop {
            #[expect(clippy::cast_precision_loss, reason = "few")]
            let is_complete = series(metrics, "account_replicas_listed", "")? >= count as f64;
            if is_complete {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let waited = tokio::time::timeout(LISTED_WITHIN, wait).await;
    waited.with_context(|| format!("fewer than {count} replicas"))?
}

/// CPU time of idle replicas, for a second.
async fn busy(replicas: &[Process], during: Duration) -> Result<Duration> {
    let before = total_busy(replicas)?;
    tokio::time::sleep(during).await;
    Ok((total_busy(replicas)? - before).div_f64(during.as_secs_f64()))
}

fn total_busy(replicas: &[Process]) -> Result<Duration> {
    replicas.iter().map(Process::busy).sum()
}
