//! Takes the account service's calls straight to it. The router behind would look at
//! each call's path and copy and wrap it; it has those of all other services.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures_util::future::{BoxFuture, Either};
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{AccountService, methods};
use crate::proto::account_v1::account_service_server::AccountServiceServer;

/// Puts the account service before a router.
#[derive(Clone)]
pub struct DirectLayer(pub AccountServiceServer<AccountService>);

impl<S> Layer<S> for DirectLayer {
    type Service = Direct<S>;

    fn layer(&self, router: S) -> Direct<S> {
        Direct {
            service: self.0.clone(),
            router,
        }
    }
}

/// The account service, and a router for all other calls.
#[derive(Clone)]
pub struct Direct<S> {
    service: AccountServiceServer<AccountService>,
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
            Some(_) => Either::Left(self.service.call(request)),
            None => Either::Right(self.router.call(request)),
        }
    }
}
