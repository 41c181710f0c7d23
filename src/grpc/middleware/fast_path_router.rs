//! Takes the account service's calls straight to it. The router behind would look at
//! each call's path and copy and wrap it; it has those of all other services.

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

use crate::grpc::{AccountService, MAX_REQUEST_BYTES, methods};
use crate::{
    proto::account_v1::account_service_server::AccountServiceServer,
    transport::listener::{Held, Peer},
};

/// The type of what is gRPC, but for how its messages are encoded.
const GRPC: &[u8] = b"application/grpc";
/// Begins the names of methods whose requests may be large.
const BATCH: &str = "Batch";

/// Puts the account service before a router.
#[derive(Clone)]
pub struct DirectLayer(pub AccountServiceServer<AccountService>);

impl<S> Layer<S> for DirectLayer {
    type Service = Direct<S>;

    fn layer(&self, router: S) -> Direct<S> {
        let Self(batches) = self.clone();
        let single = batches.clone().max_decoding_message_size(MAX_REQUEST_BYTES);
        Direct {
            single,
            batches,
            router,
        }
    }
}

/// The account service, and a router for all other calls.
#[derive(Clone)]
pub struct Direct<S> {
    single: AccountServiceServer<AccountService>,
    /// Reads larger requests.
    batches: AccountServiceServer<AccountService>,
    router: S,
}

impl<S> Service<Request<Body>> for Direct<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<BoxFuture<'static, Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The account service always is.
        self.router.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            return Either::Left(Box::pin(ready(Ok(not_grpc()))));
        }
        match methods::name_of(request.uri().path()) {
            Some(name) if name.starts_with(BATCH) => {
                Either::Left(self.batches.call(weighed(request)))
            }
            Some(_) => Either::Left(self.single.call(request)),
            None => Either::Right(self.router.call(request)),
        }
    }
}

/// Whether a request says that it is gRPC.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(GRPC));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The answer to what is not gRPC, by its specification.
fn not_grpc() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// The request, with its bytes held for its connection until they are decoded.
fn weighed(request: Request<Body>) -> Request<Body> {
    let Some(peer) = request.extensions().get::<Peer>() else {
        return request;
    };
    let held = peer.holding();
    request.map(|body| Body::new(Weighed { body, held }))
}

/// The body of a request.
struct Weighed {
    body: Body,
    held: Held,
}

impl http_body::Body for Weighed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, held } = &mut *self;
        let frame = task::ready!(Pin::new(body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            held.add(data.len());
        }
        Poll::Ready(frame)
    }
}
