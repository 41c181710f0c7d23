//! Errors of the commands, each with its remedy.

use std::{io, net::SocketAddr, path::PathBuf};

use super::secrets_manager;
use crate::{
    auth::{KeySource, KeySourceError},
    cache::{self, CredentialError},
    peer::IdentityError,
    store, telemetry,
    transport::tls::TlsError,
};

/// Reason why the service did not start. Each message has the problem and its remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No AWS region is set, and none can be found.
    #[error("there is no AWS region; set --aws-region or AWS_REGION")]
    NoRegion,
    /// The secret could not be read.
    #[error("secret {id:?} cannot be read: {source}; {}", secret_advice(.source))]
    Secret {
        /// The secret.
        id: String,
        /// The cause.
        source: secrets_manager::Error,
    },
    /// There is no secret, and no variable to create it from.
    #[error(
        "there is no secret {id:?}; set MOMENTO_API_KEY and MOMENTO_ENDPOINT, or \
         MOMENTO_AUTH_TOKEN, in the environment to create it"
    )]
    NoSecret {
        /// The secret.
        id: String,
    },
    /// The secret holds no credential.
    #[error(
        "secret {id:?} holds no Momento credential: {source}; store a JSON object with \
         MOMENTO_API_KEY and MOMENTO_ENDPOINT, or with MOMENTO_AUTH_TOKEN"
    )]
    Credential {
        /// The secret.
        id: String,
        /// The cause.
        source: CredentialError,
    },
    /// The table cannot be used.
    #[error("table {name:?} cannot be used: {source}; {}", table_advice(.source))]
    Table {
        /// The table.
        name: String,
        /// The cause.
        source: store::Error,
    },
    /// The cache cannot be used.
    #[error("cache {name:?} cannot be used: {source}; {}", cache_advice(.source))]
    Cache {
        /// The cache.
        name: String,
        /// The cause.
        source: cache::Error,
    },
    /// The secret was changed to a credential for another cache.
    #[error(
        "secret {id:?} names another endpoint than before; a running replica does not change its \
         cache: see docs/operations.md"
    )]
    AnotherCache {
        /// The secret.
        id: String,
    },
    /// There is no identity for calls between replicas.
    #[error("{0}; restart the service")]
    PeerIdentity(IdentityError),
    /// The server cannot listen on the address.
    #[error("cannot listen on {addr}: {source}; choose another address")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The input is not an event of a DynamoDB stream.
    #[error("standard input is not a DynamoDB stream event: {0}")]
    Event(#[source] serde_json::Error),
    /// The cache may still serve old versions of the changed records.
    #[error("the changed records could not be fenced in time; try again")]
    NotFenced,
    /// Metrics cannot be served.
    #[error("metrics cannot be served: {0}; choose another --metrics-addr")]
    Metrics(#[from] super::MetricsError),
    /// Traces cannot be exported.
    #[error("traces cannot be exported: {0}; correct --otlp-endpoint")]
    Traces(#[source] telemetry::TracesError),
    /// Every client that reaches the address would have all permissions.
    #[error(
        "{addr} is reachable from other hosts, and there is no {what}; set --policy with \
         --tls-client-ca or --jwks, and --tls-cert, or set --insecure"
    )]
    Insecure {
        /// The address.
        addr: SocketAddr,
        /// The missing protection.
        what: &'static str,
    },
    /// The policy cannot be used.
    #[error("the policy {path:?} cannot be used: {source}; correct it")]
    Policy {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file with the routes of external authorization cannot be used.
    #[error("the routes of Envoy in {path:?} cannot be used: {source}; correct the file")]
    Routes {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Callers could not authenticate.
    #[error("there is a policy, but callers cannot authenticate; set --tls-client-ca or --jwks")]
    NoIdentity,
    /// TLS cannot be used.
    #[error("TLS cannot be used: {0}; correct the file")]
    Tls(#[from] TlsError),
    /// The keys of tokens cannot be read.
    #[error("the keys at {from} cannot be used: {source}; correct --jwks")]
    Keys {
        /// The file or URL.
        from: KeySource,
        /// The cause.
        source: KeySourceError,
    },
    /// The server failed.
    #[error("the server failed: {0}")]
    Serve(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn secret_advice(error: &secrets_manager::Error) -> &'static str {
    match error {
        secrets_manager::Error::Missing => "create it with `account-service setup`",
        secrets_manager::Error::Denied(_) => "allow secretsmanager:GetSecretValue on it",
        secrets_manager::Error::NotText => "store it as text",
        secrets_manager::Error::Unavailable(_) => {
            "check the region, the AWS credentials and --secrets-endpoint"
        }
    }
}

fn table_advice(error: &store::Error) -> &'static str {
    match error.kind {
        store::ErrorKind::NoIndex => "add it with `account-service setup`",
        store::ErrorKind::Missing => "create it with `account-service setup`, or set TABLE_NAME",
        store::ErrorKind::Unusable => {
            "check the region, the AWS credentials, their permissions and TABLE_NAME"
        }
        store::ErrorKind::Unavailable
        | store::ErrorKind::Throttled
        | store::ErrorKind::Crowded
        | store::ErrorKind::Malformed => {
            "check the network, the region, the AWS credentials and --dynamodb-endpoint"
        }
    }
}

fn cache_advice(error: &cache::Error) -> &'static str {
    match error.kind {
        cache::FailureKind::Missing => "create it with `account-service setup`, or set CACHE_NAME",
        cache::FailureKind::Credential => "put a valid Momento credential into the secret",
        cache::FailureKind::Unavailable => "check the network and the endpoint in the secret",
        cache::FailureKind::Refused => "check CACHE_NAME",
    }
}
