//! Authentication and authorization: the name of the caller with a certificate or a token, and
//! the methods that the policy grants it. Independent of gRPC.

mod certificate;
mod jwks;
mod jwt;
mod policy;
mod web_origin;

use std::{fmt, sync::Arc};

use jsonwebtoken::get_current_timestamp;
use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

pub use self::certificate::Certificate;
pub use self::jwks::{KeySource, KeySourceError, VerificationKeys};
pub use self::jwt::{Expected, Tokens};
pub use self::policy::{Grant, Method, Policy, PolicyError};
pub use self::web_origin::WebOrigin;

use self::{jwt::Identity, policy::Holder};
use crate::domain::OrganizationScope;

/// The name of a caller. Its displayed form is fit for logs: a service's name as it is, and
/// any other name, which may be a user's, as the beginning of its SHA-256.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// A caller of the policy, or the name in an unknown certificate.
    Service(Arc<str>),
    /// The subject of a token that does not belong to a service.
    Subject(Arc<str>),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Bytes that suffice to distinguish callers.
        const SHOWN: usize = 6;
        match self {
            Self::Service(name) => f.write_str(name),
            Self::Subject(subject) => {
                f.write_str("sha256:")?;
                let digest = Sha256::digest(subject.as_bytes());
                let mut shown = digest.iter().take(SHOWN);
                shown.try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The caller of a call, and its grants.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Cancelled when another policy replaces the one of the grants. `None` without a policy.
    pub policy_replaced: Option<CancellationToken>,
    /// Its name. `None` without a policy.
    pub name: Option<Name>,
    /// The user whose own token the call has.
    pub user: Option<Arc<str>>,
    /// Earlier expiry of the call's certificate and token, in seconds since 1970.
    pub expires: Option<u64>,
    grant: Arc<Grant>,
}

/// The credentials of a call.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// The client's certificate, verified.
    pub certificate: Option<&'a Result<Certificate, Refused>>,
    /// The bearer token.
    pub token: Option<&'a str>,
}

/// Reason why a call is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The call has no credentials.
    #[error("the call has no credentials")]
    NoCredentials,
    /// The credentials are not valid.
    #[error("the call's credentials are not valid")]
    InvalidCredentials {
        /// The reason, for the log only.
        why: String,
    },
    /// The keys that verify tokens are not available yet.
    #[error("tokens cannot be verified yet")]
    NoKeysYet,
    /// The policy does not grant this to the caller.
    #[error("the caller may not call this method")]
    NotGranted {
        /// The caller, for the log only.
        name: Name,
    },
}

/// Authenticates and authorizes calls. Clones share the policy.
#[derive(Debug, Clone)]
pub struct Authorizer(Rules);

#[derive(Debug, Clone)]
enum Rules {
    Open(Arc<Grant>),
    Closed(Arc<RwLock<Arc<Checks>>>),
}

#[derive(Debug)]
struct Checks {
    policy: Policy,
    tokens: Option<Tokens>,
    /// Cancelled when other checks replace these.
    replaced: CancellationToken,
}

impl Authorizer {
    /// Admits every call, on behalf of any user.
    #[must_use]
    pub fn open() -> Self {
        Self(Rules::Open(Arc::new(Grant::everything())))
    }

    /// Admits the calls that the policy grants.
    #[must_use]
    pub fn new(policy: Policy, tokens: Option<Tokens>) -> Self {
        let checks = Checks {
            policy,
            tokens,
            replaced: CancellationToken::new(),
        };
        Self(Rules::Closed(Arc::new(RwLock::new(Arc::new(checks)))))
    }

    /// Replaces the policy, for all later calls. Does nothing if there was none.
    pub fn replace_policy(&self, policy: Policy) {
        let Rules::Closed(checks) = &self.0 else {
            return;
        };
        let mut checks = checks.write();
        let new = Checks {
            policy,
            // Without the verified tokens: their owners have the grants of the former policy.
            tokens: checks.tokens.as_ref().map(Tokens::anew),
            replaced: CancellationToken::new(),
        };
        let former = std::mem::replace(&mut *checks, Arc::new(new));
        former.replaced.cancel();
    }

    /// Admits or rejects a call, and returns its caller. `method` is `None` for methods that
    /// every caller may call.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn admit(
        &self,
        method: Option<&str>,
        credentials: Credentials<'_>,
    ) -> Result<Caller, Refused> {
        let checks = match &self.0 {
            Rules::Closed(checks) => checks.read().clone(),
            Rules::Open(everything) => {
                return Ok(Caller {
                    policy_replaced: None,
                    name: None,
                    user: None,
                    expires: None,
                    grant: everything.clone(),
                });
            }
        };
        let caller = checks.caller(credentials)?;
        match (method, &caller.name) {
            (Some(method), Some(name)) if !caller.grant.has_method(method) => {
                Err(Refused::NotGranted { name: name.clone() })
            }
            _ => Ok(caller),
        }
    }

    /// The user whose own token this is.
    ///
    /// # Errors
    /// [`Refused::NoKeysYet`], [`Refused::InvalidCredentials`]: also for the token of a service,
    /// and if no tokens are verified.
    pub fn user_of(&self, token: &str) -> Result<Arc<str>, Refused> {
        let no_user = || Refused::InvalidCredentials {
            why: "the token is not a user's".to_owned(),
        };
        let Rules::Closed(checks) = &self.0 else {
            return Err(no_user());
        };
        let checks = checks.read().clone();
        let tokens = checks.tokens.as_ref().ok_or_else(no_user)?;
        let identity = tokens.verify(token, &checks.policy)?;
        match identity.holder {
            Holder::User(_) => Ok(identity.subject),
            Holder::Service(_) | Holder::Unknown => Err(no_user()),
        }
    }
}

impl Checks {
    fn caller(&self, credentials: Credentials<'_>) -> Result<Caller, Refused> {
        let Credentials { certificate, token } = credentials;
        let certificate = certificate.map(current).transpose()?;
        let identity = match (token, &self.tokens) {
            (Some(token), Some(tokens)) => {
                let identity = tokens.verify(token, &self.policy);
                Some(identity.map_err(|refused| brought_by(certificate, refused))?)
            }
            (Some(_), None) | (None, _) => None,
        };
        match (certificate, identity) {
            (Some(certificate), identity) => self.certified(certificate, identity),
            (None, Some(identity)) => self.identified(identity),
            (None, None) => Err(Refused::NoCredentials),
        }
    }

    /// A service with a certificate, and possibly with the token of a user.
    fn certified(
        &self,
        certificate: &Certificate,
        identity: Option<Identity>,
    ) -> Result<Caller, Refused> {
        let Some(service) = self.policy.of_certificate(&certificate.name) else {
            let name = Name::Service(certificate.name.clone());
            return Err(Refused::NotGranted { name });
        };
        let caller = Caller {
            policy_replaced: Some(self.replaced.clone()),
            name: Some(Name::Service(service.name.clone())),
            user: None,
            expires: Some(certificate.expires),
            grant: service.grant.clone(),
        };
        let Some(identity) = identity else {
            return Ok(caller);
        };
        let user = match identity.holder {
            Holder::User(_) => Some(identity.subject),
            Holder::Service(other) if other.name == service.name => None,
            Holder::Service(_) | Holder::Unknown => {
                let why = "the token is neither a user's nor the caller's own".to_owned();
                return Err(brought_by(
                    Some(certificate),
                    Refused::InvalidCredentials { why },
                ));
            }
        };
        Ok(Caller {
            user,
            expires: Some(certificate.expires.min(identity.expires)),
            ..caller
        })
    }

    /// A caller with a token and no certificate.
    fn identified(&self, identity: Identity) -> Result<Caller, Refused> {
        let Identity {
            holder,
            subject,
            expires,
        } = identity;
        let (name, user, grant) = match holder {
            Holder::Service(service) => (Name::Service(service.name), None, service.grant),
            Holder::User(grant) => (Name::Subject(subject.clone()), Some(subject), grant),
            Holder::Unknown => {
                let name = Name::Subject(subject);
                return Err(Refused::NotGranted { name });
            }
        };
        Ok(Caller {
            policy_replaced: Some(self.replaced.clone()),
            name: Some(name),
            user,
            expires: Some(expires),
            grant,
        })
    }
}

/// The certificate, if it has not expired. It may expire while the connection is open.
fn current(certificate: &Result<Certificate, Refused>) -> Result<&Certificate, Refused> {
    let certificate = certificate.as_ref().map_err(Clone::clone)?;
    if get_current_timestamp() > certificate.expires {
        let why = format!("the certificate of {} has expired", certificate.name);
        return Err(Refused::InvalidCredentials { why });
    }
    Ok(certificate)
}

/// Adds the name of the certificate to the rejection of a token.
fn brought_by(certificate: Option<&Certificate>, refused: Refused) -> Refused {
    match (refused, certificate) {
        (Refused::InvalidCredentials { why }, Some(certificate)) => Refused::InvalidCredentials {
            why: format!("{why}; the certificate is that of {}", certificate.name),
        },
        (refused, _) => refused,
    }
}

impl Caller {
    /// Whether the caller may act on behalf of this user.
    #[must_use]
    pub fn may_act_for(&self, username: &str) -> bool {
        self.grant.acts_for_users || self.user.as_deref() == Some(username)
    }

    /// The organizations that the caller may read and change.
    #[must_use]
    pub fn organizations(&self) -> &OrganizationScope {
        &self.grant.organizations
    }

    /// Whether the caller may act on behalf of the platform, in requests that set `as_platform`.
    #[must_use]
    pub fn may_act_as_platform(&self) -> bool {
        self.grant.acts_as_platform
    }
}
