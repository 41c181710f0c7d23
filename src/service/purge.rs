//! The purge of deleted users and organizations once they can no longer be undeleted.

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Accounts, Error, Refusal, deletions::delete_at_once, read_set::ReadSet};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{Actor, Key, Origin},
    store::{self, DynamoDb, ScheduledPurge},
};

impl Accounts {
    /// Purges a user or an organization, if it is due. Returns whether it was.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn purge(&self, purge: ScheduledPurge, deadline: Instant) -> Result<bool, Error> {
        let origin = Origin {
            actor: Actor::Platform,
            caller: None,
            request_id: None,
        };
        let change = PurgeIfDue(purge.clone());
        let is_due = self.writes.apply(change, origin, deadline, None).await?;
        if !is_due {
            // The record was changed past the service.
            let removed = self.table.remove_purge(&purge).await;
            removed.map_err(Error::Store)?;
        }
        Ok(is_due)
    }
}

struct PurgeIfDue(ScheduledPurge);

#[async_trait]
impl Change for PurgeIfDue {
    type Output = bool;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![self.0.name.key()]
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<bool, Refusal>, store::Error> {
        let key = self.0.name.key();
        let found = ReadSet::read(table, [key.clone()]).await?;
        let due = found.record(&key).filter(|record| {
            let deletion = record.deletion();
            deletion.is_some_and(|deletion| deletion.is_due(table.now()))
        });
        let Some(due) = due else {
            return Ok(Verdict::Keep {
                output: false,
                premises: Vec::new(),
            });
        };
        Ok(match delete_at_once(table, due.clone()).await? {
            Ok(steps) => Verdict::Commit(Plan {
                steps,
                publish: Vec::new(),
                premises: Vec::new(),
                output: true,
            }),
            Err(refused) => refused,
        })
    }
}
