//! Runs of a measurement, and their comparison.

use std::{
    fs::File,
    io::Write as _,
    rc::Rc,
    time::{Duration, Instant},
};

use account_service::proto::account_v1::Source;
use account_service_bench::{
    figures::{Ratios, median},
    load::{Caller, Pace, RunResult},
    peers::{self, Backends, Programs, Subject},
};
use anyhow::{Context as _, Result, ensure};

/// A subject, and connections to it.
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    pub(crate) subject: Rc<Subject>,
    pub(crate) caller: Caller,
}

/// Connections to a subject.
pub(crate) const CONNECTIONS: usize = 4;
/// Shortest warm-up of a subject.
pub(crate) const WARM: Duration = Duration::from_secs(3);
/// Longest warm-up of a subject.
const PATIENCE: Duration = Duration::from_secs(60);

impl Measured {
    pub(crate) async fn new(subject: Subject) -> Result<Self> {
        let caller = Caller::connect(subject.target.clone(), CONNECTIONS).await?;
        Ok(Self {
            name: subject.name,
            subject: Rc::new(subject),
            caller,
        })
    }

    /// More connections, on which responses from the cache and the table are accepted, too.
    pub(crate) async fn also_by_the_table(&self, connections: usize) -> Result<Caller> {
        let mut target = self.subject.target.clone();
        let others = [Source::Cache, Source::Store].map(peers::yes);
        target.responses.extend(others);
        Caller::connect(target, connections).await
    }
}

pub(crate) struct Bench {
    pub(crate) rows: File,
    pub(crate) seconds: Duration,
    pub(crate) pairs: usize,
}

/// One run.
pub(crate) struct Run {
    pub(crate) seen: RunResult,
    /// CPU time of a call, in microseconds.
    pub(crate) cpu_us: f64,
    /// The part of the run in which the processor was busy.
    pub(crate) busy: f64,
}

pub(crate) fn micros(seen: &RunResult, quantile: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let nanos = seen.latency.value_at_quantile(quantile) as f64;
    nanos / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) fn rate(seen: &RunResult) -> f64 {
    seen.calls as f64 / seen.duration.as_secs_f64()
}

impl Bench {
    pub(crate) async fn run(&mut self, measured: &Measured, pace: Pace) -> Result<Run> {
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
    pub(crate) async fn at_a_rate(
        &mut self,
        measured: &Measured,
        calls_a_second: u32,
    ) -> Result<()> {
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
    pub(crate) async fn compare(
        &mut self,
        a: &Measured,
        b: &Measured,
        pace: Pace,
    ) -> Result<Ratios> {
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

pub(crate) const HEADER_OF_RATES: &str =
    "\n| | calls/s | processor busy | p50, µs | p99, µs | p99.9, µs |\n|---|---|---|---|---|---|";
pub(crate) const HEADER: &str = "\n| A | B | calls at once | A, µs of CPU a call | B, µs of CPU a call | B to A (least–greatest) | A, calls/s | B, calls/s |\n|---|---|---|---|---|---|---|---|";

/// The service, with the records of the checks in the table and in the cache.
pub(crate) async fn filled(
    programs: &Programs,
    backends: &Backends,
    environment: &[(&str, &str)],
) -> Result<Measured> {
    warm(seeded(programs, backends, environment).await?).await
}

/// The service, with the records of the checks in the table.
pub(crate) async fn seeded(
    programs: &Programs,
    backends: &Backends,
    environment: &[(&str, &str)],
) -> Result<Subject> {
    let subject = peers::service(programs, backends, environment)?;
    peers::seed(&subject.target.addr).await?;
    Ok(subject)
}

pub(crate) async fn warm(subject: Subject) -> Result<Measured> {
    let measured = Measured::new(subject).await?;
    let began = Instant::now();
    loop {
        let mut is_warm = true;
        for _ in 0..measured.subject.target.bodies.len() {
            let response = measured.caller.call().await.context(measured.name)?;
            is_warm &= measured.subject.target.accepts(&response);
        }
        // The stream reports the filling with a delay.
        if is_warm && began.elapsed() > WARM {
            return Ok(measured);
        }
        ensure!(began.elapsed() < PATIENCE, "{}: not warm", measured.name);
    }
}

/// The sum of all series with these labels.
pub(crate) fn series(metrics: &str, name: &str, labels: &str) -> Result<f64> {
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
