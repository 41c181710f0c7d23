//! The head of the change log: which log it is, and how far it was written. It lives in the
//! register of the leader lease, so that a page of changes and its checkpoint are one
//! transaction.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;

use super::REGISTER;
use crate::{
    domain::Timestamp,
    store::{self, LogId, Register, Registers},
};

const LOG: &str = "log";
const NEXT: &str = "next";
const BEAT: &str = "beat";
/// A stream that nobody has followed for so long may have dropped changes: it
/// keeps them for 24 hours.
const LONGEST_PAUSE: Duration = Duration::from_secs(20 * 3600);

/// How far the log of changes has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHead {
    /// The log.
    pub log: LogId,
    /// The number of the change that is logged next.
    pub next: u64,
    /// When somebody said last that the stream is followed.
    pub beat: Timestamp,
}

impl LogHead {
    /// The head of the table's log, as it is now, and the version of the register
    /// that holds it: it grows with every beat. `None` if there is no log.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn read(registers: &dyn Registers) -> Result<Option<(Self, u64)>, store::Error> {
        let register = registers.read_register(REGISTER).await?;
        Ok(register.and_then(|Register { values, version }| Some((Self::of(&values)?, version))))
    }

    /// A new log: changes may have been missed.
    pub(super) fn begin() -> Self {
        Self {
            log: LogId(Uuid::new_v4().simple().to_string()),
            next: 1,
            beat: Timestamp::now(),
        }
    }

    /// The head that a register holds, if nothing may have been missed since.
    pub(super) fn resume(values: &BTreeMap<String, String>) -> Self {
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
        })
    }

    /// What the register is to hold of it, said now.
    pub(super) fn values(&self) -> [(String, String); 3] {
        [
            (LOG.to_owned(), self.log.0.clone()),
            (NEXT.to_owned(), self.next.to_string()),
            (BEAT.to_owned(), Timestamp::now().0.to_string()),
        ]
    }
}
