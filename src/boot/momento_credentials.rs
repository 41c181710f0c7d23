//! The client of the cache: connected with the credential of the secret, and replaced
//! when the secret is rotated.

use std::{sync::Arc, time::Duration};

use aws_config::SdkConfig;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, sleep_until},
};

use super::secrets_manager::{self as secrets_room, Secrets};
use super::{Error, cache_error, connect_cache, secret_error, secrets};
use crate::{
    cache::{self, Slot},
    config::BackendSettings,
    domain::Timestamp,
    telemetry::{CREDENTIAL_TIME, CREDENTIALS_REFUSED},
};

/// How long after one look at the secret the next one comes, where a look is due
/// because there is no client yet or the cache refuses the credential.
const PAUSE: Duration = Duration::from_secs(2);

/// Supplies the cache with its client.
pub struct MomentoCredentials {
    slot: Arc<Slot>,
    secrets: Secrets,
    settings: BackendSettings,
    in_use: Mutex<Option<InUse>>,
}

/// What the client was made with.
struct InUse {
    secret: SecretString,
    endpoint: String,
}

impl MomentoCredentials {
    /// Reads the secret and connects to the cache. If either cannot be reached,
    /// the slot stays empty until it can.
    ///
    /// # Errors
    /// The secret or the cache is missing, malformed or refused: nothing that
    /// waiting could mend.
    pub async fn begin(aws: &SdkConfig, settings: &BackendSettings) -> Result<Self, Error> {
        let momento_credentials = Self {
            slot: Arc::default(),
            secrets: secrets(aws, settings),
            settings: settings.clone(),
            in_use: Mutex::default(),
        };
        match momento_credentials.renew().await {
            Ok(_) => {}
            Err(error) if may_pass(&error) => {
                tracing::warn!(%error, "starting without the cache");
            }
            Err(error) => return Err(error),
        }
        Ok(momento_credentials)
    }

    /// The cache.
    #[must_use]
    pub fn slot(&self) -> Arc<Slot> {
        self.slot.clone()
    }

    /// Reads the secret again and again, and swaps the client where the secret
    /// has changed. Never ends; keeps what it has while that is no better.
    pub async fn run_refresh(&self) {
        loop {
            let looked = Instant::now();
            if self.slot.is_empty() {
                sleep(PAUSE).await;
            } else {
                tokio::select! {
                    () = sleep(self.settings.secret_refresh_s) => {}
                    () = self.slot.refused() => {
                        metrics::counter!(CREDENTIALS_REFUSED).increment(1);
                        tracing::warn!("the cache refuses the credential; looking for another one");
                        sleep_until(looked + PAUSE).await;
                    }
                }
            }
            match self.renew().await {
                Ok(true) => tracing::info!("a new credential of the cache is in use"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "no new credential of the cache is in use"),
            }
        }
    }

    /// Looks at the secret; returns whether it was new.
    async fn renew(&self) -> Result<bool, Error> {
        let mut in_use = self.in_use.lock().await;
        let id = &self.settings.momento_secret_id;
        let version = self.secrets.read(id).await;
        let version = version.map_err(|source| secret_error(&self.settings, source))?;
        let secrets_room::Version { secret, created_s } = version;
        if let Some(in_use) = &*in_use
            && in_use.secret.expose_secret() == secret.expose_secret()
        {
            return Ok(false);
        }
        let client = connect_cache(&secret, &self.settings).await?;
        let endpoint = client.endpoint().to_owned();
        // Replicas would come to use different caches, and not see each other's
        // fences.
        if in_use.as_ref().is_some_and(|it| it.endpoint != endpoint) {
            return Err(Error::AnotherCache { id: id.clone() });
        }
        let probed = client.probe().await;
        probed.map_err(|source| cache_error(&self.settings, source))?;
        self.slot.put(client);
        *in_use = Some(InUse { secret, endpoint });
        let created_s = created_s.unwrap_or_else(|| Timestamp::now().0 / 1000);
        #[expect(clippy::cast_precision_loss, reason = "seconds are exact for long")]
        metrics::gauge!(CREDENTIAL_TIME).set(created_s as f64);
        Ok(true)
    }
}

/// Whether waiting may mend it.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Secret { source, .. } => matches!(source, secrets_room::Error::Unavailable(_)),
        Error::Cache { source, .. } => source.kind == cache::Kind::Unavailable,
        _ => false,
    }
}
