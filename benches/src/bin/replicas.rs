//! Replicas with near caches in one process, so that hundreds fit on one processor. They respond to
//! fences as the service does, and read the replica directory rarely. Prints the number of the
//! replicas, once all of them serve from memory.

use std::time::Duration;

use account_service::{
    boot::{self, App},
    coherence::{CoherenceSettings, Timing},
    config::{Cli, Command, ServeSettings},
    local::ANY_PORT,
};
use anyhow::{Result, bail};
use clap::Parser;
use tokio::{runtime::Builder, task::JoinSet};

#[derive(Parser)]
struct Arguments {
    /// The number of replicas.
    replicas: u32,
}

/// Longer than a run: otherwise hundreds of replicas would read the directory all the time.
const VIEW_TTL: Duration = Duration::from_secs(300);

/// The settings of `serve`, from the environment.
fn settings() -> Result<ServeSettings> {
    match Cli::try_parse_from(["account-service", "serve"])?.command {
        Command::Serve(settings) => Ok(settings),
        _ => bail!("`serve` is another command"),
    }
}

async fn serve(arguments: Arguments) -> Result<()> {
    let mut settings = settings()?;
    settings.server.listen_addr = ANY_PORT;
    let mut running = JoinSet::new();
    let mut services = Vec::new();
    for _ in 0..arguments.replicas {
        let tuning = CoherenceSettings {
            timing: Timing {
                view_ttl: VIEW_TTL,
                ..Timing::default()
            },
            ..settings.cache.to_coherence()
        };
        let (listener, _) = boot::listen(&settings.server).await?;
        let app = App::boot_with(&settings, tuning).await?;
        services.push(app.service().clone());
        running.spawn(app.serve(listener, std::future::pending()));
    }
    for service in services {
        while !service.coherence().is_active() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    println!("serving {}", arguments.replicas);
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(arguments))
}
