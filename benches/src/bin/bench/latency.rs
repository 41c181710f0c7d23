//! Latency at load, and the highest rate.

use std::time::Duration;

use account_service_bench::{
    figures::median,
    load::Pace,
    peers::{self, Backends, Programs},
};
use anyhow::Result;

use crate::runs::{Bench, HEADER_OF_RATES, Measured, WARM, filled, micros, series, warm};

/// The latency beyond which a rate counts as too high.
const TOO_LATE: Duration = Duration::from_millis(5);
/// Share of the processor that a subject uses while latencies are measured.
const PART: f64 = 0.3;

/// Calls a second that keep a subject's processor busy for that share of the time. The CPU time
/// of a call depends on the rate.
async fn rate_of_part(bench: &mut Bench, measured: &Measured) -> Result<u32> {
    let mut calls_a_second = 1000;
    for _ in 0..4 {
        let run = bench.run(measured, Pace::Open(calls_a_second)).await?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small"
        )]
        let of_part = (PART * 1e6 / run.cpu_us) as u32;
        calls_a_second = of_part;
    }
    Ok(calls_a_second)
}

pub(crate) async fn latency(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let backends = Backends::start(programs, 1000, 5000)?;
    let metrics = peers::free_address()?;
    let service = filled(programs, &backends, &[("METRICS_ADDR", &metrics)]).await?;
    let echo = warm(peers::echo(programs)?).await?;
    println!("{HEADER_OF_RATES}");
    for measured in [&echo, &service] {
        let calls_a_second = rate_of_part(bench, measured).await?;
        bench.at_a_rate(measured, calls_a_second).await?;
    }
    let of_checks = |what: &str| {
        let name = format!("account_rpc_duration_seconds_{what}");
        series(&metrics, &name, "CheckMembership")
    };
    println!(
        "in the service, on average: {:.1} µs a check",
        of_checks("sum")? / of_checks("count")? * 1e6,
    );
    Ok(())
}

/// The highest rate, within 5 %, at which at least two of three runs succeed.
async fn highest_rate(bench: &mut Bench, measured: &Measured) -> Result<(u32, f64)> {
    let mut best = (0, 0.0);
    let (mut low, mut high) = (500, 64_000);
    while high > low + low / 20 {
        let middle = u32::midpoint(low, high);
        let mut stood = 0;
        let mut busy = Vec::new();
        for _ in 0..3 {
            // A rate with failed calls is too high. The pause ends the effects on the next run.
            let Ok(run) = bench.run(measured, Pace::Open(middle)).await else {
                tokio::time::sleep(WARM).await;
                continue;
            };
            busy.push(run.busy);
            if micros(&run.seen, 0.999) < TOO_LATE.as_secs_f64() * 1e6 {
                stood += 1;
            }
        }
        if stood >= 2 {
            best = (middle, median(&busy));
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(best)
}

pub(crate) async fn highest(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let backends = Backends::start_on(programs, 0, 0, 8)?;
    let service = filled(programs, &backends, &[]).await?;
    let echo = warm(peers::echo(programs)?).await?;
    println!("\n| | highest rate, calls/s | processor busy |\n|---|---|---|");
    for measured in [&echo, &service] {
        let (rate, busy) = highest_rate(bench, measured).await?;
        println!("| {} | {rate} | {busy:.2} |", measured.name);
    }
    Ok(())
}
