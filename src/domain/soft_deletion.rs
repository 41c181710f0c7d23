//! Deletions that can be undone until a time.

use std::time::Duration;

use super::Timestamp;

/// Longest time until a deletion can no longer be undone.
pub const MAX_UNDELETE_WINDOW: Duration = Duration::from_secs(30 * 24 * 3600);

/// A deletion that can be undone. The name and the unique values stay taken until the record is purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftDeletion {
    /// The time of the deletion.
    pub delete_time: Timestamp,
    /// The time from which it cannot be undone, and the record is purged.
    pub purge_time: Timestamp,
}

impl SoftDeletion {
    /// Whether the record is to be purged at `now`.
    #[must_use]
    pub fn is_due(self, now: Timestamp) -> bool {
        self.purge_time <= now
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
            purge_time: now.after(self.0),
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
        assert!(!deletion.is_due(Timestamp(2499)));
        assert!(deletion.is_due(Timestamp(2500)));
    }
}
