//! Arguments, logging, boot, serve. Exit codes: 64 for a bad setting, 1 for
//! anything that fails later.

use std::{io::Write as _, net::SocketAddr, process::ExitCode};

use account_service::{
    boot::{self, App, Error},
    config::{Cli, Command, ServeSettings, SetupSettings, momento_secret_from_env},
    health, setup, telemetry,
};
#[cfg(feature = "local")]
use account_service::{
    config::DevSettings,
    local::{self, Embedded},
};
use clap::Parser as _;
#[cfg(feature = "local")]
use std::sync::Arc;

/// `EX_USAGE` of sysexits.h.
const EXIT_BAD_SETTING: u8 = 64;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to tell if the output is closed.
            let _ = error.print();
            let code = if error.use_stderr() {
                EXIT_BAD_SETTING
            } else {
                0
            };
            return ExitCode::from(code);
        }
    };
    let done = match cli.command {
        Command::Serve(settings) => serve(&settings, |addr| format!("serving on {addr}\n"))
            .await
            .map_err(|error| error.to_string()),
        #[cfg(feature = "local")]
        Command::Dev(settings) => dev(&settings).await.map_err(|error| error.to_string()),
        Command::Setup(settings) => set_up(&settings).await.map_err(|error| error.to_string()),
        Command::Healthcheck(settings) => health::check(&settings).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(
    settings: &ServeSettings,
    greeting: impl FnOnce(SocketAddr) -> String,
) -> Result<(), Error> {
    telemetry::start(&settings.log);
    let (listener, addr) = boot::listen(&settings.server).await?;
    let app = App::boot(settings).await?;
    // Whoever closed the output does not want to read it.
    let _ = std::io::stdout().write_all(greeting(addr).as_bytes());
    app.serve(listener, boot::stop_signal()).await
}

#[cfg(feature = "local")]
async fn dev(settings: &DevSettings) -> Result<(), local::Error> {
    telemetry::start(&settings.log);
    let embedded = Embedded::start(settings, Arc::new(local::momento::Open)).await?;
    embedded.set_up().await?;
    let greeting = |addr| embedded.greeting(addr, settings.data_dir.as_deref());
    Ok(serve(&embedded.serve_settings(settings), greeting).await?)
}

async fn set_up(settings: &SetupSettings) -> Result<(), Error> {
    telemetry::start(&settings.log);
    let new_secret = momento_secret_from_env(|name| std::env::var(name).ok());
    let report = setup::run(&settings.backends, new_secret).await?;
    let names = &settings.backends;
    println!("table {}: {}", names.table_name, report.table);
    println!("secret {}: {}", names.momento_secret_id, report.secret);
    println!("cache {}: {}", names.cache_name, report.cache);
    Ok(())
}
