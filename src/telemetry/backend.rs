//! Metrics and traces of calls to backends.

use std::{collections::HashMap, time::Instant};

use tracing::Span;

use super::{BACKEND_DURATION, traces};

/// What the service calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The table.
    DynamoDb,
    /// The table's stream.
    DynamoDbStreams,
    /// The cache.
    Momento,
    /// Where the cache's credential is.
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

/// A call that is under way. Counts as given up if it is dropped before it has
/// ended.
#[derive(Debug)]
pub struct BackendCall {
    backend: Backend,
    operation: &'static str,
    began: Instant,
    outcome: Outcome,
    span: Span,
}

/// What came of a call to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Ok,
    /// The backend answered that it does not do it: a condition does not hold,
    /// transactions conflict, a limit is reached, a right is missing.
    Refused,
    /// There was no answer, or one that blames the backend.
    Failed,
    /// The answer was not waited for.
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
    /// A call begins, on behalf of the RPC that is being answered here, if any.
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

    /// The headers, as W3C defines them, that place what is called in the trace of
    /// the RPC; none unless that is exported.
    #[must_use]
    pub fn trace_context(&self) -> HashMap<String, String> {
        traces::headers_of(&self.span)
    }

    /// It has ended like this.
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
