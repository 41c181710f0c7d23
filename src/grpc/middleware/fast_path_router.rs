//! The fast path router: passes calls of the account service straight to it. All other calls
//! go through tonic's router, which copies and wraps each call.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{self, Context, Poll},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, ready};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Frame;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::grpc::{AccountService, ExtAuthz, MAX_REQUEST_BYTES, ext_authz, methods};
use crate::{
    proto::{
        account_v1::account_service_server::AccountServiceServer,
        envoy_auth_v3::authorization_server::AuthorizationServer,
    },
    transport::listener::{MemoryCharge, Peer},
};

/// Content type of gRPC, without the encoding of its messages.
const GRPC: &[u8] = b"application/grpc";
/// Prefix of the methods with large requests.
const BATCH: &str = "Batch";

/// Puts the account service in front of a router.
#[derive(Clone)]
pub struct FastPathLayer {
    /// The account service.
    pub service: AccountServiceServer<AccountService>,
    /// External authorization, if it is configured.
    pub ext_authz: Option<ExtAuthz>,
}

impl<S> Layer<S> for FastPathLayer {
    type Service = FastPath<S>;

    fn layer(&self, router: S) -> FastPath<S> {
        let batches = self.service.clone();
        let single = batches.clone().max_decoding_message_size(MAX_REQUEST_BYTES);
        let ext_authz = self.ext_authz.clone().map(|ext_authz| {
            AuthorizationServer::new(ext_authz)
                .max_decoding_message_size(ext_authz::MAX_REQUEST_BYTES)
        });
        FastPath {
            single,
            batches,
            ext_authz,
            router,
        }
    }
}

/// The account service, and a router for all other calls.
#[derive(Clone)]
pub struct FastPath<S> {
    single: AccountServiceServer<AccountService>,
    /// Accepts larger requests.
    batches: AccountServiceServer<AccountService>,
    ext_authz: Option<AuthorizationServer<ExtAuthz>>,
    router: S,
}

impl<S> Service<Request<Body>> for FastPath<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<BoxFuture<'static, Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The account service is always ready.
        self.router.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            return Either::Left(Box::pin(ready(Ok(not_grpc()))));
        }
        match methods::name_of(request.uri().path()) {
            Some(name) if name.starts_with(BATCH) => {
                Either::Left(self.batches.call(charge_body(request)))
            }
            Some(methods::EXT_AUTHZ) => match &mut self.ext_authz {
                Some(ext_authz) => Either::Left(ext_authz.call(charge_body(request))),
                None => Either::Right(self.router.call(request)),
            },
            Some(_) => Either::Left(self.single.call(request)),
            None => Either::Right(self.router.call(request)),
        }
    }
}

/// Whether a request has the content type of gRPC.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(GRPC));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The response to other content types, by the gRPC specification.
fn not_grpc() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// The request, with its bytes charged to the connection until they are decoded.
fn charge_body(request: Request<Body>) -> Request<Body> {
    let Some(peer) = request.extensions().get::<Peer>() else {
        return request;
    };
    let charge = peer.charge_memory();
    request.map(|body| Body::new(ChargedBody { body, charge }))
}

/// The body of a request.
struct ChargedBody {
    body: Body,
    charge: MemoryCharge,
}

impl http_body::Body for ChargedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, charge } = &mut *self;
        let frame = task::ready!(Pin::new(body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            charge.add(data.len());
        }
        Poll::Ready(frame)
    }
}
