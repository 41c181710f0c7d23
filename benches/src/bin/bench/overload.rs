//! Overload, and floods of one caller.

use std::time::Duration;

use account_service_bench::{
    figures::{Ratios, median},
    load::{Caller, Pace, RunResult, Target},
    peers::{self, Backends, Programs},
};
use anyhow::{Result, ensure};

use crate::{
    run_here,
    runs::{Bench, filled, micros, series},
};

/// Connections for more concurrent calls than the service admits.
const MANY_CONNECTIONS: usize = 64;
/// Calls a second, up to a clear overload.
const OVERLOADS: [u32; 6] = [1000, 2000, 4000, 8000, 16_000, 32_000];

pub(crate) async fn overload(bench: &mut Bench, programs: &Programs) -> Result<()> {
    println!(
        "\n| the cache | checks/s | served | rejected | failed | p50, ms | p99, ms | table reads/s |\n|---|---|---|---|---|---|---|---|"
    );
    for (name, command) in [("responds", None), ("rejects", Some("cache refuse"))] {
        let mut backends = Backends::start_on(programs, 1000, 5000, 8)?;
        let metrics = peers::free_address()?;
        let measured = filled(programs, &backends, &[("METRICS_ADDR", &metrics)]).await?;
        let caller = measured.also_by_the_table(MANY_CONNECTIONS).await?;
        if let Some(command) = command {
            backends.process.command(command)?;
        }
        let table_reads = || series(&metrics, "account_table_reads_total", "");
        for offered in OVERLOADS {
            let before = table_reads()?;
            let seen = caller.run(Pace::Open(offered), bench.seconds).await?;
            let reads = table_reads()? - before;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let a_second = |count: u64| count as f64 / seen.duration.as_secs_f64();
            println!(
                "| {name} | {offered} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} | {:.0} |",
                a_second(seen.calls),
                a_second(seen.refused),
                a_second(seen.failed - seen.refused),
                micros(&seen, 0.5) / 1000.0,
                micros(&seen, 0.99) / 1000.0,
                reads / seen.duration.as_secs_f64(),
            );
        }
    }
    Ok(())
}

/// Makes calls from a separate thread, as from another machine, so that calls of this thread do
/// not wait for them.
async fn on_another_thread(
    target: impl FnOnce() -> Target + Send + 'static,
    connections: usize,
    pace: Pace,
    duration: Duration,
) -> Result<RunResult> {
    let calls = move || {
        run_here(async {
            let caller = Caller::connect(target(), connections).await?;
            caller.run(pace, duration).await
        })
    };
    tokio::task::spawn_blocking(calls).await?
}

pub(crate) async fn flood(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let backends = Backends::start_on(programs, 1000, 5000, 8)?;
    let service = filled(programs, &backends, &[]).await?;
    let caller = Caller::connect(service.subject.target.clone(), 1).await?;
    println!(
        "\n| the flood | another caller alone, p50 and p99, µs | in the flood | ratio of p50 (least–greatest) | of p99 | calls of the flood, a second |\n|---|---|---|---|---|---|"
    );
    for (name, asks_backends) in [
        ("980 checks, then an invalid one", false),
        ("980 checks", true),
    ] {
        let mut p50 = Vec::new();
        let mut p99 = Vec::new();
        let mut rates = Vec::new();
        for _ in 0..bench.pairs {
            let alone = caller.run(Pace::Closed(1), bench.seconds).await?;
            let addr = service.subject.target.addr.clone();
            let flooding = move || peers::flood_target(addr, asks_backends);
            let (flooded, flood) = tokio::join!(
                async {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    caller.run(Pace::Closed(1), bench.seconds).await
                },
                on_another_thread(
                    flooding,
                    4,
                    Pace::Closed(256),
                    bench.seconds + Duration::from_secs(2)
                ),
            );
            let (flooded, flood) = (flooded?, flood?);
            ensure!(
                flooded.failed == 0,
                "the other caller was rejected {} times",
                flooded.failed
            );
            p50.push((micros(&alone, 0.5), micros(&flooded, 0.5)));
            p99.push((micros(&alone, 0.99), micros(&flooded, 0.99)));
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let calls = (flood.calls + flood.failed) as f64;
            rates.push(calls / flood.duration.as_secs_f64());
        }
        let [(alone50, in50), (alone99, in99)] = [&p50, &p99].map(|pairs| {
            let (alone, flooded): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
            (median(&alone), median(&flooded))
        });
        println!(
            "| {name} | {alone50:.0}, {alone99:.0} | {in50:.0}, {in99:.0} | {} | {} | {:.0} |",
            Ratios::of(&p50),
            Ratios::of(&p99),
            median(&rates),
        );
    }
    Ok(())
}
