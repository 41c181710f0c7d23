//! Purge: deletes users and organizations for good once they can no longer be undeleted. Every replica
//! looks for them. A purge that two replicas make is made once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    service::{Accounts, Error},
    store,
    telemetry::PURGED,
};

/// Longest purge of one record.
const DEADLINE: Duration = Duration::from_secs(10);

/// Intervals of the purge.
#[derive(Debug, Clone, Copy)]
pub struct PurgeTiming {
    /// Pause between two reads of the schedule.
    pub interval: Duration,
    /// Time after the end of the undelete window, because replicas have different clocks.
    pub margin: Duration,
}

impl Default for PurgeTiming {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(60),
            margin: Duration::from_secs(300),
        }
    }
}

/// Purges deleted users and organizations.
pub struct PurgeLoop {
    accounts: Accounts,
    timing: PurgeTiming,
}

impl PurgeLoop {
    /// A purge of these accounts.
    #[must_use]
    pub fn new(accounts: Accounts, timing: PurgeTiming) -> Self {
        Self { accounts, timing }
    }

    /// Purges records when they are due. Never ends.
    pub async fn run(&self) {
        loop {
            sleep(self.timing.interval).await;
            loop {
                match self.purge_due().await {
                    // There may be more.
                    Ok(purged) if purged > 0 => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the schedule of purges cannot be read");
                        break;
                    }
                }
            }
        }
    }

    /// Purges the first records that are due. Returns their number.
    async fn purge_due(&self) -> Result<usize, store::Error> {
        let margin = self.timing.margin;
        let mut purged = 0;
        for purge in self.accounts.due_purges(margin).await? {
            let deadline = Instant::now() + DEADLINE;
            match self.accounts.purge(purge, margin, deadline).await {
                Ok(true) => {
                    purged += 1;
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
        Ok(purged)
    }
}
