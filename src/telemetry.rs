//! Logging.

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

/// Starts logging to standard error. Does nothing if it was started before.
pub fn start(settings: &LogSettings) {
    // The embedded DynamoDB warns of every answer that is an error, also of
    // those that are asked for: a missing table, a failed condition. The AWS
    // SDK warns of every place where it finds no region or credentials; what
    // comes of that is told once, by whoever needs them.
    let filter = EnvFilter::new(format!("dynoxide=error,aws_config=error,{}", settings.log));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match settings.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}
