//! Metrics and traces of calls to backends.

use std::{collections::HashMap, time::Instant};

use tracing::Span;

use super::{BACKEND_DURATION, traces};

/// The backends that the service calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The table.
    DynamoDb,
    /// The table's stream.
    DynamoDbStreams,
    /// The cache.
    Momento,
    /// The store of the cache's credential.
    SecretsManager,
}

impl Backend {
    /// The name in metrics and traces.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DynamoDb => "dynamodb",
            Self::DynamoDbStreams => "dynamodbstreams",
            Self::Momento => "momento",
            Self::SecretsManager => "secretsmanager",
        }
    }
}

/// A running call. Its outcome is [`Outcome::GivenUp`] if it is dropped before its end.
#[derive(Debug)]
pub struct BackendCall {
    backend: Backend,
    operation: &'static str,
    began: Instant,
    outcome: Outcome,
    span: Span,
}

/// The outcome of a call to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Success.
    Ok,
    /// The backend rejected the call: a condition does not hold, transactions conflict, a
    /// limit is reached, or a permission is missing.
    Refused,
    /// There was no response, or the backend reported a failure of its own.
    Failed,
    /// The service did not wait for the response.
    GivenUp,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
        }
    }
}

impl BackendCall {
    /// Begins a call, in the trace of the current RPC, if any.
    #[must_use]
    pub fn begin(backend: Backend, operation: &'static str) -> Self {
        Self {
            backend,
            operation,
            began: Instant::now(),
            outcome: Outcome::GivenUp,
            span: traces::client_span(backend.as_str(), operation),
        }
    }

    /// The W3C headers by which the backend joins the trace of the RPC. None unless that trace
    /// is exported.
    #[must_use]
    pub fn trace_context(&self) -> HashMap<String, String> {
        traces::headers_of(&self.span)
    }

    /// Ends the call with an outcome.
    pub fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for BackendCall {
    fn drop(&mut self) {
        if matches!(self.outcome, Outcome::Failed | Outcome::GivenUp) {
            traces::fail(&self.span);
        }
        metrics::histogram!(
            BACKEND_DURATION,
            "backend" => self.backend.as_str(),
            "operation" => self.operation,
            "outcome" => self.outcome.as_str()
        )
        .record(self.began.elapsed());
    }
}
