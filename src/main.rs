//! The process: runs a subcommand and returns an exit code, 64 for an invalid setting, 1 for
//! any later failure, and 2 for a check whose answer is no.

use std::{num::NonZero, process::ExitCode, thread};

use account_service::{
    cli::{self, Ending},
    config::Cli,
};
use tokio::runtime;

/// Faster for checks: each allocates some hundred times, mostly in libraries.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_USAGE` of sysexits.h.
const EXIT_BAD_SETTING: u8 = 64;
/// The answer of `check` is no.
const EXIT_NO: u8 = 2;

/// Tasks that run between two polls of the connections. Fewer than the default, so that a
/// response of the cache does not wait long under load.
const EVENT_INTERVAL: u32 = 16;

fn main() -> ExitCode {
    // On one processor, the runtime with one thread is faster.
    let mut runtime = match thread::available_parallelism() {
        Ok(NonZero::<usize>::MIN) => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().event_interval(EVENT_INTERVAL).build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(run());
            // Does not wait for a thread that writes to an output without a reader.
            runtime.shutdown_background();
            code
        }
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
            // If the output is closed, the error cannot be printed.
            let _ = error.print();
            let is_mistake = error.use_stderr();
            return ExitCode::from(if is_mistake { EXIT_BAD_SETTING } else { 0 });
        }
    };
    match Box::pin(cli::run(cli.command)).await {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::No) => ExitCode::from(EXIT_NO),
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
