//! Arguments in, exit code out: 64 for a bad setting, 1 for anything that fails
//! later.

use std::process::ExitCode;

use account_service::{command, config::Cli};
use clap::Parser as _;

/// A check allocates and frees some hundred times: docs/performance.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_USAGE` of sysexits.h.
const EXIT_BAD_SETTING: u8 = 64;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to tell if the output is closed.
            let _ = error.print();
            let is_mistake = error.use_stderr();
            return ExitCode::from(if is_mistake { EXIT_BAD_SETTING } else { 0 });
        }
    };
    match command::run(cli.command).await {
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
