//! A cache whose client can be replaced while it is used, and may be missing at first.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Cache, Error, FailureKind, Found, Keys, Momento};

/// The client of the cache, once there is one. Operations that are under way
/// when it is swapped end with the client they began with.
#[derive(Debug, Default)]
pub struct Slot {
    client: RwLock<Option<Arc<Momento>>>,
    refused: Notify,
}

impl Slot {
    /// From now on operations go to this client.
    pub fn put(&self, client: Momento) {
        let mut slot = self.client.write().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(Arc::new(client));
    }

    /// Whether there is no client yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        client.is_none()
    }

    /// Waits until the cache refuses the credential, if it has not done so since
    /// this was last waited for.
    pub async fn refused(&self) {
        self.refused.notified().await;
    }

    fn client(&self) -> Result<Arc<Momento>, Error> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        client
            .clone()
            .ok_or_else(|| Error::new(FailureKind::Unavailable, "there was no connection yet"))
    }

    /// Takes note of a refused credential.
    fn noted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && error.kind == FailureKind::Credential
        {
            self.refused.notify_one();
        }
        result
    }
}

#[async_trait]
impl Cache for Slot {
    async fn get(&self, keys: &Keys) -> Result<Vec<Found>, Error> {
        self.noted(self.client()?.get(keys).await)
    }

    async fn set_if_absent(&self, key: &str, value: &[u8], ttl: Duration) -> Result<bool, Error> {
        self.noted(self.client()?.set_if_absent(key, value, ttl).await)
    }

    async fn set_if_equal(
        &self,
        key: &str,
        value: &[u8],
        expected: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let client = self.client()?;
        self.noted(client.set_if_equal(key, value, expected, ttl).await)
    }

    async fn set_if_not_equal(
        &self,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        self.noted(self.client()?.set_if_not_equal(key, value, ttl).await)
    }
}
