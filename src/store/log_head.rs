//! The head of the change log: the identity of the log, and the number of its next change. It is
//! stored in the register of the leader lease, so that a page of changes and its checkpoint are one
//! transaction.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;

use super::{DynamoDb, Error, LogId, Register, Registers as _};
use crate::domain::Timestamp;

/// The register of the stream invalidator's lease, with its checkpoints and the head of the
/// log.
pub const LOG_REGISTER: &str = "stream-invalidator";

const LOG: &str = "log";
const NEXT: &str = "next";
const BEAT: &str = "beat";
const PROCESSED: &str = "processed";
/// Longest time without a beat after which a log continues. After a longer time, the stream may
/// have dropped changes: it keeps them for 24 hours.
const LONGEST_PAUSE: Duration = Duration::from_secs(20 * 3600);

/// The end of the change log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHead {
    /// The log.
    pub log: LogId,
    /// The number of the next change.
    pub next: u64,
    /// Time of the follower's last beat, by its wall clock.
    pub beat: Timestamp,
    /// The time until which all changes are in the log, by the follower's wall clock and the stream's
    /// times. 0: unknown.
    pub processed: Timestamp,
}

impl LogHead {
    /// Reads the head of the table's log, and the version of its register, which grows with
    /// every beat. `None`: there is no log.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn read(table: &DynamoDb) -> Result<Option<(Self, u64)>, Error> {
        let register = table.read_register(LOG_REGISTER).await?;
        Ok(register.and_then(|Register { values, version }| Some((Self::of(&values)?, version))))
    }

    /// The head of a new log, in case changes may have been missed.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            log: LogId(Uuid::new_v4().simple().to_string()),
            next: 1,
            beat: Timestamp::now(),
            processed: Timestamp(0),
        }
    }

    /// The head in the values of the register, or that of a new log if changes may have been
    /// missed since.
    #[must_use]
    pub fn resume(values: &BTreeMap<String, String>) -> Self {
        let now = Timestamp::now();
        Self::of(values)
            .filter(|head| head.beat.after(LONGEST_PAUSE) > now)
            .unwrap_or_else(Self::begin)
    }

    fn of(values: &BTreeMap<String, String>) -> Option<Self> {
        Some(Self {
            log: LogId(values.get(LOG)?.clone()),
            next: values.get(NEXT)?.parse().ok()?,
            beat: Timestamp(values.get(BEAT)?.parse().ok()?),
            processed: Timestamp(
                values
                    .get(PROCESSED)
                    .and_then(|time| time.parse().ok())
                    .unwrap_or_default(),
            ),
        })
    }

    /// The values to write into the register now.
    #[must_use]
    pub fn values(&self) -> [(String, String); 4] {
        [
            (LOG.to_owned(), self.log.0.clone()),
            (NEXT.to_owned(), self.next.to_string()),
            (BEAT.to_owned(), Timestamp::now().0.to_string()),
            (PROCESSED.to_owned(), self.processed.0.to_string()),
        ]
    }
}
