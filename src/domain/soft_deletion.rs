//! Deletions that keep the record: until they can no longer be undone, or until the user is erased.

use std::time::Duration;

use super::{ErasureId, Timestamp};

/// Longest time until a deletion can no longer be undone.
pub const MAX_UNDELETE_WINDOW: Duration = Duration::from_secs(30 * 24 * 3600);

/// A deletion that keeps the record. Its name and its unique values stay taken until the purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftDeletion {
    /// The time of the deletion.
    pub delete_time: Timestamp,
    /// The end of the record.
    pub purge: Purge,
}

/// The end of a deleted record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// From this time on, the deletion cannot be undone, and the record is purged.
    At(Timestamp),
    /// The deletion cannot be undone. This erasure purges the record.
    By(ErasureId),
}

impl SoftDeletion {
    /// The time of the purge. `None`: an erasure purges the record.
    #[must_use]
    pub fn purge_time(self) -> Option<Timestamp> {
        match self.purge {
            Purge::At(time) => Some(time),
            Purge::By(_) => None,
        }
    }

    /// The erasure that purges the record.
    #[must_use]
    pub fn erasure(self) -> Option<ErasureId> {
        match self.purge {
            Purge::At(_) => None,
            Purge::By(erasure) => Some(erasure),
        }
    }

    /// Whether the record is to be purged at `now`.
    #[must_use]
    pub fn is_due(self, now: Timestamp) -> bool {
        self.purge_time().is_some_and(|time| time <= now)
    }

    /// Whether the deletion can be undone at `now`.
    #[must_use]
    pub fn can_be_undone(self, now: Timestamp) -> bool {
        self.purge_time().is_some_and(|time| time > now)
    }
}

/// The time from a deletion until it can no longer be undone: more than 0, at most
/// [`MAX_UNDELETE_WINDOW`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UndeleteWindow(Duration);

impl UndeleteWindow {
    /// `None` if the time is 0 or too long.
    #[must_use]
    pub fn new(time: Duration) -> Option<Self> {
        (!time.is_zero() && time <= MAX_UNDELETE_WINDOW).then_some(Self(time))
    }

    /// The deletion at `now`.
    #[must_use]
    pub fn delete(self, now: Timestamp) -> SoftDeletion {
        SoftDeletion {
            delete_time: now,
            purge: Purge::At(now.after(self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_positive_and_at_most_30_days() {
        for (window, is_valid) in [
            (Duration::ZERO, false),
            (Duration::from_nanos(1), true),
            (MAX_UNDELETE_WINDOW, true),
            (MAX_UNDELETE_WINDOW + Duration::from_nanos(1), false),
        ] {
            assert_eq!(UndeleteWindow::new(window).is_some(), is_valid);
        }
        let window = UndeleteWindow::new(Duration::from_secs(2)).unwrap();
        let deletion = window.delete(Timestamp(500));
        assert!(!deletion.is_due(Timestamp(2499)) && deletion.can_be_undone(Timestamp(2499)));
        assert!(!deletion.can_be_undone(Timestamp(2500)));
        assert!(deletion.is_due(Timestamp(2500)));
    }
}
