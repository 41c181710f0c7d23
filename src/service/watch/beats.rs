//! Decides by the beats of the follower whether the table's stream is followed.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Timestamp;

/// Time without a beat after which the stream counts as not followed.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// The beats of the stream's follower, timed by this replica's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beats {
    /// The version of the register at the last read.
    version: u64,
    /// When that version was first read.
    since: Instant,
    /// When the register was last read.
    last_read: Instant,
    /// Whether this replica observed the change of the register to that version.
    is_moving: bool,
}

/// Whether the stream is followed.
pub(super) enum Followed {
    Yes,
    No,
    /// Unknown until the next beat.
    Unclear,
}

impl Beats {
    /// The beats after a read of the register.
    pub(super) fn observe(before: Option<Self>, version: u64) -> Self {
        let now = Instant::now();
        match before {
            // A slow read may return an older version.
            Some(before) if before.version >= version => Self {
                last_read: now,
                ..before
            },
            // After a long time without a read, the time of the change is unknown.
            before => Self {
                version,
                since: now,
                last_read: now,
                is_moving: before.is_some_and(|it| now - it.last_read < LONGEST_SILENCE),
            },
        }
    }

    /// Whether the stream is followed. `beat` is the time of the last beat, by the follower's wall
    /// clock. Clocks may differ, so this replica's own observations take precedence.
    pub(super) fn followed(&self, beat: Timestamp) -> Followed {
        let apart = Duration::from_millis(beat.0.abs_diff(Timestamp::now().0));
        if self.since.elapsed() >= LONGEST_SILENCE {
            Followed::No
        } else if self.is_moving || apart < LONGEST_SILENCE {
            Followed::Yes
        } else {
            Followed::Unclear
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    fn is_followed(beats: &Beats, beat: Timestamp) -> Option<bool> {
        match beats.followed(beat) {
            Followed::Yes => Some(true),
            Followed::No => Some(false),
            Followed::Unclear => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn observed_beats_take_precedence_over_clocks() {
        let (near, far) = (Timestamp::now(), Timestamp(0));
        let first = Beats::observe(None, 7);
        assert_eq!(is_followed(&first, near), Some(true));
        assert_eq!(is_followed(&first, far), None);
        sleep(LONGEST_SILENCE / 2).await;
        let moved = Beats::observe(Some(first), 8);
        assert_eq!(is_followed(&moved, far), Some(true));
        // No further beat, at any difference of the clocks.
        sleep(LONGEST_SILENCE).await;
        let silent = Beats::observe(Some(moved), 8);
        for beat in [near, far] {
            assert_eq!(is_followed(&silent, beat), Some(false));
        }
        // A beat at an unknown time, between two reads that are far apart.
        sleep(LONGEST_SILENCE).await;
        let late = Beats::observe(Some(silent), 9);
        assert_eq!(is_followed(&late, far), None);
    }
}
