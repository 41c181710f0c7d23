//! Who calls, and what they are granted: certificates and tokens to names, names
//! to grants. Knows no gRPC.

mod certificate;
mod keys;
mod policy;
mod token;

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};

pub use certificate::name_of;
pub use keys::{KeySource, KeySourceError, Keys};
pub use policy::{Grant, Policy, PolicyError};
pub use token::{Expected, Tokens};

use self::token::Identity;

/// The name of a caller. Shown, it is what a log may hold: a service's as it is, and
/// of another one, which may be a user's, the beginning of its SHA-256.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// Of a certificate, or of a token whose subject the policy names.
    Service(Arc<str>),
    /// Any other token's subject.
    Subject(Arc<str>),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to tell callers apart.
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

/// Whoever called, and what they are granted.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The certificate's or the token's name of them; `None` where nobody is
    /// asked for a name.
    pub name: Option<Name>,
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
        name: Name,
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
            (Some(token), Some(tokens)) => {
                let identity = tokens.verify(token);
                Some(identity.map_err(|refused| brought_by(certificate, refused))?)
            }
            (Some(_), None) | (None, _) => None,
        };
        match (certificate, identity) {
            (Some(certificate), identity) => {
                let name = certificate.clone()?;
                let grant = self.policy.of_caller(&name);
                let user = identity.map(|identity| identity.subject);
                known(Name::Service(name), grant, user)
            }
            (None, Some(Identity { subject })) => {
                if let Some(grant) = self.policy.of_caller(&subject) {
                    return known(Name::Service(subject), Some(grant), None);
                }
                // No service: a user who calls with a token of their own.
                let name = Name::Subject(subject.clone());
                known(name, self.policy.of_users(), Some(subject))
            }
            (None, None) => Err(Refused::NoCredentials),
        }
    }
}

/// Says whose certificate a token that is refused came with.
fn brought_by(certificate: Option<&Result<Arc<str>, Refused>>, refused: Refused) -> Refused {
    match (refused, certificate) {
        (Refused::InvalidCredentials { why }, Some(Ok(name))) => Refused::InvalidCredentials {
            why: format!("{why}; the certificate is that of {name}"),
        },
        (refused, _) => refused,
    }
}

fn known(
    name: Name,
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
