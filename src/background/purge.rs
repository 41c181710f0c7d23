//! Purge: deletes users and organizations for good once they can no longer be undeleted. Every replica
//! looks for them. A purge that two replicas make is made once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    service::{Accounts, Error},
    store::{self, DynamoDb},
    telemetry::PURGED,
};

/// Longest purge of one record.
const DEADLINE: Duration = Duration::from_secs(10);

/// Purges deleted users and organizations.
pub struct PurgeLoop {
    table: DynamoDb,
    accounts: Accounts,
    /// Pause between two reads of the schedule.
    interval: Duration,
}

impl PurgeLoop {
    /// A purge of this table's records.
    #[must_use]
    pub fn new(table: DynamoDb, accounts: Accounts, interval: Duration) -> Self {
        Self {
            table,
            accounts,
            interval,
        }
    }

    /// Purges records when they are due. Never ends.
    pub async fn run(&self) {
        loop {
            sleep(self.interval).await;
            if let Err(error) = self.purge_due().await {
                tracing::warn!(%error, "the schedule of purges cannot be read");
            }
        }
    }

    async fn purge_due(&self) -> Result<(), store::Error> {
        let due = self.table.due_purges(self.table.now()).await?;
        for purge in due {
            match self.accounts.purge(purge, Instant::now() + DEADLINE).await {
                Ok(true) => {
                    metrics::counter!(PURGED).increment(1);
                    tracing::info!("a deleted user or organization is purged");
                }
                Ok(false) => {}
                Err(Error::Store(error) | Error::OutcomeUnknown(error)) => {
                    tracing::warn!(%error, "a purge has failed, and is retried");
                }
                Err(_) => tracing::warn!("a purge has failed, and is retried"),
            }
        }
        Ok(())
    }
}
