//! Compares the service with its limit and its peers: `just bench`.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use account_service::proto::account_v1::Source;
use account_service_bench::{
    figures::{Ratios, median},
    load::{Caller, Pace, Seen, Target},
    peers::{self, Backends, Programs, Subject},
};
use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use serde_json::Value;
use tokio::{runtime::Builder, task::LocalSet};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    programs: Programs,
    /// File for the raw rows.
    #[arg(long, default_value = "target/bench/rows.csv")]
    rows: PathBuf,
    /// Seconds of a run.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Pairs of runs of a comparison.
    #[arg(long, default_value_t = 8)]
    pairs: usize,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Clone, Copy, PartialEq, Eq)]
enum What {
    /// CPU time of a check, compared with the echo and peers.
    Cpu,
    /// The service compared with the echo alone: for quick experiments.
    Quick,
    /// All instructions of a check, compared with the echo, by callgrind.
    Instructions,
    /// Latency at the same rate, compared with peers.
    Peers,
    /// Latency at an open pace that keeps the processor busy for 30 % of the time, over
    /// a cache with a delay of a millisecond.
    Latency,
    /// The highest rate at which 99.9 % of the checks end within 5 ms.
    Rate,
    /// Time from start to the first check; memory.
    Start,
    /// A cache that rejects requests, hangs, and is flushed, at load.
    Faults,
    /// Successful checks at increasing load, with the cache and without.
    Overload,
    /// The effect of one caller's flood on the latency of another caller.
    Flood,
    /// One replica, and two that share the load.
    Replicas,
    /// Calls and bytes of a check to the backends.
    Remote,
}

/// A subject, and connections to it.
struct Measured {
    name: &'static str,
    subject: Rc<Subject>,
    caller: Caller,
}

/// Connections to a subject.
const CONNECTIONS: usize = 4;
/// Shortest warm-up of a subject.
const WARM: Duration = Duration::from_secs(3);
/// Longest warm-up of a subject.
const PATIENCE: Duration = Duration::from_secs(60);
/// The latency beyond which a rate counts as too high.
const TOO_LATE: Duration = Duration::from_millis(5);

impl Measured {
    async fn new(subject: Subject) -> Result<Self> {
        let caller = Caller::connect(subject.target.clone(), CONNECTIONS).await?;
        Ok(Self {
            name: subject.name,
            subject: Rc::new(subject),
            caller,
        })
    }

    /// More connections, on which responses from the cache and the table are accepted, too.
    async fn also_by_the_table(&self, connections: usize) -> Result<Caller> {
        let mut target = self.subject.target.clone();
        let others = [Source::Cache, Source::Store].map(peers::yes);
        target.answers.extend(others);
        Caller::connect(target, connections).await
    }
}

struct Bench {
    rows: File,
    seconds: Duration,
    pairs: usize,
}

/// One run.
struct Run {
    seen: Seen,
    /// CPU time of a call, in microseconds.
    cpu_us: f64,
    /// The part of the run in which the processor was busy.
    busy: f64,
}

fn micros(seen: &Seen, quantile: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let nanos = seen.latency.value_at_quantile(quantile) as f64;
    nanos / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn rate(seen: &Seen) -> f64 {
    seen.calls as f64 / seen.duration.as_secs_f64()
}

impl Bench {
    async fn run(&mut self, measured: &Measured, pace: Pace) -> Result<Run> {
        let before = measured.subject.process.busy()?;
        let seen = measured.caller.run(pace, self.seconds).await?;
        let busy = measured.subject.process.busy()? - before;
        ensure!(
            seen.calls > 0 && seen.failed == 0,
            "{}: {} calls, {} failed",
            measured.name,
            seen.calls,
            seen.failed
        );
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let cpu_us = busy.as_secs_f64() * 1e6 / seen.calls as f64;
        let busy = busy.as_secs_f64() / seen.duration.as_secs_f64();
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|it| micros(&seen, it));
        writeln!(
            self.rows,
            "{},{pace:?},{},{:.0},{cpu_us:.2},{busy:.3},{p50:.0},{p99:.0},{p999:.0}",
            measured.name.replace(',', ""),
            seen.calls,
            rate(&seen),
        )?;
        Ok(Run { seen, cpu_us, busy })
    }

    /// Runs at an open pace, once for each pair of a comparison, and prints the medians.
    async fn at_a_rate(&mut self, measured: &Measured, calls_a_second: u32) -> Result<()> {
        let mut runs = Vec::new();
        for _ in 0..self.pairs {
            runs.push(self.run(measured, Pace::Open(calls_a_second)).await?);
        }
        let of =
            |figure: &dyn Fn(&Run) -> f64| median(&runs.iter().map(figure).collect::<Vec<_>>());
        println!(
            "| {} | {:.0} | {:.2} | {:.0} | {:.0} | {:.0} |",
            measured.name,
            of(&|run| rate(&run.seen)),
            of(&|run| run.busy),
            of(&|run| micros(&run.seen, 0.5)),
            of(&|run| micros(&run.seen, 0.99)),
            of(&|run| micros(&run.seen, 0.999)),
        );
        Ok(())
    }

    /// Runs in the order A B B A. Returns the ratios of CPU time a call.
    async fn compare(&mut self, a: &Measured, b: &Measured, pace: Pace) -> Result<Ratios> {
        let mut pairs = Vec::new();
        let mut rates = (Vec::new(), Vec::new());
        for pair in 0..self.pairs {
            let (of_a, of_b) = if pair % 2 == 0 {
                let of_a = self.run(a, pace).await?;
                (of_a, self.run(b, pace).await?)
            } else {
                let of_b = self.run(b, pace).await?;
                (self.run(a, pace).await?, of_b)
            };
            rates.0.push(rate(&of_a.seen));
            rates.1.push(rate(&of_b.seen));
            pairs.push((of_a.cpu_us, of_b.cpu_us));
        }
        let ratios = Ratios::of(&pairs);
        let (of_a, of_b): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        println!(
            "| {} | {} | {pace:?} | {:.1} | {:.1} | {ratios} | {:.0} | {:.0} |",
            a.name,
            b.name,
            median(&of_a),
            median(&of_b),
            median(&rates.0),
            median(&rates.1),
        );
        Ok(ratios)
    }
}

const HEADER_OF_RATES: &str =
    "\n| | calls/s | processor busy | p50, µs | p99, µs | p99.9, µs |\n|---|---|---|---|---|---|";
const HEADER: &str = "\n| A | B | calls at once | A, µs of CPU a call | B, µs of CPU a call | B to A (least–greatest) | A, calls/s | B, calls/s |\n|---|---|---|---|---|---|---|---|";

/// The service, with the records of the checks in the table and in the cache.
async fn filled(
    programs: &Programs,
    backends: &Backends,
    environment: &[(&str, &str)],
) -> Result<Measured> {
    let subject = peers::service(programs, backends, environment)?;
    peers::seed(&subject.target.addr).await?;
    warm(subject).await
}

async fn warm(subject: Subject) -> Result<Measured> {
    let measured = Measured::new(subject).await?;
    let began = Instant::now();
    loop {
        let mut is_warm = true;
        for _ in 0..measured.subject.target.bodies.len() {
            let answer = measured.caller.call().await.context(measured.name)?;
            is_warm &= measured.subject.target.accepts(&answer);
        }
        // The stream reports the filling with a delay.
        if is_warm && began.elapsed() > WARM {
            return Ok(measured);
        }
        ensure!(began.elapsed() < PATIENCE, "{}: not warm", measured.name);
    }
}

async fn cpu(bench: &mut Bench, programs: &Programs, is_quick: bool) -> Result<()> {
    let backends = Backends::start(programs, 0, 0)?;
    let service = filled(programs, &backends, &[]).await?;
    let echo = warm(peers::echo(programs)?).await?;
    let mut rivals = Vec::new();
    let mut twin = None;
    if !is_quick {
        twin = Some(warm(peers::echo(programs)?).await?);
        rivals = all_rivals(programs, &backends).await?;
    }
    println!("{HEADER}");
    for pace in [Pace::Closed(1), Pace::Closed(64)] {
        if let Some(twin) = &twin {
            let same = bench.compare(&echo, twin, pace).await?.median();
            let is_void = (same - 1.0).abs() > 0.03;
            if is_void {
                println!("void: A/A differs by {:.1} %", (same - 1.0) * 100.0);
            }
        }
        bench.compare(&echo, &service, pace).await?;
        for rival in &rivals {
            bench.compare(&service, rival, pace).await?;
        }
    }
    Ok(())
}

/// Concurrent calls while instructions are counted. With more, look-ups would exceed their time
/// limit under callgrind.
const AT_ONCE: [usize; 2] = [1, 8];

/// Callgrind writes its output into this folder, for `callgrind_annotate`.
async fn instructions(bench: &Bench, mut programs: Programs, folder: &Path) -> Result<()> {
    println!("\n| | calls at once | instructions a call |\n|---|---|---|");
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let backends = Backends::start(&programs, 0, 0)?;
    for name in ["echo", "service"] {
        let file = folder.join(name);
        programs.callgrind = Some(file.clone());
        let measured = match name {
            "echo" => warm(peers::echo(&programs)?).await?,
            _ => filled(&programs, &backends, &[]).await?,
        };
        let process = &measured.subject.process;
        for at_once in AT_ONCE {
            process.instructions(&file)?;
            tokio::time::sleep(bench.seconds).await;
            let idle = process.instructions(&file)?;
            let pace = Pace::Closed(at_once);
            let seen = measured.caller.run(pace, bench.seconds).await?;
            let busy = process.instructions(&file)?.saturating_sub(idle);
            ensure!(seen.failed == 0 && seen.calls > 0, "{seen:?}");
            println!("| {} | {at_once} | {} |", measured.name, busy / seen.calls);
        }
    }
    Ok(())
}

/// The installed alternatives to the service.
async fn all_rivals(programs: &Programs, backends: &Backends) -> Result<Vec<Measured>> {
    let rivals = [
        peers::node(programs, backends)?,
        peers::spicedb(programs).await?,
        peers::openfga(programs)?,
    ];
    let mut warmed = Vec::new();
    for rival in rivals.into_iter().flatten() {
        warmed.push(warm(rival).await?);
    }
    Ok(warmed)
}

/// Calls a second at which latencies are compared. The slowest peer sustains the first rate.
const EQUAL_RATES: [u32; 2] = [1000, 4000];

async fn equal_rates(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let backends = Backends::start(programs, 0, 0)?;
    let service = filled(programs, &backends, &[]).await?;
    let rivals = all_rivals(programs, &backends).await?;
    println!("{HEADER_OF_RATES}");
    for calls_a_second in EQUAL_RATES {
        bench.at_a_rate(&service, calls_a_second).await?;
        for rival in &rivals {
            // Not all peers sustain the rates of the service.
            if let Err(error) = bench.at_a_rate(rival, calls_a_second).await {
                println!("| {} | {calls_a_second}: {error} |", rival.name);
            }
        }
    }
    Ok(())
}

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

async fn latency(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let backends = Backends::start(programs, 1000, 5000)?;
    let metrics = peers::free_address()?;
    let service = filled(programs, &backends, &[("METRICS_ADDR", &metrics)]).await?;
    let echo = warm(peers::echo(programs)?).await?;
    println!("{HEADER_OF_RATES}");
    let mut within = Times::default();
    for measured in [&echo, &service] {
        let calls_a_second = rate_of_part(bench, measured).await?;
        let before = Times::read(&metrics)?;
        bench.at_a_rate(measured, calls_a_second).await?;
        within = Times::read(&metrics)?.since(&before);
    }
    let mean = |[count, sum]: [f64; 2]| sum / count * 1e6;
    println!(
        "in the service, on average: {:.0} µs a check, {:.0} µs of them a look-up that {:.1} checks share",
        mean(within.calls),
        mean(within.look_ups),
        within.calls[0] / within.look_ups[0],
    );
    Ok(())
}

/// Durations that the service reports: their number, and their sum in seconds.
#[derive(Default)]
struct Times {
    calls: [f64; 2],
    look_ups: [f64; 2],
}

impl Times {
    fn read(metrics: &str) -> Result<Self> {
        let of = |name: &str, labels: &str| -> Result<[f64; 2]> {
            let sample = |what| series(metrics, &format!("{name}_{what}"), labels);
            Ok([sample("count")?, sample("sum")?])
        };
        Ok(Self {
            calls: of("account_rpc_duration_seconds", "CheckMembership")?,
            look_ups: of("account_backend_duration_seconds", "GetBatch")?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        let difference = |now: [f64; 2], then: [f64; 2]| [now[0] - then[0], now[1] - then[1]];
        Self {
            calls: difference(self.calls, before.calls),
            look_ups: difference(self.look_ups, before.look_ups),
        }
    }
}

/// The sum of all series with these labels.
fn series(metrics: &str, name: &str, labels: &str) -> Result<f64> {
    let text = ureq::get(format!("http://{metrics}/metrics"))
        .call()?
        .body_mut()
        .read_to_string()?;
    let lines = text
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(labels));
    Ok(lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
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

async fn highest(bench: &mut Bench, programs: &Programs) -> Result<()> {
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

async fn start(programs: &Programs) -> Result<()> {
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

/// Calls a second while the cache fails.
const FAULTY_RATE: u32 = 3000;
const FAULT_AT: Duration = Duration::from_secs(2);
/// Time after the fault in which the service adapts.
const SETTLED: Duration = Duration::from_millis(100);

async fn faults(programs: &Programs) -> Result<()> {
    println!(
        "\n| the cache | calls | failed | p99 before, ms | p99 in the first 100 ms | p99 in the 3 s after | table reads |\n|---|---|---|---|---|---|---|"
    );
    for (name, order) in [
        ("rejects", "cache refuse"),
        ("does not respond", "cache hang"),
        ("is flushed", "cache flush"),
    ] {
        let mut backends = Backends::start(programs, 1000, 5000)?;
        let metrics = peers::free_address()?;
        let measured = filled(programs, &backends, &[("METRICS_ADDR", &metrics)]).await?;
        let caller = measured.also_by_the_table(CONNECTIONS).await?;
        let reads_before = series(&metrics, "account_table_reads_total", "")?;
        let fault = async {
            tokio::time::sleep(FAULT_AT).await;
            backends.process.order(order)
        };
        let run = caller.run(Pace::Open(FAULTY_RATE), FAULT_AT + Duration::from_secs(3));
        let (seen, done) = tokio::join!(run, fault);
        done?;
        let seen = seen?;
        let reads = series(&metrics, "account_table_reads_total", "")? - reads_before;
        let p99 = |from: Duration, to: Duration| {
            let within = seen
                .samples
                .iter()
                .filter(|it| (from..to).contains(&it.due));
            let mut latencies: Vec<_> = within.map(|it| it.latency.as_secs_f64() * 1e3).collect();
            latencies.sort_by(f64::total_cmp);
            let place = latencies.len() * 99 / 100;
            latencies.get(place).copied().unwrap_or(f64::NAN)
        };
        println!(
            "| {name} | {} | {} | {:.1} | {:.1} | {:.1} | {reads:.0} |",
            seen.calls + seen.failed,
            seen.failed,
            p99(Duration::ZERO, FAULT_AT),
            p99(FAULT_AT, FAULT_AT + SETTLED),
            p99(FAULT_AT + SETTLED, Duration::MAX),
        );
    }
    Ok(())
}

/// Connections for more concurrent calls than the service admits.
const MANY_CONNECTIONS: usize = 64;
/// Calls a second, up to a clear overload.
const OVERLOADS: [u32; 6] = [1000, 2000, 4000, 8000, 16_000, 32_000];

async fn overload(bench: &mut Bench, programs: &Programs) -> Result<()> {
    println!(
        "\n| the cache | checks/s | served | rejected | failed | p50, ms | p99, ms | table reads/s |\n|---|---|---|---|---|---|---|---|"
    );
    for (name, order) in [("responds", None), ("rejects", Some("cache refuse"))] {
        let mut backends = Backends::start_on(programs, 1000, 5000, 8)?;
        let metrics = peers::free_address()?;
        let measured = filled(programs, &backends, &[("METRICS_ADDR", &metrics)]).await?;
        let caller = measured.also_by_the_table(MANY_CONNECTIONS).await?;
        if let Some(order) = order {
            backends.process.order(order)?;
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
async fn elsewhere(
    target: impl FnOnce() -> Target + Send + 'static,
    connections: usize,
    pace: Pace,
    duration: Duration,
) -> Result<Seen> {
    let calls = move || {
        run_here(async {
            let caller = Caller::connect(target(), connections).await?;
            caller.run(pace, duration).await
        })
    };
    tokio::task::spawn_blocking(calls).await?
}

/// Runs a future that makes calls, in a runtime on this thread.
fn run_here<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, what)
}

async fn flood(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let backends = Backends::start_on(programs, 1000, 5000, 8)?;
    let service = filled(programs, &backends, &[]).await?;
    let guest = Caller::connect(service.subject.target.clone(), 1).await?;
    println!(
        "\n| the flood | the guest alone, p50 and p99, µs | in the flood | ratio of p50 (least–greatest) | of p99 | calls of the flood, a second |\n|---|---|---|---|---|---|"
    );
    for (name, asks_backends) in [
        ("980 checks, then an invalid one", false),
        ("980 checks", true),
    ] {
        let mut p50 = Vec::new();
        let mut p99 = Vec::new();
        let mut rates = Vec::new();
        for _ in 0..bench.pairs {
            let alone = guest.run(Pace::Closed(1), bench.seconds).await?;
            let addr = service.subject.target.addr.clone();
            let hog = move || peers::hog_target(addr, asks_backends);
            let (flooded, flood) = tokio::join!(
                async {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    guest.run(Pace::Closed(1), bench.seconds).await
                },
                elsewhere(
                    hog,
                    4,
                    Pace::Closed(256),
                    bench.seconds + Duration::from_secs(2)
                ),
            );
            let (flooded, flood) = (flooded?, flood?);
            ensure!(
                flooded.failed == 0,
                "the guest was rejected {} times",
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

/// Concurrent calls for each of two replicas: half as many as for one alone, and as many.
const EACH: [usize; 2] = [32, 64];

async fn replicas(bench: &mut Bench, programs: &Programs) -> Result<()> {
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

async fn remote(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let mut backends = Backends::start_metered(programs)?;
    let service = filled(programs, &backends, &[]).await?;
    println!(
        "\n| checks | calls to the cache, of a check | bytes to the cache, and back | bytes to the table, and back |\n|---|---|---|---|"
    );
    for (name, at_once) in [("alone", 1), ("64 at once", 64)] {
        let caller = Caller::connect(service.subject.target.clone(), CONNECTIONS).await?;
        backends.process.order("calls")?;
        let seen = caller.run(Pace::Closed(at_once), bench.seconds).await?;
        ensure!(seen.failed == 0, "{} failed", seen.failed);
        let checks = seen.calls;
        let counts: Value = serde_json::from_str(&backends.process.order("calls")?)?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let of_a_check = |it: &Value| it.as_f64().unwrap_or(f64::NAN) / checks as f64;
        let calls = counts["calls"].as_object().into_iter().flatten();
        let calls: Vec<_> = calls
            .map(|(call, times)| format!("{:.3} {call}", of_a_check(times)))
            .collect();
        let [cache, table] = ["cache", "table"].map(|backend| {
            let [to, back] = [0, 1].map(|way| of_a_check(&counts[backend][way]));
            format!("{to:.0}, {back:.0}")
        });
        println!("| {name} | {} | {cache} | {table} |", calls.join(", "));
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(folder) = arguments.rows.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut rows = File::options()
        .create(true)
        .append(true)
        .open(&arguments.rows)?;
    writeln!(
        rows,
        "subject,pace,calls,calls_per_s,cpu_us_per_call,busy,p50_us,p99_us,p999_us"
    )?;
    let mut bench = Bench {
        rows,
        seconds: Duration::from_secs_f64(arguments.seconds),
        pairs: arguments.pairs,
    };
    let programs = arguments.programs;
    let callgrind = arguments.rows.with_file_name("whole");
    run_here(async {
        match arguments.what {
            What::Cpu => cpu(&mut bench, &programs, false).await,
            What::Quick => cpu(&mut bench, &programs, true).await,
            What::Instructions => instructions(&bench, programs, &callgrind).await,
            What::Peers => equal_rates(&mut bench, &programs).await,
            What::Latency => latency(&mut bench, &programs).await,
            What::Rate => highest(&mut bench, &programs).await,
            What::Start => start(&programs).await,
            What::Faults => faults(&programs).await,
            What::Overload => overload(&mut bench, &programs).await,
            What::Flood => flood(&mut bench, &programs).await,
            What::Replicas => replicas(&mut bench, &programs).await,
            What::Remote => remote(&mut bench, &programs).await,
        }
    })
}
