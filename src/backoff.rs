//! Random pauses before retries, so that calls that failed together are not retried
//! together.

use std::time::Duration;

use uuid::Uuid;

/// Anything up to `longest`: full jitter.
pub(crate) fn up_to(longest: Duration) -> Duration {
    let [high, low, ..] = Uuid::new_v4().into_bytes();
    longest * u32::from(u16::from_be_bytes([high, low])) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_over_all_that_is_allowed() {
        let longest = Duration::from_millis(100);
        let pauses: Vec<_> = (0..1000).map(|_| up_to(longest)).collect();
        assert!(pauses.iter().all(|it| *it <= longest));
        for quarter in 0..4 {
            let within = longest * quarter / 4..longest * (quarter + 1) / 4;
            let found = pauses.iter().filter(|it| within.contains(*it)).count();
            assert!(found > 150, "{found} of 1000 in {within:?}");
        }
    }
}
