//! Who calls, and what they are granted: certificates and tokens to names, names
//! to grants. Knows no gRPC.

mod certificate;
mod keys;
mod policy;
mod token;

use std::sync::Arc;

pub use certificate::name_of;
pub use keys::{KeySource, KeySourceError, Keys};
pub use policy::{Grant, Policy, PolicyError};
pub use token::{Expected, Tokens};

use self::token::Identity;

/// Whoever called, and what they are granted.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The certificate's or the token's name of them; `None` where nobody is
    /// asked for a name.
    pub name: Option<Arc<str>>,
    /// The user whose own token came with the call.
    pub user: Option<Arc<str>>,
    grant: Arc<Grant>,
}

/// What a call brings to show who calls.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// Whom the client's certificate, which was verified, names.
    pub certificate: Option<&'a Result<Arc<str>, Refused>>,
    /// The bearer token.
    pub token: Option<&'a str>,
}

/// Why a call is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It does not show who calls.
    #[error("the call brings no credentials")]
    NoCredentials,
    /// What it shows is not valid.
    #[error("the call's credentials are not valid")]
    InvalidCredentials {
        /// Why, for the log only.
        why: String,
    },
    /// Whoever calls is granted nothing like this.
    #[error("the caller may not call this method")]
    NotGranted {
        /// Whoever called, for the log only.
        name: Arc<str>,
    },
}

/// Decides who is admitted.
#[derive(Debug, Clone)]
pub struct Gate(Rules);

#[derive(Debug, Clone)]
enum Rules {
    Open(Arc<Grant>),
    Closed(Arc<Checks>),
}

#[derive(Debug)]
struct Checks {
    policy: Policy,
    tokens: Option<Tokens>,
}

impl Gate {
    /// Admits everybody to everything, on whoever's behalf.
    #[must_use]
    pub fn open() -> Self {
        Self(Rules::Open(Arc::new(Grant::everything())))
    }

    /// Admits whom the policy names.
    #[must_use]
    pub fn new(policy: Policy, tokens: Option<Tokens>) -> Self {
        Self(Rules::Closed(Arc::new(Checks { policy, tokens })))
    }

    /// Whether a call is admitted, and who made it. `None`: of what every caller
    /// may call.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn admit(
        &self,
        method: Option<&str>,
        credentials: Credentials<'_>,
    ) -> Result<Caller, Refused> {
        let checks = match &self.0 {
            Rules::Closed(checks) => checks,
            Rules::Open(everything) => {
                return Ok(Caller {
                    name: None,
                    user: None,
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
}

impl Checks {
    fn caller(&self, credentials: Credentials<'_>) -> Result<Caller, Refused> {
        let Credentials { certificate, token } = credentials;
        let identity = match (token, &self.tokens) {
            (Some(token), Some(tokens)) => Some(tokens.verify(token)?),
            (Some(_), None) | (None, _) => None,
        };
        match (certificate, identity) {
            (Some(certificate), identity) => {
                let name = certificate.clone()?;
                let grant = self.policy.of_caller(&name);
                let user = identity.map(|identity| identity.subject);
                known(name, grant, user)
            }
            (None, Some(Identity { subject })) => match self.policy.of_caller(&subject) {
                Some(grant) => known(subject, Some(grant), None),
                // No service: a user who calls with a token of their own.
                None => known(subject.clone(), self.policy.of_users(), Some(subject)),
            },
            (None, None) => Err(Refused::NoCredentials),
        }
    }
}

fn known(
    name: Arc<str>,
    grant: Option<&Arc<Grant>>,
    user: Option<Arc<str>>,
) -> Result<Caller, Refused> {
    match grant {
        Some(grant) => Ok(Caller {
            name: Some(name),
            user,
            grant: grant.clone(),
        }),
        None => Err(Refused::NotGranted { name }),
    }
}

impl Caller {
    /// Whether the caller may act on behalf of this user.
    #[must_use]
    pub fn may_act_for(&self, username: &str) -> bool {
        self.grant.acts_for_users || self.user.as_deref() == Some(username)
    }

    /// Whether the caller may act on behalf of the platform where a request says
    /// so.
    #[must_use]
    pub fn may_act_as_platform(&self) -> bool {
        self.grant.acts_as_platform
    }
}
