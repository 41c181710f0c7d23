//! Counts of memberships, as of a position of the change log.

use std::time::Duration;

use tokio::time::sleep;

use super::{Accounts, Cursor, Error, Freshness, Refusal, scope::require, store_failed};
use crate::{
    domain::{Key, MemberCounts, OrganizationName, OrganizationScope, ProfileId, Record, Username},
    store::LogHead,
};

/// Age below which the creation of a user or an organization may not be in the log yet.
const NEW: Duration = Duration::from_secs(10);
/// Reads of the counts of a new one, and the pause between them.
const ATTEMPTS_FOR_NEW: usize = 8;
const PAUSE: Duration = Duration::from_millis(250);

/// Counts, and the position of the change log after the last change that they include.
#[derive(Debug)]
pub struct Counts {
    /// The numbers of memberships.
    pub counts: MemberCounts,
    /// The position.
    pub cursor: Cursor,
}

impl Accounts {
    /// Counts the memberships of an organization by role.
    ///
    /// # Errors
    /// [`Refusal::OrganizationNotGranted`], [`Refusal::OrganizationNotFound`],
    /// [`Refusal::CountIncomplete`].
    pub async fn count_members(
        &self,
        scope: &OrganizationScope,
        name: OrganizationName,
    ) -> Result<Counts, Error> {
        let found = self.find_profile(Key::Organization(name.clone())).await?;
        require(scope, &name, found.as_ref())?;
        let found = found.ok_or(Error::Refused(Refusal::OrganizationNotFound(name)))?;
        self.count(&found).await
    }

    /// Counts the memberships of a user.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::CountIncomplete`].
    pub async fn count_organizations(&self, username: Username) -> Result<Counts, Error> {
        let found = self.find_profile(Key::User(username.clone())).await?;
        let found = found.ok_or(Error::Refused(Refusal::UserNotFound(username)))?;
        self.count(&found).await
    }

    async fn find_profile(&self, key: Key) -> Result<Option<Record>, Error> {
        let found = self.get(key, Some, Freshness::Coherent).await?;
        let found = found.map(|(record, _)| record);
        Ok(found.filter(|record| record.deletion().is_none()))
    }

    /// The counts of a user or an organization. Those of a new one are complete as soon as the log has its
    /// creation.
    async fn count(&self, found: &Record) -> Result<Counts, Error> {
        let incomplete = || Error::Refused(Refusal::CountIncomplete);
        let profile = ProfileId::of(found).ok_or_else(incomplete)?;
        let created = found.stamp().create_time;
        let is_new = created.is_some_and(|created| created.after(NEW) > self.table.now());
        let more_attempts = if is_new { ATTEMPTS_FOR_NEW - 1 } else { 0 };
        for _ in 0..more_attempts {
            if let Some(counts) = self.complete_counts(&profile).await? {
                return Ok(counts);
            }
            sleep(PAUSE).await;
        }
        self.complete_counts(&profile).await?.ok_or_else(incomplete)
    }

    async fn complete_counts(&self, profile: &ProfileId) -> Result<Option<Counts>, Error> {
        let _permit = self.reads.table_permits(1).await.map_err(store_failed)?;
        // The head before the counts: they include all changes before it.
        let head = LogHead::read(&self.table).await.map_err(store_failed)?;
        let Some((head, _)) = head else {
            return Ok(None);
        };
        let stored = self.table.counts(profile).await.map_err(store_failed)?;
        let stored = stored.filter(|stored| stored.complete_in.as_ref() == Some(&head.log));
        Ok(stored.map(|stored| {
            let after = stored.as_of.max(head.next.saturating_sub(1));
            Counts {
                counts: stored.counts,
                cursor: Cursor::new(head.log, after),
            }
        }))
    }
}
