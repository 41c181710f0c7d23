//! Envoy's external authorization API: decides whether Envoy forwards an HTTP request.

use std::sync::Arc;

use parking_lot::RwLock;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost_types::{Struct, value::Kind};
use serde_json::json;
use tonic::{Code, Request, Response, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{DOMAIN, convert, deadline, deadline::Deadline, handlers::scope_of, status};
use crate::{
    auth::{Authorizer, Name, Refused},
    domain::{OrganizationName, OrganizationScope},
    ext_authz::{Allowed, Denial, FORBIDDEN, RequestAttributes, Route, Routes, Subject, user},
    proto::envoy_auth_v3::{
        self as pb, authorization_server::Authorization, check_response::HttpResponse,
        header_value_option::HeaderAppendAction,
    },
    service::{Accounts, Check, Error, Refusal},
    telemetry::{EXT_AUTHZ_DECISIONS, Throttle},
};

/// Largest request, in bytes. It has room for the most headers that Envoy accepts by default,
/// 60 KiB, and for their copy in the metadata of filters.
pub(super) const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// The context extension of Envoy's route that names a route of the file.
const ROUTE: &str = "route";
/// Namespace of the metadata of Envoy's JWT filter.
const JWT_AUTHN: &str = "envoy.filters.http.jwt_authn";
/// Characters of names that no header may have, and the one that begins their encoding.
const NOT_IN_HEADERS: &AsciiSet = &CONTROLS.add(b'%').add(b' ');
/// Log lines about requests that a dry run allowed.
static DRY_RUNS: Throttle = Throttle::new(10);
/// Log lines about requests of routes that the file does not have.
static UNKNOWN_ROUTES: Throttle = Throttle::new(10);
/// Longest part of a route's name in the log, in characters.
const MAX_ROUTE_CHARACTERS: usize = 128;

/// The routes in use, replaced when their file changes.
pub type SharedRoutes = Arc<RwLock<Arc<Routes>>>;

/// Decides about requests that Envoy submits.
#[derive(Clone)]
pub struct ExtAuthz {
    accounts: Accounts,
    authorizer: Authorizer,
    routes: SharedRoutes,
}

impl ExtAuthz {
    /// Decides by these routes. `authorizer` verifies tokens of the requests.
    #[must_use]
    pub fn new(accounts: Accounts, authorizer: Authorizer, routes: SharedRoutes) -> Self {
        Self {
            accounts,
            authorizer,
            routes,
        }
    }

    /// Decides about a request of a route.
    ///
    /// # Errors
    /// The request cannot be decided now.
    async fn decide(
        &self,
        route: &Route,
        request: &EnvoyRequest,
        scope: &OrganizationScope,
        deadline: Deadline,
    ) -> Result<Result<Allowed, Denial>, Status> {
        let username = match route.subject(request) {
            Ok(Subject::User(username)) => Ok(username),
            Ok(Subject::Token(token)) => match self.authorizer.user_of(&token) {
                Ok(subject) => user(&subject),
                Err(refused @ Refused::NoKeysYet) => {
                    return Err(status::not_admitted(&refused, &route.name));
                }
                Err(_) => Err(Denial::InvalidSubject),
            },
            Err(denial) => Err(denial),
        };
        let named = username.and_then(|username| Ok((username, route.organization(request)?)));
        let (username, organization_name) = match named {
            Ok(named) => named,
            Err(denial) => return Ok(Err(denial)),
        };
        let check = Check {
            organization_name: organization_name.clone(),
            username: username.clone(),
            // The route judges the role.
            minimum_role: None,
            with_labels: false,
        };
        let check = self.accounts.check(scope, check, route.freshness);
        let check = async {
            match check.await {
                Err(Error::Refused(Refusal::OrganizationNotGranted(_))) => {
                    Ok(Err(Denial::NotGranted))
                }
                Err(error) => Err(error),
                Ok((result, _)) => Ok(route.judge(&result)),
            }
        };
        let role = deadline.bound(check).await?;
        Ok(role.map(|role| Allowed {
            username,
            organization_name,
            role,
        }))
    }
}

#[tonic::async_trait]
impl Authorization for ExtAuthz {
    async fn check(
        &self,
        request: Request<pb::CheckRequest>,
    ) -> Result<Response<pb::CheckResponse>, Status> {
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let request = EnvoyRequest(request.into_inner().attributes.unwrap_or_default());
        let routes = self.routes.read().clone();
        let Some(route) = request.route().and_then(|name| routes.route(name)) else {
            count("", "enforced", Denial::UnknownRoute.reason());
            if let Some(suppressed) = UNKNOWN_ROUTES.pass() {
                let route = request.route().unwrap_or_default().to_owned();
                let route = status::shortened(route, MAX_ROUTE_CHARACTERS);
                tracing::warn!(
                    target: "ext_authz",
                    route,
                    suppressed,
                    "a request was denied: the file has no such route"
                );
            }
            let denied = denied(Denial::UnknownRoute, FORBIDDEN, false, request.is_grpc());
            return Ok(Response::new(denied));
        };
        let decision = self.decide(route, &request, &scope, deadline).await;
        let mode = if route.is_dry_run {
            "dry_run"
        } else {
            "enforced"
        };
        let outcome = match &decision {
            Ok(Ok(_)) => "ALLOWED",
            Ok(Err(denial)) => denial.reason(),
            Err(_) => "FAILED",
        };
        count(&route.name, mode, outcome);
        let response = match decision {
            Ok(Ok(allowed)) => allow(&routes, &allowed),
            Ok(Err(_)) | Err(_) if route.is_dry_run => {
                log_dry_run(route, &request, outcome);
                allow_without_identity(&routes)
            }
            Ok(Err(denial)) => {
                let is_bearer = route.takes_bearer_tokens();
                let denial = denial.disclosed();
                denied(denial, route.status(denial), is_bearer, request.is_grpc())
            }
            Err(status) => return Err(status),
        };
        Ok(Response::new(response))
    }
}

fn count(route: &str, mode: &'static str, outcome: &'static str) {
    let route = route.to_owned();
    metrics::counter!(EXT_AUTHZ_DECISIONS, "route" => route, "mode" => mode, "outcome" => outcome)
        .increment(1);
}

fn log_dry_run(route: &Route, request: &EnvoyRequest, outcome: &str) {
    let Some(suppressed) = DRY_RUNS.pass() else {
        return;
    };
    let user = match route.subject(request) {
        Ok(Subject::User(name)) => Some(Name::Subject(name.as_str().into())),
        Ok(Subject::Token(_)) | Err(_) => None,
    };
    let user = user.as_ref().map(tracing::field::display);
    let organization = route.organization(request).ok();
    let organization = organization.as_ref().map(OrganizationName::as_str);
    tracing::info!(
        target: "ext_authz",
        route = route.name,
        outcome,
        organization,
        user,
        suppressed,
        "a dry run allowed a request that would be denied"
    );
}

/// The attributes of a request, as Envoy sends them.
struct EnvoyRequest(pb::AttributeContext);

impl EnvoyRequest {
    /// The name of the route in the file.
    fn route(&self) -> Option<&str> {
        self.0.context_extensions.get(ROUTE).map(String::as_str)
    }

    fn http(&self) -> Option<&pb::attribute_context::HttpRequest> {
        self.0.request.as_ref()?.http.as_ref()
    }

    fn is_grpc(&self) -> bool {
        let kind = self.header("content-type");
        kind.is_some_and(|kind| kind.starts_with("application/grpc"))
    }
}

impl RequestAttributes for EnvoyRequest {
    fn path(&self) -> &str {
        self.http().map_or("", |http| &http.path)
    }

    fn host(&self) -> &str {
        self.http().map_or("", |http| &http.host)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let http = self.http()?;
        if let Some(value) = http.headers.get(name) {
            return Some(value);
        }
        let raw = http.header_map.iter().flat_map(|map| &map.headers);
        let mut raw = raw.filter(|header| header.key == name);
        // Of several values, none is certain.
        match (raw.next(), raw.next()) {
            (Some(header), None) => str::from_utf8(&header.raw_value).ok(),
            _ => None,
        }
    }

    fn principal(&self) -> &str {
        let source = self.0.source.as_ref();
        source.map_or("", |source| &source.principal)
    }

    fn claim(&self, payload: &str, claim: &str) -> Option<&str> {
        let metadata = self.0.metadata_context.as_ref()?;
        let of_filter = metadata.filter_metadata.get(JWT_AUTHN)?;
        let Kind::StructValue(payload) = member(of_filter, payload)? else {
            return None;
        };
        match member(payload, claim)? {
            Kind::StringValue(value) => Some(value),
            _ => None,
        }
    }
}

fn member<'a>(of: &'a Struct, name: &str) -> Option<&'a Kind> {
    of.fields.get(name)?.kind.as_ref()
}

/// Forwards a request with the identity of its user.
fn allow(routes: &Routes, allowed: &Allowed) -> pb::CheckResponse {
    let names = routes.headers();
    let role = convert::wire_role(Some(allowed.role)).as_str_name();
    let encode = |name: &str| utf8_percent_encode(name, NOT_IN_HEADERS).to_string();
    ok(pb::OkHttpResponse {
        headers: vec![
            header(&names.user, encode(allowed.username.as_str())),
            header(
                &names.organization,
                encode(allowed.organization_name.as_str()),
            ),
            header(&names.role, role.to_owned()),
        ],
        headers_to_remove: Vec::new(),
    })
}

/// Forwards a request without an identity, also without one that the client has claimed.
fn allow_without_identity(routes: &Routes) -> pb::CheckResponse {
    let names = routes.headers();
    ok(pb::OkHttpResponse {
        headers: Vec::new(),
        headers_to_remove: vec![
            names.user.clone(),
            names.organization.clone(),
            names.role.clone(),
        ],
    })
}

fn ok(response: pb::OkHttpResponse) -> pb::CheckResponse {
    pb::CheckResponse {
        status: Some(pb::check_response::Status::default()),
        http_response: Some(HttpResponse::OkResponse(response)),
    }
}

/// Answers a request in Envoy's place, as JSON or, for a gRPC call, as a gRPC status.
fn denied(denial: Denial, http_status: u16, is_bearer: bool, is_grpc: bool) -> pb::CheckResponse {
    let code = match http_status {
        401 => Code::Unauthenticated,
        404 => Code::NotFound,
        _ => Code::PermissionDenied,
    };
    let (reason, message) = (denial.reason(), denial.message());
    let mut headers = Vec::new();
    let body = if is_grpc {
        let details = ErrorDetails::with_error_info(reason, DOMAIN, []);
        let status = Status::with_error_details(code, message, details);
        let response = status.into_http::<Body>();
        for (name, value) in response.headers() {
            if let ("grpc-status" | "grpc-status-details-bin", Ok(value)) =
                (name.as_str(), value.to_str())
            {
                headers.push(header(name.as_str(), value.to_owned()));
            }
        }
        message.to_owned()
    } else {
        headers.push(header("content-type", "application/json".to_owned()));
        let info = json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": DOMAIN,
        });
        json!({"code": code as i32, "message": message, "details": [info]}).to_string()
    };
    if http_status == 401 && is_bearer {
        headers.push(header("www-authenticate", "Bearer".to_owned()));
    }
    pb::CheckResponse {
        status: Some(pb::check_response::Status {
            code: code as i32,
            message: message.to_owned(),
        }),
        http_response: Some(HttpResponse::DeniedResponse(pb::DeniedHttpResponse {
            status: Some(pb::HttpStatus {
                code: http_status.into(),
            }),
            headers,
            body,
        })),
    }
}

/// A header that replaces every other of its name.
fn header(name: &str, value: String) -> pb::HeaderValueOption {
    pb::HeaderValueOption {
        header: Some(pb::HeaderValue {
            key: name.to_owned(),
            value,
            raw_value: Vec::new(),
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
    }
}
