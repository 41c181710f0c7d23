//! The process: arguments in, exit code out. 64 for a bad setting, 1 for any later
//! failure.

use std::{num::NonZero, process::ExitCode, thread};

use account_service::{cli, config::Cli};
use tokio::runtime;

/// A check allocates and frees some hundred times, most of them in libraries.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_USAGE` of sysexits.h.
const EXIT_BAD_SETTING: u8 = 64;

/// Tasks that run before the runtime looks whether connections brought anything:
/// fewer than usual, so that under load an answer of the cache does not lie there
/// for long.
const EVENT_INTERVAL: u32 = 16;

fn main() -> ExitCode {
    // One processor does better without a scheduler for several.
    let mut runtime = match thread::available_parallelism() {
        Ok(NonZero::<usize>::MIN) => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().event_interval(EVENT_INTERVAL).build();
    match runtime {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> ExitCode {
    let cli = match Cli::from_process() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to tell if the output is closed.
            let _ = error.print();
            let is_mistake = error.use_stderr();
            return ExitCode::from(if is_mistake { EXIT_BAD_SETTING } else { 0 });
        }
    };
    match cli::run(cli.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            if failure.is_setting() {
                ExitCode::from(EXIT_BAD_SETTING)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
