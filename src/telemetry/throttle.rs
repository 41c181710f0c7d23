//! Throttles log lines of one kind.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The window in which lines are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// Lets a bounded number of lines pass in each second.
#[derive(Debug)]
pub struct Throttle {
    lines: u32,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began: Option<Instant>,
    passed: u32,
    /// Suppressed lines since the last line that passed.
    suppressed: u64,
}

impl Throttle {
    /// At most `lines` in each second.
    #[must_use]
    pub const fn new(lines: u32) -> Self {
        Self {
            lines,
            window: Mutex::new(Window {
                began: None,
                passed: 0,
                suppressed: 0,
            }),
        }
    }

    /// Lets a line pass, or suppresses it (`None`). Returns the number of suppressed lines
    /// since the last line that passed.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock();
        if window.began.is_none_or(|began| now - began >= WINDOW) {
            window.began = Some(now);
            window.passed = 0;
        }
        if window.passed < self.lines {
            window.passed += 1;
            Some(std::mem::take(&mut window.suppressed))
        } else {
            window.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppressed_lines_are_counted_and_reported_later() {
        let throttle = Throttle::new(2);
        let began = Instant::now();
        let at = |millis| throttle.pass_at(began + Duration::from_millis(millis));
        assert_eq!(
            [at(0), at(1), at(2), at(999)],
            [Some(0), Some(0), None, None]
        );
        assert_eq!([at(1000), at(1001), at(1002)], [Some(2), Some(0), None]);
        assert_eq!(at(5000), Some(1));
    }
}
