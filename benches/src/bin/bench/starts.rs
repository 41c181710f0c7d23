//! Starts, restarts, and memory.

use std::time::{Duration, Instant};

use account_service_bench::{
    figures::median,
    load::{Caller, Pace},
    peers::{self, Backends, Programs, Subject},
};
use anyhow::Result;

use crate::runs::{CONNECTIONS, Measured, filled, micros, series};

pub(crate) async fn start(programs: &Programs) -> Result<()> {
    let backends = Backends::start(programs, 0, 0)?;
    let service = filled(programs, &backends, &[]).await?;
    let mut starts = Vec::new();
    for _ in 0..11 {
        let began = Instant::now();
        let subject = peers::service(programs, &backends, &[])?;
        let caller = Caller::connect(subject.target.clone(), 1).await?;
        caller.call().await?;
        starts.push(began.elapsed().as_secs_f64() * 1000.0);
        // Otherwise the service would wait for this idle client when it ends.
        drop(caller);
        tokio::time::sleep(Duration::from_millis(10)).await;
        subject.process.end()?;
    }
    println!(
        "start to the first served check: {:.1} ms (median of {starts:.1?})",
        median(&starts)
    );
    drop(service);
    println!("\n| | idle, KiB | 10,000 idle connections, KiB |\n|---|---|---|");
    memory(peers::echo(programs)?).await?;
    let room = [("MAX_CONNECTIONS", "10000")];
    memory(peers::service(programs, &backends, &room)?).await
}

/// Connections that are opened together, before their first calls.
const FRESH_CONNECTIONS: usize = 200;

async fn memory(subject: Subject) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = subject.process.resident_kib()?;
    let mut callers = Vec::new();
    // The service keeps connections on which a call was admitted, and few others.
    for _ in 0..10_000 / FRESH_CONNECTIONS {
        let caller = Caller::connect(subject.target.clone(), FRESH_CONNECTIONS).await?;
        for _ in 0..FRESH_CONNECTIONS {
            caller.call().await?;
        }
        callers.push(caller);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!(
        "| {} | {idle} | {} |",
        subject.name,
        subject.process.resident_kib()?
    );
    Ok(())
}

/// Checks a second from the start on.
const RESTARTED_RATE: u32 = 1000;
/// Covers the time until a replica serves from its memory.
const AFTER_START: Duration = Duration::from_secs(10);

/// The first seconds of a replica whose memory is empty, while another one has filled Momento.
pub(crate) async fn restarts(programs: &Programs) -> Result<()> {
    println!(
        "\n| Momento | checks | failed | p50, ms | p99, ms | table reads | records read from Momento |\n|---|---|---|---|---|---|---|"
    );
    for (name, operations, command) in [
        (
            "within its default quota, 100 operations a second",
            "100",
            None,
        ),
        ("within 10,000 operations a second", "10000", None),
        ("within 100,000 operations a second", "100000", None),
        ("rejects requests", "100000", Some("cache refuse")),
    ] {
        let mut backends = Backends::start_on(programs, 1000, 5000, 8)?;
        let before = filled(programs, &backends, &[]).await?;
        if let Some(command) = command {
            backends.process.command(command)?;
        }
        let metrics = peers::free_address()?;
        let environment = [
            ("METRICS_ADDR", metrics.as_str()),
            ("CACHE_OPERATIONS_PER_SECOND", operations),
        ];
        let subject = peers::service(programs, &backends, &environment)?;
        let restarted = Measured::new(subject).await?;
        let caller = restarted.also_by_the_table(CONNECTIONS).await?;
        let seen = caller.run(Pace::Open(RESTARTED_RATE), AFTER_START).await?;
        println!(
            "| {name} | {} | {} | {:.2} | {:.2} | {:.0} | {:.0} |",
            seen.calls + seen.failed,
            seen.failed,
            micros(&seen, 0.5) / 1e3,
            micros(&seen, 0.99) / 1e3,
            series(&metrics, "account_table_reads_total", "")?,
            series(&metrics, "account_cache_lookups_total", "hit")?,
        );
        drop(before);
    }
    Ok(())
}
