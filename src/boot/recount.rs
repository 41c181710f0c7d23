//! `recount`: counts the memberships of all users and organizations in the table, and replaces the counts
//! that the follower of the stream keeps.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};

use super::{Error, load_aws, table_error, table_settings};
use crate::{
    config::BackendSettings,
    domain::{Key, MemberCounts, Membership, NameMatch, ProfileId, Timestamp},
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
/// Longest time from the read of an end until it is scheduled.
const SOON: Duration = Duration::from_secs(10);
/// Longest wait for any progress of the follower of the stream.
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

    /// Counts some users or organizations, and returns those whose counts could not be replaced because
    /// their memberships were changing.
    async fn count_all(&self, profiles: Vec<ProfileId>) -> Result<Vec<ProfileId>, store::Error> {
        let scheduled = stream::iter(profiles)
            .map(async |profile| {
                let is_scheduled = self.schedule_ends(&profile).await?;
                Ok::<_, store::Error>((profile, is_scheduled))
            })
            .buffer_unordered(COUNTS_AT_ONCE);
        let scheduled: Vec<_> = scheduled.try_collect().await?;
        let (mut ready, mut left) = (Vec::new(), Vec::new());
        for (profile, is_scheduled) in scheduled {
            if is_scheduled {
                ready.push(profile);
            } else {
                left.push(profile);
            }
        }
        let before = self.head().await?;
        // Until the indexes have all changes that are in the log.
        sleep(SLACK).await;
        let counted = stream::iter(ready)
            .map(async |profile| {
                let mut counts = MemberCounts::default();
                for membership in self.memberships(&profile).await? {
                    counts.add(membership.role, 1);
                }
                Ok::<_, store::Error>((profile, counts))
            })
            .buffer_unordered(COUNTS_AT_ONCE);
        let counted: Vec<_> = counted.try_collect().await?;
        // Until the log has all changes that the counts may include.
        let log = self.processed(self.table.now().after(SLACK)).await?;
        let as_of = before.next.saturating_sub(1);
        for (profile, counts) in counted {
            let position = (&before.log, as_of);
            let is_set =
                log.log == before.log && self.table.set_counts(&profile, &counts, position).await?;
            left.extend((!is_set).then_some(profile));
        }
        Ok(left)
    }

    /// Adds the ends of a profile's memberships to the schedule, so that the follower of the stream counts
    /// all of their changes. Returns whether all are scheduled.
    async fn schedule_ends(&self, profile: &ProfileId) -> Result<bool, store::Error> {
        let memberships = self.memberships(profile).await?;
        let ends: Vec<_> = memberships.iter().filter_map(ScheduledEnd::of).collect();
        let mut is_complete = true;
        for ends in ends.chunks(READ_MAX_KEYS) {
            let scheduled = self.table.scheduled(ends).await?;
            for end in ends.iter().filter(|end| !scheduled.contains(end)) {
                // A sooner end could be in the log when it is added again.
                let is_far = end.expire_time.is_after(self.table.now().after(SOON));
                if is_far {
                    self.table.add_to_schedule(end).await?;
                }
                is_complete &= is_far;
            }
        }
        Ok(is_complete)
    }

    async fn head(&self) -> Result<LogHead, store::Error> {
        let head = LogHead::read(&self.table).await?;
        head.map(|(head, _)| head).ok_or_else(not_followed)
    }

    /// Waits until the log has all changes until a time.
    async fn processed(&self, until: Timestamp) -> Result<LogHead, store::Error> {
        let mut last = Timestamp(0);
        let mut deadline = Instant::now() + FOLLOWER_PATIENCE;
        loop {
            let head = self.head().await?;
            if head.processed > until {
                return Ok(head);
            }
            if head.processed != last {
                last = head.processed;
                deadline = Instant::now() + FOLLOWER_PATIENCE;
            }
            if Instant::now() > deadline {
                return Err(not_followed());
            }
            sleep(POLL).await;
        }
    }

    /// The memberships of a user or an organization that have not ended.
    async fn memberships(&self, profile: &ProfileId) -> Result<Vec<Membership>, store::Error> {
        let (mut memberships, mut after) = (Vec::new(), None);
        loop {
            let slice = Slice {
                after: after.as_ref(),
                limit: PAGE,
            };
            let page = self.table.memberships_under(&profile.name, slice).await?;
            let now = self.table.now();
            memberships.extend(page.found.into_iter().filter(|membership| {
                let sides = [
                    ProfileId::organization_of(membership),
                    ProfileId::member_of(membership),
                ];
                sides.contains(profile) && !membership.has_expired(|| now)
            }));
            after = page.next;
            if after.is_none() {
                return Ok(memberships);
            }
        }
    }
}

fn not_followed() -> store::Error {
    let why = "no replica with STREAM_INVALIDATOR=true makes progress along the table's stream";
    store::Error::new(ErrorKind::Unavailable, why)
}
