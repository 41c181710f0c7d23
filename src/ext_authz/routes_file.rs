//! The file with the routes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::HeaderName;
use serde::Deserialize;

use super::{
    DenialStatuses, FORBIDDEN, IdentityHeaders, OrganizationSource, Route, Routes, SubjectSource,
    template::{PathTemplate, TextTemplate},
};
use crate::{
    coherence::MAX_STALENESS,
    domain::{OrganizationName, Role},
    json_object::{self, Entries},
    service::Freshness,
};

/// The place of the organization in a template.
const ORGANIZATION: &str = "organization";
/// The place of the user in a template.
const USER: &str = "user";
/// Separators of the labels of a host.
const HOST_SEPARATORS: &[char] = &['.'];
/// Separators of the parts of a name in a certificate: a URI or a subject.
const NAME_SEPARATORS: &[char] = &['/', ',', '='];
/// Status codes of denials.
const STATUSES: [u16; 3] = [401, FORBIDDEN, 404];

/// Reason why the file is rejected.
#[derive(Debug, thiserror::Error)]
pub enum RoutesError {
    /// The file is not JSON of this form.
    #[error("it does not describe routes: {0}")]
    Form(#[from] serde_json::Error),
    /// The file has no routes.
    #[error("it has no routes")]
    NoRoutes,
    /// A field of a route is not valid.
    #[error("{field} of route {route:?} {why}")]
    Route {
        /// The route.
        route: String,
        /// The path of the field.
        field: &'static str,
        /// The reason.
        why: String,
    },
    /// A name of an identity header is not valid.
    #[error("identity_headers.{field} {why}")]
    IdentityHeader {
        /// The field.
        field: &'static str,
        /// The reason.
        why: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoutesForm {
    #[serde(default)]
    identity_headers: IdentityHeadersForm,
    routes: Entries<RouteForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IdentityHeadersForm {
    user: String,
    organization: String,
    role: String,
}

impl Default for IdentityHeadersForm {
    fn default() -> Self {
        Self {
            user: "x-account-user".to_owned(),
            organization: "x-account-organization".to_owned(),
            role: "x-account-role".to_owned(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteForm {
    subject: SubjectSourceForm,
    organization: OrganizationSourceForm,
    minimum_role: RoleForm,
    #[serde(default)]
    statuses: StatusesForm,
    #[serde(default)]
    max_staleness_ms: u64,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum SubjectSourceForm {
    JwtAuthn {
        payload: String,
        claim: String,
        #[serde(default)]
        required: Entries<String>,
    },
    Token {},
    Certificate(String),
    Header(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum OrganizationSourceForm {
    Path(String),
    Host(String),
    Header(String),
    Name(String),
}

#[derive(Deserialize)]
enum RoleForm {
    #[serde(rename = "ROLE_MEMBER")]
    Member,
    #[serde(rename = "ROLE_ADMIN")]
    Admin,
    #[serde(rename = "ROLE_OWNER")]
    Owner,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StatusesForm {
    no_subject: u16,
    not_a_member: u16,
    role_too_low: u16,
}

impl Default for StatusesForm {
    fn default() -> Self {
        Self {
            no_subject: 401,
            not_a_member: FORBIDDEN,
            role_too_low: FORBIDDEN,
        }
    }
}

impl Routes {
    /// Parses the file. `verifies_tokens`: whether the service verifies tokens.
    ///
    /// # Errors
    /// See [`RoutesError`].
    pub fn parse(json: &str, verifies_tokens: bool) -> Result<Self, RoutesError> {
        let RoutesForm {
            identity_headers,
            routes,
        } = json_object::parse(json)?;
        if routes.0.is_empty() {
            return Err(RoutesError::NoRoutes);
        }
        let mut by_name = HashMap::new();
        for (name, form) in routes.0 {
            let route = form.parse(&name, verifies_tokens);
            let route = route.map_err(|(field, why)| RoutesError::Route {
                route: name.clone(),
                field,
                why,
            })?;
            by_name.insert(name, Arc::new(route));
        }
        Ok(Self {
            by_name,
            headers: Arc::new(identity_headers.parse()?),
        })
    }
}

impl IdentityHeadersForm {
    fn parse(self) -> Result<IdentityHeaders, RoutesError> {
        let name = |field, name: &str| {
            let name = header_name(name);
            name.map_err(|why| RoutesError::IdentityHeader { field, why })
        };
        let headers = IdentityHeaders {
            user: name(USER, &self.user)?,
            organization: name(ORGANIZATION, &self.organization)?,
            role: name("role", &self.role)?,
        };
        let is_same = headers.user == headers.organization
            || headers.user == headers.role
            || headers.organization == headers.role;
        if is_same {
            return Err(RoutesError::IdentityHeader {
                field: "role",
                why: "and the others must be different headers",
            });
        }
        Ok(headers)
    }
}

/// The path of a field, and the reason why it is not valid.
type FieldError = (&'static str, String);

impl RouteForm {
    fn parse(self, name: &str, verifies_tokens: bool) -> Result<Route, FieldError> {
        let subject = self.subject.parse(verifies_tokens)?;
        let organization = self.organization.parse()?;
        let statuses = self.statuses.parse()?;
        let staleness = Duration::from_millis(self.max_staleness_ms);
        if staleness > MAX_STALENESS {
            let why = format!("must be at most {}", MAX_STALENESS.as_millis());
            return Err(("max_staleness_ms", why));
        }
        let freshness = match self.max_staleness_ms {
            0 => Freshness::Coherent,
            _ => Freshness::Within(staleness),
        };
        Ok(Route {
            name: name.to_owned(),
            subject,
            organization,
            minimum_role: match self.minimum_role {
                RoleForm::Member => Role::Member,
                RoleForm::Admin => Role::Admin,
                RoleForm::Owner => Role::Owner,
            },
            freshness,
            is_dry_run: self.dry_run,
            statuses,
        })
    }
}

impl SubjectSourceForm {
    fn parse(self, verifies_tokens: bool) -> Result<SubjectSource, FieldError> {
        match self {
            Self::JwtAuthn {
                payload,
                claim,
                required: Entries(required),
            } => {
                let empty = |field| (field, "must not be empty".to_owned());
                if payload.is_empty() {
                    return Err(empty("subject.jwt_authn.payload"));
                }
                if claim.is_empty() {
                    return Err(empty("subject.jwt_authn.claim"));
                }
                Ok(SubjectSource::JwtAuthn {
                    payload,
                    claim,
                    required,
                })
            }
            Self::Token {} if verifies_tokens => Ok(SubjectSource::Token),
            Self::Token {} => Err((
                "subject.token",
                "needs --jwks, with which the service verifies tokens".to_owned(),
            )),
            Self::Certificate(template) => TextTemplate::parse(&template, USER, NAME_SEPARATORS)
                .map(SubjectSource::Certificate)
                .map_err(|error| ("subject.certificate", error.to_string())),
            Self::Header(name) => header_name(&name)
                .map(SubjectSource::Header)
                .map_err(|why| ("subject.header", why.to_owned())),
        }
    }
}

impl OrganizationSourceForm {
    fn parse(self) -> Result<OrganizationSource, FieldError> {
        match self {
            Self::Path(template) => PathTemplate::parse(&template, ORGANIZATION)
                .map(OrganizationSource::Path)
                .map_err(|error| ("organization.path", error.to_string())),
            Self::Host(template) => {
                let template = template.to_ascii_lowercase();
                TextTemplate::parse(&template, ORGANIZATION, HOST_SEPARATORS)
                    .map(OrganizationSource::Host)
                    .map_err(|error| ("organization.host", error.to_string()))
            }
            Self::Header(name) => header_name(&name)
                .map(OrganizationSource::Header)
                .map_err(|why| ("organization.header", why.to_owned())),
            Self::Name(name) => OrganizationName::parse_existing(&name)
                .map(OrganizationSource::Named)
                .map_err(|error| ("organization.name", error.to_string())),
        }
    }
}

impl StatusesForm {
    fn parse(self) -> Result<DenialStatuses, FieldError> {
        let Self {
            no_subject,
            not_a_member,
            role_too_low,
        } = self;
        for (field, status) in [
            ("statuses.no_subject", no_subject),
            ("statuses.not_a_member", not_a_member),
            ("statuses.role_too_low", role_too_low),
        ] {
            if !STATUSES.contains(&status) {
                return Err((field, "must be 401, 403 or 404".to_owned()));
            }
        }
        Ok(DenialStatuses {
            no_subject,
            not_a_member,
            role_too_low,
        })
    }
}

/// The name of a header in lower case.
fn header_name(name: &str) -> Result<String, &'static str> {
    match HeaderName::try_from(name) {
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(_) => Err("must be the name of a header"),
    }
}

#[cfg(test)]
mod tests;
