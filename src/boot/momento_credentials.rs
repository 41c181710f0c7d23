//! The credential of the Momento client: read from the secret at the start, and again when
//! the secret is rotated.

use std::time::Duration;

use aws_config::SdkConfig;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Error, cache_error, connect_cache, secret_error, secrets,
    secrets_manager::{self, SecretsManager},
};
use crate::{
    cache::{self, MomentoClient},
    config::BackendSettings,
    domain::Timestamp,
    telemetry::{CREDENTIAL_TIME, CREDENTIALS_REFUSED},
};

/// Interval of reading the secret while there is no connection or Momento rejects the
/// credential.
const PAUSE: Duration = Duration::from_secs(2);

/// The Momento client, and the secret that it was connected with.
pub struct MomentoCredentials {
    client: MomentoClient,
    secrets: SecretsManager,
    settings: BackendSettings,
    in_use: Mutex<Option<InUse>>,
}

/// The secret in use, with its endpoint.
struct InUse {
    secret: SecretString,
    endpoint: String,
}

impl MomentoCredentials {
    /// Reads the secret and connects the client. While either backend cannot be reached, the
    /// client stays without connections.
    ///
    /// # Errors
    /// The secret or the cache is missing, malformed or rejected. A retry would not help.
    pub async fn begin(
        client: MomentoClient,
        aws: &SdkConfig,
        settings: &BackendSettings,
    ) -> Result<Self, Error> {
        let momento_credentials = Self {
            client,
            secrets: secrets(aws, settings),
            settings: settings.clone(),
            in_use: Mutex::default(),
        };
        match momento_credentials.renew().await {
            Ok(_) => {}
            Err(error) if is_transient(&error) => {
                tracing::warn!(%error, "starting without the cache");
            }
            Err(error) => return Err(error),
        }
        Ok(momento_credentials)
    }

    /// Reads the secret at intervals, and connects anew if it has changed. Keeps the
    /// connections if that fails. Never ends.
    pub async fn run_refresh(&self) {
        loop {
            let read = Instant::now();
            if self.client.is_connected() {
                tokio::select! {
                    () = sleep(self.settings.secret_refresh_s) => {}
                    () = self.client.credential_rejected() => {
                        metrics::counter!(CREDENTIALS_REFUSED).increment(1);
                        tracing::warn!("Momento rejects the credential; reading the secret again");
                        sleep_until(read + PAUSE).await;
                    }
                }
            } else {
                sleep(PAUSE).await;
            }
            match self.renew().await {
                Ok(true) => tracing::info!("a new Momento credential is in use"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the Momento credential was not renewed"),
            }
        }
    }

    /// Reads the secret. Returns whether it has changed.
    async fn renew(&self) -> Result<bool, Error> {
        let mut in_use = self.in_use.lock().await;
        let id = &self.settings.momento_secret_id;
        let version = self.secrets.read(id).await;
        let version = version.map_err(|source| secret_error(&self.settings, source))?;
        let secrets_manager::Version { secret, created_s } = version;
        if let Some(in_use) = &*in_use
            && in_use.secret.expose_secret() == secret.expose_secret()
        {
            return Ok(false);
        }
        let connections = connect_cache(&secret, &self.settings).await?;
        let endpoint = connections.endpoint().to_owned();
        // With different caches, replicas would not see each other's fences.
        if in_use.as_ref().is_some_and(|it| it.endpoint != endpoint) {
            return Err(Error::AnotherCache { id: id.clone() });
        }
        let probed = connections.probe().await;
        probed.map_err(|source| cache_error(&self.settings, source))?;
        self.client.connect(connections);
        *in_use = Some(InUse { secret, endpoint });
        let created_s = created_s.unwrap_or_else(|| Timestamp::now().0 / 1000);
        #[expect(clippy::cast_precision_loss, reason = "exact for many years")]
        metrics::gauge!(CREDENTIAL_TIME).set(created_s as f64);
        Ok(true)
    }
}

/// Whether a retry may succeed.
fn is_transient(error: &Error) -> bool {
    match error {
        Error::Secret { source, .. } => matches!(source, secrets_manager::Error::Unavailable(_)),
        Error::Cache { source, .. } => source.kind == cache::FailureKind::Unavailable,
        _ => false,
    }
}
