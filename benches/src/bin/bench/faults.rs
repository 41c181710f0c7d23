//! Faults of the backends at load.

use std::{fs::File, io::Write as _, path::Path, time::Duration};

use account_service_bench::{
    load::{Pace, Sample},
    peers::{self, Backends, Programs},
};
use anyhow::Result;

use crate::runs::{CONNECTIONS, filled, series};

/// Calls a second while a backend fails.
const FAULTY_RATE: u32 = 3000;
const FAULT_AT: Duration = Duration::from_secs(2);
/// Time after the fault in which the service adapts.
const SETTLED: Duration = Duration::from_millis(100);
/// Time of the run after the fault, or after its end.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// A fault, and the command that begins it.
struct Fault {
    name: &'static str,
    command: &'static str,
    /// How long the fault lasts, and the command that ends it.
    end: Option<(Duration, &'static str)>,
}

const fn lasting(name: &'static str, command: &'static str) -> Fault {
    Fault {
        name,
        command,
        end: None,
    }
}

const fn silent_table(name: &'static str, seconds: u64) -> Fault {
    Fault {
        name,
        command: "table hang",
        end: Some((Duration::from_secs(seconds), "table ok")),
    }
}

const FAULTS: [Fault; 5] = [
    lasting("Momento rejects", "cache refuse"),
    lasting("Momento does not respond", "cache hang"),
    lasting("Momento is flushed", "cache flush"),
    silent_table("the table does not respond for 1 s", 1),
    silent_table("the table does not respond for 5 s", 5),
];

/// Writes the course of each fault to `timeline`: for each [`STEP`] the successful and the failed calls.
pub(crate) async fn faults(programs: &Programs, timeline: &Path) -> Result<()> {
    let mut timeline = File::create(timeline)?;
    writeln!(timeline, "fault,seconds,served,failed,p99_ms")?;
    println!(
        "\n| the fault | calls | failed | failed from–to, s after the fault | p99 before, ms | p99 in the first 100 ms | p99 after that | table reads |\n|---|---|---|---|---|---|---|---|"
    );
    for fault in FAULTS {
        let mut backends = Backends::start(programs, 1000, 5000)?;
        let metrics = peers::free_address()?;
        let measured = filled(programs, &backends, &[("METRICS_ADDR", &metrics)]).await?;
        let caller = measured.also_by_the_table(CONNECTIONS).await?;
        let reads_before = series(&metrics, "account_table_reads_total", "")?;
        let length = fault.end.map_or(Duration::ZERO, |(length, _)| length);
        let faulty = async {
            tokio::time::sleep(FAULT_AT).await;
            backends.process.command(fault.command)?;
            if let Some((length, end)) = fault.end {
                tokio::time::sleep(length).await;
                backends.process.command(end)?;
            }
            anyhow::Ok(())
        };
        let run = caller.run(Pace::Open(FAULTY_RATE), FAULT_AT + length + AFTERWARDS);
        let (seen, done) = tokio::join!(run, faulty);
        done?;
        let seen = seen?;
        let reads = series(&metrics, "account_table_reads_total", "")? - reads_before;
        write_course(&mut timeline, fault.name, &seen.samples)?;
        println!(
            "| {} | {} | {} | {} | {:.1} | {:.1} | {:.1} | {reads:.0} |",
            fault.name,
            seen.calls + seen.failed,
            seen.failed,
            failed_from_to(&seen.samples),
            p99_ms(&seen.samples, Duration::ZERO, FAULT_AT),
            p99_ms(&seen.samples, FAULT_AT, FAULT_AT + SETTLED),
            p99_ms(&seen.samples, FAULT_AT + SETTLED, Duration::MAX),
        );
    }
    Ok(())
}

/// The 99th percentile of the successful calls that were due in a period, in milliseconds.
fn p99_ms(samples: &[Sample], from: Duration, to: Duration) -> f64 {
    let within = samples
        .iter()
        .filter(|it| it.is_accepted && (from..to).contains(&it.due));
    let mut latencies: Vec<_> = within.map(|it| it.latency.as_secs_f64() * 1e3).collect();
    latencies.sort_by(f64::total_cmp);
    let place = latencies.len() * 99 / 100;
    latencies.get(place).copied().unwrap_or(f64::NAN)
}

/// A step of the course of a fault.
const STEP: Duration = Duration::from_millis(100);

fn write_course(timeline: &mut File, fault: &str, samples: &[Sample]) -> Result<()> {
    let end = samples.iter().map(|it| it.due).max().unwrap_or_default();
    let mut from = Duration::ZERO;
    while from < end {
        let to = from + STEP;
        let due = |it: &&Sample| (from..to).contains(&it.due);
        let (served, failed): (Vec<&Sample>, Vec<&Sample>) =
            samples.iter().filter(due).partition(|it| it.is_accepted);
        writeln!(
            timeline,
            "{fault},{:.1},{},{},{:.2}",
            from.as_secs_f64() - FAULT_AT.as_secs_f64(),
            served.len(),
            failed.len(),
            p99_ms(samples, from, to),
        )?;
        from = to;
    }
    Ok(())
}

/// When the first and the last call that failed were due, in seconds after the fault.
fn failed_from_to(samples: &[Sample]) -> String {
    let mut failed: Vec<_> = samples.iter().filter(|it| !it.is_accepted).collect();
    failed.sort_by_key(|it| it.due);
    let (Some(first), Some(last)) = (failed.first(), failed.last()) else {
        return String::from("none");
    };
    let [first, last] = [first, last].map(|it| it.due.as_secs_f64() - FAULT_AT.as_secs_f64());
    format!("{first:.2}–{last:.2}")
}
