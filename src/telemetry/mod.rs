//! Logs, metrics and traces.

mod aws;
mod backend;
mod metrics;
mod throttle;
mod traces;

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

pub use self::{
    aws::AwsCalls,
    backend::{Backend, BackendCall, Outcome},
    metrics::*,
    throttle::Throttle,
    traces::{CallSpan, TraceExport, Traces, TracesError},
};

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether an environment variable is set and not empty.
fn has_variable(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Starts logging to standard error and, with `traces`, exporting traces. The returned
/// [`Traces`] must be ended before the process ends. Logging that is started already is kept.
/// `log_filter` is a level, or directives such as `info,account_service=debug`.
///
/// # Errors
/// The collector's address cannot be used.
pub fn start(
    log_filter: &str,
    log_format: LogFormat,
    traces: Option<&TraceExport>,
) -> Result<Option<Traces>, TracesError> {
    let traces = traces.map(Traces::new).transpose()?;
    let exported = traces.as_ref().map(|traces| traces.layer().boxed());
    // The embedded DynamoDB warns of every error response, also of expected ones: a missing
    // table, a failed condition. The AWS SDK warns of every place without a region or
    // credentials; the code that needs them reports a failure once. Spans are for traces. Only
    // the span of the call, with its trace id, is also for the log.
    let filter = EnvFilter::new(format!(
        "dynoxide=error,aws_config=error,{},{}=off,{}=info",
        log_filter,
        traces::TARGETS,
        traces::CALL,
    ));
    let is_colored = std::io::stderr().is_terminal() && !has_variable("NO_COLOR");
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(is_colored);
    let lines = match log_format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_span_list(false);
            lines.with_filter(filter).boxed()
        }
    };
    // Not an `Option` in the stack: `None` would enable all spans, and each call would create
    // one without a use.
    let layers: Vec<_> = exported.into_iter().chain([lines]).collect();
    let started = tracing_subscriber::registry().with(layers).try_init();
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
    Ok(traces)
}
