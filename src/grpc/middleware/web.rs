//! gRPC-Web: translates calls of web pages to gRPC, for pages of the listed origins.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{Either, Ready, ready};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, ORIGIN},
};
use tonic::body::Body;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service};
use tower_http::cors::{Cors, CorsLayer};

use crate::{auth::WebOrigin, telemetry::Throttle};

/// Time for which a browser may remember that a page may call. Browsers have lower bounds.
const PREFLIGHT_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Headers of gRPC-Web, of tokens and of traces.
const REQUEST_HEADERS: [HeaderName; 7] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-user-agent"),
];
/// Headers of a response without messages: its status.
const RESPONSE_HEADERS: [HeaderName; 4] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
    HeaderName::from_static("grpc-retry-pushback-ms"),
];

/// Puts gRPC-Web in front of a service.
#[derive(Debug, Clone)]
pub struct WebLayer {
    origins: Arc<[HeaderValue]>,
    cors: CorsLayer,
}

impl WebLayer {
    /// gRPC-Web for pages of these origins. `None` without origins.
    #[must_use]
    pub fn new(origins: &[WebOrigin]) -> Option<Self> {
        if origins.is_empty() {
            return None;
        }
        let origins: Vec<_> = origins
            .iter()
            .map(|origin| origin.as_header().clone())
            .collect();
        let cors = CorsLayer::new()
            .allow_origin(origins.clone())
            .allow_methods([Method::POST])
            .allow_headers(REQUEST_HEADERS)
            .expose_headers(RESPONSE_HEADERS)
            .max_age(PREFLIGHT_AGE);
        Some(Self {
            origins: origins.into(),
            cors,
        })
    }
}

impl<S> Layer<S> for WebLayer {
    type Service = Web<S>;

    fn layer(&self, inner: S) -> Web<S> {
        Web {
            origins: self.origins.clone(),
            inner: self.cors.layer(GrpcWebLayer::new().layer(inner)),
        }
    }
}

/// A service behind gRPC-Web.
#[derive(Debug, Clone)]
pub struct Web<S> {
    origins: Arc<[HeaderValue]>,
    inner: Cors<GrpcWebService<S>>,
}

impl<S> Service<Request<Body>> for Web<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<
        Ready<Result<Response<Body>, S::Error>>,
        <Cors<GrpcWebService<S>> as Service<Request<Body>>>::Future,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Service::<Request<Body>>::poll_ready(&mut self.inner, context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_foreign(request.headers(), &self.origins) {
            return Either::Left(ready(Ok(foreign(request.headers()))));
        }
        Either::Right(self.inner.call(request))
    }
}

/// Whether a page of an origin that is not listed sends the request. Browsers themselves do
/// not prevent each such request: a page whose host name resolves to this service's address
/// sends it without a preflight.
fn is_foreign(headers: &HeaderMap, origins: &[HeaderValue]) -> bool {
    let mut sent = headers.get_all(ORIGIN).iter();
    !sent.all(|origin| origins.contains(origin))
}

fn foreign(headers: &HeaderMap) -> Response<Body> {
    /// Bytes of an origin in the log.
    const SHOWN: usize = 200;
    static LINES: Throttle = Throttle::new(1);
    if let Some(suppressed) = LINES.pass() {
        let origin = headers.get(ORIGIN).map(HeaderValue::as_bytes);
        let origin = origin.map(|origin| &origin[..origin.len().min(SHOWN)]);
        let origin = String::from_utf8_lossy(origin.unwrap_or_default());
        tracing::warn!(
            ?origin,
            suppressed,
            "a call of a page was refused: its origin is not listed"
        );
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}
