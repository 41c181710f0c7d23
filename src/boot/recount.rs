//! `recount`: counts the memberships of all users and organizations in the table, and replaces the counts
//! that the follower of the stream keeps.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};

use super::{Error, load_aws, table_error, table_settings};
use crate::{
    config::BackendSettings,
    domain::{Key, MemberCounts, Membership, NameMatch, ProfileId, Record, Timestamp, Username},
    store::{self, DynamoDb, ErrorKind, LogHead, ProfileKind, READ_MAX_KEYS, ScheduledEnd, Slice},
};

/// Users or organizations that are counted between two looks at the change log.
const AT_ONCE: u16 = 250;
/// Concurrent counts.
const COUNTS_AT_ONCE: usize = 8;
/// Entries of a list that are read together.
const PAGE: u16 = 1000;
/// Longest time from a change until the stream and the indexes have it, with the difference of clocks.
const SLACK: Duration = Duration::from_secs(2);
/// Longest wait for the follower of the stream.
const FOLLOWER_PATIENCE: Duration = Duration::from_secs(60);
/// Interval of reading the head of the log.
const POLL: Duration = Duration::from_millis(250);
/// Most counts of a user or an organization whose memberships keep changing.
const MAX_ATTEMPTS: usize = 20;

/// The result of `recount`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recounted {
    /// Users and organizations that were counted.
    pub profiles: u64,
    /// Those of them whose memberships kept changing: their counts are as before.
    pub busy: u64,
}

/// Counts the memberships of all users and organizations.
///
/// # Errors
/// The table cannot be read or written, or no replica follows its stream.
pub async fn recount(settings: &BackendSettings) -> Result<Recounted, Error> {
    let aws = load_aws(settings).await?;
    let table = DynamoDb::new(&aws, table_settings(settings));
    let recounted = Recount { table }.run().await;
    recounted.map_err(|source| table_error(settings, source))
}

struct Recount {
    table: DynamoDb,
}

/// A full count, at a time between two looks at the log.
struct FullCount {
    counts: MemberCounts,
    ends: Vec<ScheduledEnd>,
}

impl Recount {
    async fn run(&self) -> Result<Recounted, store::Error> {
        let mut recounted = Recounted::default();
        for kind in [ProfileKind::Organizations, ProfileKind::Users] {
            let mut after = None;
            loop {
                let slice = Slice {
                    after: after.as_ref(),
                    limit: AT_ONCE,
                };
                let page = self.table.profiles(kind, &NameMatch::All, slice).await?;
                let mut left = self.profiles(&page.found).await?;
                recounted.profiles += left.len() as u64;
                for _ in 0..MAX_ATTEMPTS {
                    if left.is_empty() {
                        break;
                    }
                    left = self.count_all(left).await?;
                }
                recounted.busy += left.len() as u64;
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(recounted)
    }

    async fn profiles(&self, keys: &[Key]) -> Result<Vec<ProfileId>, store::Error> {
        let found = self.table.read_strong(keys).await?;
        let found = found.iter().flatten();
        Ok(found.filter_map(ProfileId::of).collect())
    }

    /// Counts some users or organizations, and returns those whose counts have changed meanwhile.
    async fn count_all(&self, profiles: Vec<ProfileId>) -> Result<Vec<ProfileId>, store::Error> {
        let before = self.head().await?;
        // Until the indexes have all changes that are in the log.
        sleep(SLACK).await;
        let counted: Vec<_> = stream::iter(profiles)
            .map(async |profile| {
                let count = self.count(&profile).await?;
                Ok::<_, store::Error>((profile, count))
            })
            .buffer_unordered(COUNTS_AT_ONCE)
            .try_collect()
            .await?;
        // Until the log has all changes that the counts may include.
        let log = self.processed(self.table.now().after(SLACK)).await?;
        let as_of = before.next.saturating_sub(1);
        let mut changed = Vec::new();
        for (profile, FullCount { counts, ends }) in counted {
            for end in &ends {
                self.table.add_to_schedule(end).await?;
            }
            let is_set = log.log == before.log
                && self
                    .table
                    .set_counts(&profile, &counts, (&before.log, as_of))
                    .await?;
            if !is_set {
                changed.push(profile);
            }
        }
        Ok(changed)
    }

    async fn head(&self) -> Result<LogHead, store::Error> {
        let head = LogHead::read(&self.table).await?;
        head.map(|(head, _)| head).ok_or_else(not_followed)
    }

    /// Waits until the log has all changes until a time.
    async fn processed(&self, until: Timestamp) -> Result<LogHead, store::Error> {
        let deadline = Instant::now() + FOLLOWER_PATIENCE;
        loop {
            let head = self.head().await?;
            if head.processed > until {
                return Ok(head);
            }
            if Instant::now() > deadline {
                return Err(not_followed());
            }
            sleep(POLL).await;
        }
    }

    async fn count(&self, profile: &ProfileId) -> Result<FullCount, store::Error> {
        let mut full = FullCount {
            counts: MemberCounts::default(),
            ends: Vec::new(),
        };
        let mut after = None;
        loop {
            let slice = Slice {
                after: after.as_ref(),
                limit: PAGE,
            };
            let (memberships, next) = match profile.name.key() {
                Key::Organization(name) => {
                    let page = self.table.members(&name, &NameMatch::All, slice).await?;
                    (page.found, page.next)
                }
                Key::User(username) | Key::Membership(_, username) => {
                    let page = self
                        .table
                        .organizations_of(&username, &NameMatch::All, slice)
                        .await?;
                    (self.memberships(&username, page.found).await?, page.next)
                }
            };
            let now = self.table.now();
            for membership in memberships {
                let sides = [
                    ProfileId::organization_of(&membership),
                    ProfileId::member_of(&membership),
                ];
                // An end that has passed is in the log, or will be there before the counts are set.
                if sides.contains(profile) && !membership.has_expired(|| now) {
                    full.counts.add(membership.role, 1);
                    full.ends.extend(ScheduledEnd::of(&membership));
                }
            }
            after = next;
            if after.is_none() {
                return Ok(full);
            }
        }
    }

    async fn memberships(
        &self,
        username: &Username,
        organizations: Vec<crate::domain::OrganizationName>,
    ) -> Result<Vec<Membership>, store::Error> {
        let key = |organization| Key::Membership(organization, username.clone());
        let keys: Vec<_> = organizations.into_iter().map(key).collect();
        let mut memberships = Vec::new();
        for keys in keys.chunks(READ_MAX_KEYS) {
            let found = self.table.read_strong(keys).await?.into_iter().flatten();
            memberships.extend(found.filter_map(Record::into_membership));
        }
        Ok(memberships)
    }
}

fn not_followed() -> store::Error {
    let why = "no replica with STREAM_INVALIDATOR=true follows the table's stream";
    store::Error::new(ErrorKind::Unavailable, why)
}
