//! The one Momento client of a process. Its connections are replaced while it is used, when
//! the credential changes.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::sync::Notify;

use super::{Cache, Error, FailureKind, Found, Keys, momento::Batching};

/// The Momento client. Each operation is one round trip without retries. The caller bounds its
/// time. There is no plain set and no delete: every mutation is conditional, because Momento leaves
/// it undefined how plain and conditional writes of one key mix. Clones share the connections.
#[derive(Clone)]
pub struct MomentoClient {
    connections: Arc<CurrentConnections>,
    lookups: Arc<Batching>,
}

/// The connections in use. Operations in progress during a replacement end on their earlier
/// connections.
#[derive(Default)]
pub(super) struct CurrentConnections {
    current: RwLock<Option<Arc<dyn Cache>>>,
    credential_rejected: Notify,
}

impl MomentoClient {
    /// A client without connections. `patience` is the longest wait for a look-up that shares
    /// its round trip with others.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let connections = Arc::new(CurrentConnections::default());
        Self {
            lookups: Arc::new(Batching::new(connections.clone(), patience)),
            connections,
        }
    }

    /// Sends later operations over these connections.
    pub fn connect(&self, connections: Arc<dyn Cache>) {
        self.connections.put(connections);
    }

    /// Whether there are connections.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connections.get().is_ok()
    }

    /// Waits until Momento rejects the credential, if it has not done so since the last wait.
    pub async fn credential_rejected(&self) {
        self.connections.credential_rejected.notified().await;
    }

    /// Looks up distinct keys, at most [`super::MAX_KEYS`], with the consistent read concern.
    /// Returns one result per key, in the order of the keys.
    ///
    /// # Errors
    /// No response.
    pub async fn get(&self, keys: &Keys) -> Result<Vec<Found>, Error> {
        self.lookups.get(keys).await
    }

    /// Stores the value if there is nothing under the key. Returns whether it did.
    ///
    /// # Errors
    /// No response: the value may be stored, now or later.
    pub async fn set_if_absent(
        &self,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let connections = self.connections.get()?;
        let stored = connections.set_if_absent(key, value, ttl).await;
        self.connections.note_rejection(stored)
    }

    /// Stores the value if `expected` is under the key. Returns whether it did.
    ///
    /// # Errors
    /// No response: the value may be stored, now or later.
    pub async fn set_if_equal(
        &self,
        key: &str,
        value: &[u8],
        expected: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let connections = self.connections.get()?;
        let stored = connections.set_if_equal(key, value, expected, ttl).await;
        self.connections.note_rejection(stored)
    }

    /// Stores the value, unless the same value is under the key. Returns whether it did.
    ///
    /// # Errors
    /// No response: the value may be stored, now or later.
    pub async fn set_if_not_equal(
        &self,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let connections = self.connections.get()?;
        let stored = connections.set_if_not_equal(key, value, ttl).await;
        self.connections.note_rejection(stored)
    }
}

impl fmt::Debug for MomentoClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut client = f.debug_struct("MomentoClient");
        client.field("is_connected", &self.is_connected());
        client.finish_non_exhaustive()
    }
}

impl CurrentConnections {
    pub(super) fn put(&self, connections: Arc<dyn Cache>) {
        let mut current = self.current.write();
        *current = Some(connections);
    }

    /// Looks up keys in one round trip.
    pub(super) async fn look_up(&self, keys: &Keys) -> Result<Vec<Found>, Error> {
        let connections = self.get()?;
        self.note_rejection(connections.get(keys).await)
    }

    fn get(&self) -> Result<Arc<dyn Cache>, Error> {
        let current = self.current.read();
        current
            .clone()
            .ok_or_else(|| Error::new(FailureKind::Unavailable, "there was no connection yet"))
    }

    fn note_rejection<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && error.kind == FailureKind::Credential
        {
            self.credential_rejected.notify_one();
        }
        result
    }
}
