//! Takes the account service's calls straight to it. The router behind would look at
//! each call's path and copy and wrap it; it has those of all other services.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either};
use http::{Request, Response};
use http_body::Frame;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{AccountService, MAX_REQUEST_BYTES, methods};
use crate::{
    connections::{Held, Peer},
    proto::account_v1::account_service_server::AccountServiceServer,
};

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
        match methods::name_of(request.uri().path()) {
            Some(name) if name.starts_with(BATCH) => {
                Either::Left(self.batches.call(weighed(request)))
            }
            Some(_) => Either::Left(self.single.call(request)),
            None => Either::Right(self.router.call(request)),
        }
    }
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
        let frame = ready!(Pin::new(body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            held.add(data.len());
        }
        Poll::Ready(frame)
    }
}
