//! Error details of calls that fail before their handler runs. The transport reports them as
//! INTERNAL, OUT_OF_RANGE and the like, without details. This layer adds the code and the
//! details that a caller needs to correct the call.

use http::{HeaderName, HeaderValue};
use http_body::Body as _;
use tonic::{Code, Status, body::Body};

use crate::grpc::status::{self, Reason};

static DETAILS_HEADER: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// Header with the accepted compressions of requests. The transport sends it with a
/// rejection.
static ENCODINGS_HEADER: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// The only accepted encoding.
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");
/// Longest part of the transport's message that is returned, in characters.
const MAX_CHARACTERS: usize = 256;

/// Adds error details to a response that is a bare status. Handlers add their own.
#[must_use]
pub fn with_error_details(response: http::Response<Body>) -> http::Response<Body> {
    if !response.body().is_end_stream() || response.headers().contains_key(&DETAILS_HEADER) {
        return response;
    }
    let is_compressed = response.headers().contains_key(&ENCODINGS_HEADER);
    let bare = Status::from_header_map(response.headers());
    match bare.as_ref().and_then(|bare| meaning(bare, is_compressed)) {
        Some(status) => {
            let mut precise = status.into_http();
            if is_compressed {
                precise.headers_mut().insert(&ENCODINGS_HEADER, IDENTITY);
            }
            precise
        }
        None => response,
    }
}

fn meaning(bare: &Status, is_compressed: bool) -> Option<Status> {
    let text = status::shortened(bare.message().to_owned(), MAX_CHARACTERS);
    let (code, reason, message) = match bare.code() {
        Code::OutOfRange => (
            Code::ResourceExhausted,
            Reason::MessageTooLarge,
            format!("the request is too large: {text}"),
        ),
        Code::Internal => (
            Code::InvalidArgument,
            Reason::MalformedMessage,
            format!("the request is malformed: {text}"),
        ),
        Code::Unimplemented if is_compressed => (
            Code::Unimplemented,
            Reason::UnsupportedCompression,
            "the request is compressed; only uncompressed requests are accepted".to_owned(),
        ),
        Code::Unimplemented => (
            Code::Unimplemented,
            Reason::UnknownMethod,
            "this server has no such method".to_owned(),
        ),
        _ => return None,
    };
    Some(status::plain(code, reason, &message))
}
