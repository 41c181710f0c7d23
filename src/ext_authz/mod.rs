//! External authorization: the routes whose requests Envoy submits, and the decision about a
//! request: which user needs which role in which organization. Independent of gRPC.

mod routes_file;
mod template;

use std::{collections::HashMap, sync::Arc};

use crate::{
    domain::{OrganizationName, Role, Username},
    service::{CheckResult, Freshness},
};

use self::template::TextTemplate;
pub use self::{
    routes_file::RoutesError,
    template::{PathTemplate, TemplateError},
};

/// The routes of the file, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    by_name: HashMap<String, Arc<Route>>,
    headers: Arc<IdentityHeaders>,
}

/// A route: its requests need a role in an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its name in the file.
    pub name: String,
    subject: SubjectSource,
    organization: OrganizationSource,
    /// The least role that allows a request.
    pub minimum_role: Role,
    /// The freshness of the check.
    pub freshness: Freshness,
    /// Allow what would be denied, and count it.
    pub is_dry_run: bool,
    statuses: DenialStatuses,
}

/// Names of the headers with the identity of an allowed request, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityHeaders {
    /// The user.
    pub user: String,
    /// The organization.
    pub organization: String,
    /// The user's role.
    pub role: String,
}

/// The place of the user's name in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SubjectSource {
    /// A claim of a token that Envoy's JWT filter has verified.
    JwtAuthn {
        payload: String,
        claim: String,
        /// Claims that the token must have, with their values.
        required: Vec<(String, String)>,
    },
    /// The subject of the bearer token, which this service verifies.
    Token,
    /// A part of the name in the client's certificate, which Envoy has verified.
    Certificate(TextTemplate),
    /// A header. Its name is in lower case.
    Header(String),
}

/// The place of the organization's name in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum OrganizationSource {
    Path(PathTemplate),
    Host(TextTemplate),
    /// A header. Its name is in lower case.
    Header(String),
    /// The same organization for all requests.
    Named(OrganizationName),
}

/// HTTP status codes of denials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DenialStatuses {
    no_subject: u16,
    not_a_member: u16,
    role_too_low: u16,
}

/// The attributes of an HTTP request.
pub trait RequestAttributes {
    /// The path and the query, not decoded.
    fn path(&self) -> &str;
    /// The host, possibly with a port.
    fn host(&self) -> &str;
    /// The value of a header, by its name in lower case.
    fn header(&self, name: &str) -> Option<&str>;
    /// The name in the client's certificate.
    fn principal(&self) -> &str;
    /// A claim of a token that Envoy's JWT filter has verified and stored as `payload`.
    fn claim(&self, payload: &str, claim: &str) -> Option<&str>;
}

/// The subject of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A user's name, from a source that is trusted.
    User(Username),
    /// A token, which names the user once it is verified.
    Token(String),
}

/// An allowed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The user.
    pub username: Username,
    /// The organization.
    pub organization_name: OrganizationName,
    /// The user's role.
    pub role: Role,
}

impl Denial {
    /// The denial as the client sees it: no client learns which organizations exist.
    #[must_use]
    pub fn disclosed(self) -> Self {
        match self {
            Self::NotGranted => Self::NotMember,
            other => other,
        }
    }
}

macro_rules! denials {
    ($($(#[$doc:meta])+ $name:ident = ($reason:literal, $message:literal),)+) => {
        /// The reason why a request is denied.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Denial {
            $($(#[$doc])+ $name,)+
        }

        impl Denial {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The stable name of the reason.
            #[must_use]
            pub fn reason(self) -> &'static str {
                match self {
                    $(Self::$name => $reason,)+
                }
            }

            /// The reason in words, for the client.
            #[must_use]
            pub fn message(self) -> &'static str {
                match self {
                    $(Self::$name => $message,)+
                }
            }
        }
    };
}

denials! {
    /// The request is of a route that the file does not have.
    UnknownRoute = ("ROUTE_NOT_CONFIGURED", "this route has no rule"),
    /// The request names no user.
    NoSubject = ("SUBJECT_MISSING", "the request names no user"),
    /// The user's name or token is not valid.
    InvalidSubject = ("SUBJECT_NOT_VALID", "the credentials of the request are not valid"),
    /// The request names no organization.
    NoOrganization = ("ORGANIZATION_MISSING", "the request names no organization"),
    /// The policy does not grant the organization to the proxy.
    NotGranted = ("ORGANIZATION_NOT_GRANTED", "requests about this organization are not allowed"),
    /// The user is not a member of the organization.
    NotMember = ("NOT_A_MEMBER", "the user is not a member of the organization"),
    /// The user's role does not suffice.
    RoleTooLow = ("ROLE_TOO_LOW", "the user's role in the organization does not suffice"),
}

impl Routes {
    /// The route with this name.
    #[must_use]
    pub fn route(&self, name: &str) -> Option<&Arc<Route>> {
        self.by_name.get(name)
    }

    /// The headers with the identity of an allowed request.
    #[must_use]
    pub fn headers(&self) -> &IdentityHeaders {
        &self.headers
    }
}

impl Route {
    /// The user of a request.
    ///
    /// # Errors
    /// [`Denial::NoSubject`], [`Denial::InvalidSubject`].
    pub fn subject(&self, request: &impl RequestAttributes) -> Result<Subject, Denial> {
        let found = match &self.subject {
            SubjectSource::JwtAuthn {
                payload,
                claim,
                required,
            } => {
                let found = request.claim(payload, claim);
                let has = |(name, value): &(String, String)| {
                    request.claim(payload, name) == Some(value.as_str())
                };
                if found.is_some() && !required.iter().all(has) {
                    return Err(Denial::InvalidSubject);
                }
                found
            }
            SubjectSource::Token => {
                let token = request.header("authorization").and_then(bearer);
                return token
                    .map(|token| Subject::Token(token.to_owned()))
                    .ok_or(Denial::NoSubject);
            }
            SubjectSource::Certificate(template) => match request.principal() {
                "" => None,
                name => Some(template.capture(name).ok_or(Denial::InvalidSubject)?),
            },
            SubjectSource::Header(name) => match request.header(name) {
                Some(joined) if joined.contains(HEADER_SEPARATOR) => {
                    return Err(Denial::InvalidSubject);
                }
                found => found,
            },
        };
        let name = found.filter(|name| !name.is_empty());
        user(name.ok_or(Denial::NoSubject)?).map(Subject::User)
    }

    /// The organization of a request.
    ///
    /// # Errors
    /// [`Denial::NoOrganization`].
    pub fn organization(
        &self,
        request: &impl RequestAttributes,
    ) -> Result<OrganizationName, Denial> {
        let captured;
        let name = match &self.organization {
            OrganizationSource::Path(template) => {
                captured = template.capture(request.path());
                captured.as_deref()
            }
            OrganizationSource::Host(template) => {
                captured = Some(without_port(request.host()).to_ascii_lowercase());
                captured.as_deref().and_then(|host| template.capture(host))
            }
            OrganizationSource::Header(name) => {
                let found = request.header(name);
                found.filter(|name| !name.contains(HEADER_SEPARATOR))
            }
            OrganizationSource::Named(name) => return Ok(name.clone()),
        };
        let name = name.and_then(|name| OrganizationName::parse_existing(name).ok());
        name.ok_or(Denial::NoOrganization)
    }

    /// Judges the result of a check with the route's least role.
    ///
    /// # Errors
    /// [`Denial::NotMember`], [`Denial::RoleTooLow`].
    pub fn judge(&self, result: &CheckResult) -> Result<Role, Denial> {
        match result.role {
            Some(role) if role >= self.minimum_role => Ok(role),
            Some(_) => Err(Denial::RoleTooLow),
            None => Err(Denial::NotMember),
        }
    }

    /// Whether the subject comes from a bearer token.
    #[must_use]
    pub fn takes_bearer_tokens(&self) -> bool {
        matches!(
            self.subject,
            SubjectSource::JwtAuthn { .. } | SubjectSource::Token
        )
    }

    /// The HTTP status code of a denial.
    #[must_use]
    pub fn status(&self, denial: Denial) -> u16 {
        match denial {
            Denial::NoSubject | Denial::InvalidSubject => self.statuses.no_subject,
            Denial::NotMember | Denial::NoOrganization | Denial::NotGranted => {
                self.statuses.not_a_member
            }
            Denial::RoleTooLow => self.statuses.role_too_low,
            Denial::UnknownRoute => FORBIDDEN,
        }
    }
}

/// Separator of the values of headers with the same name. Of several values, none is certain.
const HEADER_SEPARATOR: char = ',';

/// The HTTP status code of a request that is not allowed.
pub const FORBIDDEN: u16 = 403;

/// The user with the name in a request.
///
/// # Errors
/// [`Denial::InvalidSubject`].
pub fn user(name: &str) -> Result<Username, Denial> {
    Username::parse_existing(name).map_err(|_| Denial::InvalidSubject)
}

/// The token of a header `authorization`.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    }
}
