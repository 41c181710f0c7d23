//! The service beside the echo and alternatives: CPU time, instructions, and latency at equal rates.

use std::{fs, path::Path};

use account_service_bench::{
    load::Pace,
    peers::{self, Backends, Programs},
};
use anyhow::{Result, ensure};

use crate::runs::{Bench, HEADER, HEADER_OF_RATES, Measured, filled, warm};

pub(crate) async fn cpu(bench: &mut Bench, programs: &Programs, is_quick: bool) -> Result<()> {
    let backends = Backends::start(programs, 0, 0)?;
    let service = filled(programs, &backends, &[]).await?;
    let echo = warm(peers::echo(programs)?).await?;
    let mut alternatives = Vec::new();
    let mut twin = None;
    if !is_quick {
        twin = Some(warm(peers::echo(programs)?).await?);
        alternatives = all_alternatives(programs, &backends).await?;
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
        for alternative in &alternatives {
            bench.compare(&service, alternative, pace).await?;
        }
    }
    Ok(())
}

/// Concurrent calls while instructions are counted. With more, look-ups would exceed their time
/// limit under callgrind.
const AT_ONCE: [usize; 2] = [1, 8];

/// Callgrind writes its output into this folder, for `callgrind_annotate`.
pub(crate) async fn instructions(
    bench: &Bench,
    mut programs: Programs,
    folder: &Path,
) -> Result<()> {
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
async fn all_alternatives(programs: &Programs, backends: &Backends) -> Result<Vec<Measured>> {
    let alternatives = [
        peers::node(programs, backends)?,
        peers::spicedb(programs).await?,
        peers::openfga(programs)?,
    ];
    let mut warmed = Vec::new();
    for alternative in alternatives.into_iter().flatten() {
        warmed.push(warm(alternative).await?);
    }
    Ok(warmed)
}

/// Calls a second at which latencies are compared. The slowest peer sustains the first rate.
const EQUAL_RATES: [u32; 2] = [1000, 4000];

pub(crate) async fn equal_rates(bench: &mut Bench, programs: &Programs) -> Result<()> {
    let backends = Backends::start(programs, 0, 0)?;
    let service = filled(programs, &backends, &[]).await?;
    let alternatives = all_alternatives(programs, &backends).await?;
    println!("{HEADER_OF_RATES}");
    for calls_a_second in EQUAL_RATES {
        bench.at_a_rate(&service, calls_a_second).await?;
        for alternative in &alternatives {
            // Not all peers sustain the rates of the service.
            if let Err(error) = bench.at_a_rate(alternative, calls_a_second).await {
                println!("| {} | {calls_a_second}: {error} |", alternative.name);
            }
        }
    }
    Ok(())
}
