//! Compares the service with its limit and its peers: `just bench`.

mod comparisons;
mod faults;
mod latency;
mod overload;
mod remote;
mod replicas;
mod runs;
mod starts;

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    time::Duration,
};

use account_service_bench::peers::Programs;
use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::{runtime::Builder, task::LocalSet};

use runs::Bench;

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
    /// Latency at an open pace that keeps the processor busy for 30 % of the time.
    Latency,
    /// The highest rate at which 99.9 % of the checks end within 5 ms.
    Rate,
    /// Time from start to the first check; memory.
    Start,
    /// The first ten seconds of a replica, with Momento and without.
    Restarts,
    /// Faults of Momento and of the table, at load.
    Faults,
    /// Successful checks at increasing load, with the cache and without.
    Overload,
    /// The effect of one caller's flood on the latency of another caller.
    Flood,
    /// One replica, and two that share the load.
    Replicas,
    /// The latency of writes, by the number of replicas that they fence.
    Writes,
    /// Calls and bytes of a check to the backends.
    Remote,
}

/// Runs a future that makes calls, in a runtime on this thread.
pub(crate) fn run_here<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, what)
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
    let timeline = arguments.rows.with_file_name("faults.csv");
    run_here(async {
        match arguments.what {
            What::Cpu => comparisons::cpu(&mut bench, &programs, false).await,
            What::Quick => comparisons::cpu(&mut bench, &programs, true).await,
            What::Instructions => comparisons::instructions(&bench, programs, &callgrind).await,
            What::Peers => comparisons::equal_rates(&mut bench, &programs).await,
            What::Latency => latency::latency(&mut bench, &programs).await,
            What::Rate => latency::highest(&mut bench, &programs).await,
            What::Start => starts::start(&programs).await,
            What::Restarts => starts::restarts(&programs).await,
            What::Writes => replicas::writes(&mut bench, &programs).await,
            What::Faults => faults::faults(&programs, &timeline).await,
            What::Overload => overload::overload(&mut bench, &programs).await,
            What::Flood => overload::flood(&mut bench, &programs).await,
            What::Replicas => replicas::replicas(&mut bench, &programs).await,
            What::Remote => remote::remote(&mut bench, &programs).await,
        }
    })
}
