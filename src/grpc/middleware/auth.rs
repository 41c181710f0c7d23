//! Authenticates the caller of each call, and authorizes the method.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::grpc::{methods, status};
use crate::{
    auth::{Authorizer, Credentials, Refused},
    transport::listener::{Peer, TooMany},
};

/// Largest metadata of a call, in bytes.
const MAX_METADATA_BYTES: usize = 16 * 1024;
/// Prefix of the paths of health checks, which need no credentials.
const HEALTH: &str = "/grpc.health.v1.Health/";
/// The scheme of tokens in the header `authorization`, in any case.
const BEARER: &str = "bearer";

/// Puts the authorizer in front of a service.
#[derive(Debug, Clone)]
pub struct AuthLayer(pub Authorizer);

impl<S> Layer<S> for AuthLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission {
            authorizer: self.0.clone(),
            inner,
        }
    }
}

/// A service behind the authorizer.
#[derive(Debug, Clone)]
pub struct Admission<S> {
    authorizer: Authorizer,
    inner: S,
}

impl<S, B> Service<Request<B>> for Admission<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if metadata_bytes(request.headers()) > MAX_METADATA_BYTES {
            let status = status::metadata_too_large(MAX_METADATA_BYTES);
            return Either::Left(ready(Ok(status.into_http())));
        }
        let path = request.uri().path();
        if path.starts_with(HEALTH) {
            return Either::Right(self.inner.call(request));
        }
        let token = match bearer(request.headers()) {
            Ok(token) => token,
            Err(refused) => {
                let status = status::not_admitted(&refused, path);
                return Either::Left(ready(Ok(status.into_http())));
            }
        };
        let peer = request.extensions().get::<Peer>();
        let credentials = Credentials {
            certificate: peer.and_then(|peer| peer.certificate.as_ref()),
            token,
        };
        // Every authenticated caller may use reflection.
        let method = methods::name_of(path);
        let refused = match self.authorizer.admit(method, credentials) {
            Ok(caller) => {
                let name = caller.name.as_ref();
                match peer.map_or(Ok(()), |peer| peer.authenticate(name)) {
                    Ok(()) => {
                        request.extensions_mut().insert(caller);
                        return Either::Right(self.inner.call(request));
                    }
                    Err(TooMany) => status::too_many_connections(),
                }
            }
            Err(refused) => status::not_admitted(&refused, path),
        };
        Either::Left(ready(Ok(refused.into_http())))
    }
}

/// Bytes of all names and values.
fn metadata_bytes(headers: &HeaderMap) -> usize {
    let headers = headers.iter();
    headers
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

/// The bearer token of a call, if it has one.
///
/// # Errors
/// [`Refused::InvalidCredentials`]: the call has several headers, or one that is not text.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refused> {
    let invalid = |why: &str| Refused::InvalidCredentials {
        why: why.to_owned(),
    };
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(invalid("the call has several headers `authorization`"));
    }
    let value = value.to_str();
    let value = value.map_err(|_| invalid("the header `authorization` is not text"))?;
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    Ok(scheme
        .eq_ignore_ascii_case(BEARER)
        .then(|| token.trim_matches(' ')))
}
