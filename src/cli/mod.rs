//! The subcommands.

mod changes;
mod connection;
mod contract;
mod export;
pub mod healthcheck;
mod import;
mod records;
mod resources;
mod table;
mod typed;

#[cfg(feature = "local")]
use std::sync::Arc;
use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use self::{connection::ConnectionError, resources::ResourceError};
use crate::{
    boot::{self, App, provision},
    config::{
        Cli, Command, FlushSettings, LogSettings, RecountSettings, ServeSettings, SetupSettings,
        TraceSettings, momento_secret_from_env,
    },
    store, telemetry,
};
#[cfg(feature = "local")]
use tokio::sync::oneshot;

#[cfg(feature = "local")]
use crate::{
    config::{DevSettings, ImportSettings},
    local::{self, Embedded},
};

/// Largest stream event: Lambda's limit is 6 MB.
const MAX_EVENT_BYTES: u64 = 8 * 1024 * 1024;

/// The failure of a subcommand, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The service did not start, or stopped.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The embedded servers did not start.
    #[cfg(feature = "local")]
    #[error(transparent)]
    Local(#[from] local::Error),
    /// A command for people failed.
    #[error(transparent)]
    Resource(#[from] resources::ResourceError),
    /// The export failed.
    #[error(transparent)]
    Export(#[from] export::ExportError),
    /// The import failed.
    #[error(transparent)]
    Import(#[from] import::ImportError),
    /// The stream of changes ended.
    #[error(transparent)]
    Changes(#[from] changes::ChangesError),
    /// The probed server is not serving.
    #[error("{0}")]
    NotServing(String),
}

impl Failure {
    /// Whether the cause is an invalid or missing setting.
    #[must_use]
    pub fn is_setting(&self) -> bool {
        matches!(
            self,
            Self::Changes(changes::ChangesError::Connection(ConnectionError::Setting(
                _
            ))) | Self::Resource(
                ResourceError::Value(_) | ResourceError::Connection(ConnectionError::Setting(_))
            ) | Self::Boot(
                boot::Error::NoRegion
                    | boot::Error::Insecure { .. }
                    | boot::Error::NoIdentity
                    | boot::Error::Policy { .. }
            )
        )
    }
}

/// The end of a subcommand that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It has done its work. The answer of `check` is yes.
    Done,
    /// The answer of `check` is no.
    No,
}

/// Runs a subcommand to its end.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: Command) -> Result<Ending, Failure> {
    match command {
        Command::Serve(settings) => {
            let serve = Box::pin(async {
                let greeting = |addr| format!("serving on {addr}\n");
                Ok(serve(&settings, greeting).await?)
            });
            with_telemetry(&settings.log, &settings.server.traces, serve).await?;
        }
        #[cfg(feature = "local")]
        Command::Dev(settings) => {
            let dev = Box::pin(dev(&settings));
            with_telemetry(&settings.log, &settings.server.traces, dev).await?;
        }
        Command::Setup(settings) => set_up(&settings).await?,
        Command::Flush(settings) => flush(&settings).await?,
        Command::Recount(settings) => recount(&settings).await?,
        Command::Invalidate(settings) => invalidate(&settings).await?,
        Command::Changes(settings) => changes::write(&settings, boot::stop_signal()).await?,
        Command::Healthcheck(settings) => {
            healthcheck::check(&settings)
                .await
                .map_err(Failure::NotServing)?;
        }
        Command::Export(settings) => Box::pin(export::run(&settings)).await?,
        Command::Import(settings) => Box::pin(import::run(&settings)).await?,
        Command::Resource(command) => return Ok(Box::pin(resources::run(command)).await?),
        Command::Completion { shell } => complete(shell),
    }
    Ok(Ending::Done)
}

/// Prints the script that completes commands in a shell.
fn complete(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    let mut command = <Cli as clap::CommandFactory>::command();
    clap_complete::generate(shell, &mut command, "account-service", &mut script);
    say(&String::from_utf8_lossy(&script));
}

async fn serve(
    settings: &ServeSettings,
    greeting: impl FnOnce(SocketAddr) -> String,
) -> Result<(), boot::Error> {
    if let Some(addr) = settings.server.metrics_addr {
        boot::start_metrics(addr)
            .await
            .map_err(boot::Error::Metrics)?;
    }
    let (listener, addr) = boot::listen(&settings.server).await?;
    let app = Box::pin(App::boot(settings)).await?;
    let stop = boot::stop_signal();
    say(&greeting(addr));
    Box::pin(app.serve(listener, stop)).await
}

/// Runs a server with its logs and traces.
async fn with_telemetry<T>(
    log: &LogSettings,
    traces: &TraceSettings,
    server: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let export = traces.export();
    let traces =
        telemetry::start(&log.log, log.log_format, export.as_ref()).map_err(boot::Error::Traces)?;
    let ended = server.await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    ended
}

/// Starts the log, without traces.
fn log(settings: &LogSettings) {
    // Only traces can fail.
    let _ = telemetry::start(&settings.log, settings.log_format, None);
}

#[cfg(feature = "local")]
async fn dev(settings: &DevSettings) -> Result<(), Failure> {
    let embedded = Embedded::start(settings, Arc::new(local::momento::OpenGate)).await?;
    embedded.set_up().await?;
    let (listening, addr) = oneshot::channel();
    let greeting = |addr| {
        // Fails if nothing is imported.
        let _ = listening.send(addr);
        embedded.greeting(addr, settings.data_dir.as_deref())
    };
    let mut serve_settings = embedded.serve_settings(settings);
    serve_settings
        .server
        .peers
        .peer_addr
        .get_or_insert(local::ANY_PORT);
    let seed = async {
        if let (Some(file), Ok(addr)) = (&settings.seed, addr.await) {
            import::run(&ImportSettings::of_seed(file, addr)).await?;
            say("seeded\n");
        }
        std::future::pending().await
    };
    tokio::select! {
        ended = serve(&serve_settings, greeting) => Ok(ended?),
        failed = seed => failed,
    }
}

async fn set_up(settings: &SetupSettings) -> Result<(), boot::Error> {
    log(&settings.log);
    let new_secret = momento_secret_from_env(|name| std::env::var(name).ok());
    let names = &settings.backends;
    let report = provision::run(names, new_secret).await?;
    say(&format!(
        "table {}: {}\nsecret {}: {}\ncache {}: {}\n",
        names.table_name,
        report.table,
        names.momento_secret_id,
        report.secret,
        names.cache_name,
        report.cache
    ));
    say(&describe_findings(&report.findings));
    Ok(())
}

/// A line for each kind of finding, and a line for each example.
fn describe_findings(findings: &store::Findings) -> String {
    let kinds = [
        (
            &findings.names,
            "records are not served: their names are over 256 bytes or have control characters",
        ),
        (
            &findings.roles,
            "memberships grant nothing: their roles are none of Owner, Admin and Member",
        ),
        (
            &findings.states,
            "users and organizations count as suspended: their states are neither ACTIVE nor SUSPENDED",
        ),
    ];
    let mut lines = Vec::new();
    for (finding, meaning) in kinds {
        if finding.count > 0 {
            lines.push(format!("warning: {} {meaning}\n", finding.count));
        }
        let examples = finding.examples.iter();
        lines.extend(examples.map(|(pk, sk)| format!("  PK={pk:?} SK={sk:?}\n")));
        let shown = u64::try_from(finding.examples.len()).unwrap_or(u64::MAX);
        if finding.count > shown {
            lines.push(format!("  and {} more\n", finding.count - shown));
        }
    }
    lines.concat()
}

async fn recount(settings: &RecountSettings) -> Result<(), boot::Error> {
    log(&settings.log);
    let boot::Recounted { profiles, busy } = boot::recount(&settings.backends).await?;
    say(&format!(
        "counted the memberships of {profiles} users and organizations\n"
    ));
    if busy > 0 {
        say(&format!(
            "the memberships of {busy} of them kept changing: run recount again\n"
        ));
    }
    Ok(())
}

async fn flush(settings: &FlushSettings) -> Result<(), boot::Error> {
    log(&settings.log);
    let names = &settings.backends;
    provision::flush(names).await?;
    say(&format!(
        "cache {}: earlier entries are not used any more\n",
        names.cache_name
    ));
    Ok(())
}

async fn invalidate(settings: &ServeSettings) -> Result<(), boot::Error> {
    log(&settings.log);
    let event = std::io::read_to_string(std::io::stdin().take(MAX_EVENT_BYTES));
    let event = event.map_err(|error| boot::Error::Event(serde_json::Error::io(error)))?;
    let count = provision::invalidate(settings, &event).await?;
    say(&format!("{count} records fenced\n"));
    Ok(())
}

fn say(text: &str) {
    // Fails if the reader has closed the output, and then does not need the text.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
