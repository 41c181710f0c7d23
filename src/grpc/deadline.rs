//! Deadlines of calls: the caller's, else a default.

use std::time::Duration;

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Status};

use super::status::{self, Repetition};
use crate::service::Error;

/// The longest deadline, and the deadline of calls without one. [`LongestCall`] replaces both.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(3);

/// Extension of a request: its longest deadline instead of [`DEFAULT_DEADLINE`].
#[derive(Debug, Clone, Copy)]
pub struct LongestCall(pub Duration);
/// Part of the caller's time that is kept for the response: at the deadline itself, the
/// transport would send a status without details.
const HEADROOM_SHARE: u32 = 10;
const MAX_HEADROOM: Duration = Duration::from_millis(50);
static TIMEOUT_HEADER: HeaderName = HeaderName::from_static("grpc-timeout");
/// Digits of a `grpc-timeout`, by the gRPC specification.
const MAX_DIGITS: usize = 8;

/// Arrival of a call that has waited in a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival(Instant);

impl Arrival {
    pub(super) fn now() -> Self {
        Self(Instant::now())
    }

    pub(super) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// Time that a call has left, by its headers.
    pub(super) fn time_left(self, headers: &HeaderMap) -> Duration {
        granted(headers, DEFAULT_DEADLINE).saturating_sub(self.elapsed())
    }

    /// Longest time that a call may wait for a permit: half of the time that it has left, so
    /// that it can still be served, and at most `longest`.
    pub(super) fn patience(self, headers: &HeaderMap, longest: Duration) -> Duration {
        longest.min(self.time_left(headers) / 2)
    }
}

/// The deadline of a call, and whether its caller may repeat it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    instant: Instant,
    repetition: Repetition,
}

/// The deadline of a read.
pub(super) fn of<T>(request: &Request<T>) -> Deadline {
    let arrival = request.extensions().get::<Arrival>();
    let Arrival(arrived) = arrival.copied().unwrap_or_else(Arrival::now);
    let longest = request.extensions().get::<LongestCall>();
    let longest = longest.map_or(DEFAULT_DEADLINE, |longest| longest.0);
    Deadline {
        instant: arrived + granted(request.metadata().as_ref(), longest),
        repetition: Repetition::Safe,
    }
}

/// Time granted to a call, at most `longest`.
pub(super) fn granted(headers: &HeaderMap, longest: Duration) -> Duration {
    let timeout = headers
        .get(&TIMEOUT_HEADER)
        .and_then(|value| value.to_str().ok())
        .and_then(parse_timeout);
    match timeout {
        Some(timeout) => {
            let headroom = (timeout / HEADROOM_SHARE).min(MAX_HEADROOM);
            timeout.saturating_sub(headroom).min(longest)
        }
        None => longest,
    }
}

impl Deadline {
    pub(super) fn instant(self) -> Instant {
        self.instant
    }

    /// The deadline, with this repetition.
    pub(super) fn with(self, repetition: Repetition) -> Self {
        Self { repetition, ..self }
    }

    /// Waits for a use case until the deadline. Not an `async fn`: that would store the use
    /// case twice.
    pub(super) fn bound<T>(
        self,
        use_case: impl Future<Output = Result<T, Error>>,
    ) -> impl Future<Output = Result<T, Status>> {
        timeout_at(self.instant, use_case).map(move |ended| match ended {
            Ok(result) => result.map_err(|error| status::of(error, self.repetition)),
            Err(_) => Err(status::deadline_exceeded()),
        })
    }
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = !digits.is_empty()
        && digits.len() <= MAX_DIGITS
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    let amount: u64 = digits.parse().ok().filter(|_| is_number)?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn timeouts_are_parsed_by_the_grpc_specification() {
        for (text, timeout) in [
            ("3S", Some(Duration::from_secs(3))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("1u", Some(Duration::from_micros(1))),
            ("7n", Some(Duration::from_nanos(7))),
            ("2M", Some(Duration::from_secs(120))),
            ("", None),
            ("S", None),
            ("+1S", None),
            ("123456789S", None),
            ("1x", None),
            ("1é", None),
        ] {
            assert_eq!(parse_timeout(text), timeout, "{text:?}");
        }
    }

    fn headers(timeout: &'static str) -> HeaderMap {
        let timeout = HeaderValue::from_static(timeout);
        HeaderMap::from_iter([(TIMEOUT_HEADER.clone(), timeout)])
    }

    #[test]
    fn a_call_is_granted_its_timeout_less_the_headroom_for_its_response() {
        let longest = Duration::from_secs(5);
        for (timeout, is_granted) in [
            ("100m", Duration::from_millis(90)),
            ("4S", Duration::from_millis(3950)),
            ("1H", longest),
            ("soon", longest),
        ] {
            assert_eq!(granted(&headers(timeout), longest), is_granted, "{timeout}");
        }
        assert_eq!(granted(&HeaderMap::new(), longest), longest);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_since_its_arrival_reduces_the_time_of_a_call() {
        let arrival = Arrival::now();
        let timeout = headers("3S");
        assert_eq!(arrival.time_left(&timeout), Duration::from_millis(2950));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(arrival.elapsed(), Duration::from_secs(1));
        assert_eq!(arrival.time_left(&timeout), Duration::from_millis(1950));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_a_permit_for_at_most_half_of_its_time() {
        let longest = Duration::from_millis(250);
        for (timeout, patience) in [("100m", Duration::from_millis(45)), ("3S", longest)] {
            let patience_of_call = Arrival::now().patience(&headers(timeout), longest);
            assert_eq!(patience_of_call, patience, "{timeout}");
        }
    }
}
