//! The one Momento client of a process. Its connections are replaced while it is used, when
//! the credential changes.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::sync::Notify;

use super::{Error, FailureKind, Found, Momento, SetCondition};

/// The Momento client. Each operation is one round trip without retries. The caller bounds its
/// time. There is no plain set and no delete: every mutation is conditional, because Momento leaves
/// it undefined how plain and conditional writes of one key mix. Clones share the connections.
#[derive(Clone, Default)]
pub struct MomentoClient(Arc<MomentoConnections>);

#[derive(Default)]
struct MomentoConnections {
    /// Operations in progress during a replacement end on their earlier connections.
    current: RwLock<Option<Arc<Momento>>>,
    credential_rejected: Notify,
}

impl MomentoClient {
    /// Sends later operations over these connections.
    pub fn connect(&self, connections: Momento) {
        let mut current = self.0.current.write();
        *current = Some(Arc::new(connections));
    }

    /// Whether there are connections.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.current.read().is_some()
    }

    /// Waits until Momento rejects the credential, if it has not done so since the last wait.
    pub async fn credential_rejected(&self) {
        self.0.credential_rejected.notified().await;
    }

    /// Looks up distinct keys, at most [`super::MAX_KEYS`], with the consistent read concern.
    /// Returns one result per key, in the order of the keys.
    ///
    /// # Errors
    /// No response.
    pub async fn get(&self, keys: &[String]) -> Result<Vec<Found>, Error> {
        let connections = self.connections()?;
        self.note_rejection(connections.get(keys).await)
    }

    /// Stores the value if the condition holds. Returns whether it did.
    ///
    /// # Errors
    /// No response: the value may be stored, now or later.
    pub async fn set_if(
        &self,
        condition: SetCondition<'_>,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let connections = self.connections()?;
        self.note_rejection(connections.set_if(condition, key, value, ttl).await)
    }

    fn connections(&self) -> Result<Arc<Momento>, Error> {
        let current = self.0.current.read();
        current
            .clone()
            .ok_or_else(|| Error::new(FailureKind::Unavailable, "there was no connection yet"))
    }

    fn note_rejection<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && error.kind == FailureKind::Credential
        {
            self.0.credential_rejected.notify_one();
        }
        result
    }
}

impl fmt::Debug for MomentoClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut client = f.debug_struct("MomentoClient");
        client.field("is_connected", &self.is_connected());
        client.finish_non_exhaustive()
    }
}
