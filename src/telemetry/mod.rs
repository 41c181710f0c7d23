//! Logs, metrics and traces.

mod aws;
mod backend;
mod metrics;
mod throttle;
mod traces;

use std::io::IsTerminal as _;

use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

pub use self::{
    aws::AwsCalls,
    backend::{Backend, BackendCall, Outcome},
    metrics::*,
    throttle::Throttle,
    traces::{CallSpan, Traces, TracesError, shared_look_up},
};
use crate::config::{LogFormat, LogSettings, TraceSettings};

/// Whether an environment variable is there and not empty.
fn has_variable(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Starts logging to standard error and, where the settings name a collector,
/// exporting traces. What it returns is to be ended before the process is. Does
/// nothing if it was started before.
///
/// # Errors
/// The collector's address cannot be used.
pub fn start(
    log: &LogSettings,
    traces: Option<&TraceSettings>,
) -> Result<Option<Traces>, TracesError> {
    let traces = traces.map(Traces::new).transpose()?.flatten();
    let exported = traces.as_ref().map(|traces| traces.layer().boxed());
    // The embedded DynamoDB warns of every answer that is an error, also of
    // those that are asked for: a missing table, a failed condition. The AWS
    // SDK warns of every place where it finds no region or credentials; what
    // comes of that is told once, by whoever needs them. Spans are for traces;
    // only that of the call, with its trace id, is for the log, too.
    let filter = EnvFilter::new(format!(
        "dynoxide=error,aws_config=error,{},{}=off,{}=info",
        log.log,
        traces::TARGETS,
        traces::CALL,
    ));
    let is_colored = std::io::stderr().is_terminal() && !has_variable("NO_COLOR");
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(is_colored);
    let lines = match log.log_format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_span_list(false);
            lines.with_filter(filter).boxed()
        }
    };
    // Not an Option in the stack: where that is None it takes all there is, and each
    // call would be a span that nobody sees.
    let layers: Vec<_> = exported.into_iter().chain([lines]).collect();
    let started = tracing_subscriber::registry().with(layers).try_init();
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
    Ok(traces)
}
