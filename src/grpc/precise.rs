//! Precise statuses for calls that fail before a handler sees them. The
//! transport reports them as INTERNAL, OUT_OF_RANGE and the like, without
//! details; the caller is to learn what was wrong with the call.

use http::HeaderName;
use http_body::Body as _;
use tonic::{Code, Status, body::Body};

use super::{status, status::Reason};

static DETAILS_HEADER: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Replaces a response that is nothing but a status without details. Statuses
/// of handlers all have details.
#[must_use]
pub fn precise_status(response: http::Response<Body>) -> http::Response<Body> {
    if !response.body().is_end_stream() || response.headers().contains_key(&DETAILS_HEADER) {
        return response;
    }
    let bare = Status::from_header_map(response.headers());
    match bare.as_ref().and_then(meaning) {
        Some(status) => status.into_http(),
        None => response,
    }
}

fn meaning(bare: &Status) -> Option<Status> {
    let (code, reason, message) = match bare.code() {
        Code::OutOfRange => (
            Code::ResourceExhausted,
            Reason::MessageTooLarge,
            format!("the request is too large: {}", bare.message()),
        ),
        Code::Internal => (
            Code::InvalidArgument,
            Reason::MalformedMessage,
            format!("the request is malformed: {}", bare.message()),
        ),
        Code::Unimplemented => (
            Code::Unimplemented,
            Reason::UnknownMethod,
            format!("not offered by this server: {}", bare.message()),
        ),
        _ => return None,
    };
    Some(status::plain(code, reason, &message))
}
