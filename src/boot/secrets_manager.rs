//! Secrets Manager. Only this file uses its SDK. It returns secrets only as `SecretString`.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_secretsmanager::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::{ProvideErrorMetadata, SdkError},
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    error_chain::describe,
    telemetry::{AwsCalls, Backend},
};

/// Longest TCP and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// Longest attempt.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1000);
/// Attempts per operation.
const MAX_ATTEMPTS: u32 = 3;

/// Reason why a secret could not be read or created. It reveals nothing of the content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such secret.
    #[error("there is no such secret")]
    Missing,
    /// The caller may not use the secret.
    #[error("access denied: {0}")]
    Denied(String),
    /// The secret has binary data, or is empty.
    #[error("the secret has no text")]
    NotText,
    /// Secrets Manager is unreachable or failed.
    #[error("Secrets Manager cannot be used: {0}")]
    Unavailable(String),
}

/// A version of a secret.
#[derive(Debug)]
pub struct Version {
    /// Its content.
    pub secret: SecretString,
    /// Its creation time in seconds since 1970, if reported.
    pub created_s: Option<i64>,
}

/// Secrets Manager, over one client.
#[derive(Debug, Clone)]
pub struct SecretsManager(Client);

impl SecretsManager {
    /// Builds the client, with `endpoint` instead of the region's if given. Does
    /// no I/O.
    #[must_use]
    pub fn new(aws: &SdkConfig, endpoint: Option<String>) -> Self {
        let mut config = aws_sdk_secretsmanager::config::Builder::from(aws)
            .retry_config(RetryConfig::standard().with_max_attempts(MAX_ATTEMPTS))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(REQUEST_TIMEOUT)
                    .build(),
            )
            .interceptor(AwsCalls(Backend::SecretsManager));
        config.set_endpoint_url(endpoint.or(aws.endpoint_url().map(str::to_owned)));
        Self(Client::from_conf(config.build()))
    }

    /// Reads the current version of a secret.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read(&self, id: &str) -> Result<Version, Error> {
        let output = self.0.get_secret_value().secret_id(id).send().await;
        let output = output.map_err(failed)?;
        Ok(Version {
            secret: output.secret_string.ok_or(Error::NotText)?.into(),
            created_s: output.created_date.map(|created| created.secs()),
        })
    }

    /// Creates a secret.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create(&self, id: &str, secret: &SecretString) -> Result<(), Error> {
        let create = self.0.create_secret().name(id);
        let sent = create.secret_string(secret.expose_secret()).send().await;
        sent.map(|_| ()).map_err(failed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn failed<E, R>(error: SdkError<E, R>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    let described = match error.code() {
        Some("ResourceNotFoundException") => return Error::Missing,
        Some(code) => format!("{code}: {}", error.message().unwrap_or_default()),
        None => describe(&error),
    };
    match error.code() {
        Some("AccessDeniedException" | "UnrecognizedClientException" | "DecryptionFailure") => {
            Error::Denied(described)
        }
        _ => Error::Unavailable(described),
    }
}
