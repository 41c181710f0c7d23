//! The policy: the callers, the credentials of each, the methods that it may call, and the
//! actors on whose behalf it may act.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    domain::{FreeText, Labels, NameMatch, OrganizationName, OrganizationRule, OrganizationScope},
    json_object::{self, Entries, given},
};

/// Wildcard for every method.
const EVERY_METHOD: &str = "*";
/// The claim that names the subject of a token.
pub(super) const SUBJECT: &str = "sub";

/// The credentials and the grants of each caller.
#[derive(Debug, Clone)]
pub struct Policy {
    by_certificate: HashMap<String, Service>,
    by_token: Vec<(Claims, Service)>,
    users: Option<(Claims, Arc<Grant>)>,
}

/// A caller that is no user.
#[derive(Debug, Clone)]
pub(super) struct Service {
    /// Its name in the policy.
    pub(super) name: Arc<str>,
    pub(super) grant: Arc<Grant>,
}

/// The owner of a token.
#[derive(Debug, Clone)]
pub(super) enum Holder {
    /// A caller that is no user.
    Service(Service),
    /// The user whose name is the token's subject.
    User(Arc<Grant>),
    /// An owner that the policy does not name.
    Unknown,
}

/// The grants of one caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    methods: Methods,
    /// May act on behalf of every user, without the user's own token.
    pub acts_for_users: bool,
    /// May act on behalf of the platform.
    pub acts_as_platform: bool,
    /// The organizations that it may read and change.
    pub organizations: OrganizationScope,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Methods {
    Every,
    These(HashSet<String>),
}

/// A method of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// Whether it is a platform operation: a change without an acting user.
    pub is_of_platform: bool,
}

/// Required claims of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claims(BTreeMap<String, Value>);

/// Reason why a policy is rejected.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file is not JSON of this form.
    #[error("it is not a policy: {0}")]
    Form(#[from] serde_json::Error),
    /// A caller's name is not valid.
    #[error("{name:?} cannot be the name of a caller: {why}")]
    Name {
        /// The name.
        name: String,
        /// The reason.
        why: &'static str,
    },
    /// A caller has no way to authenticate.
    #[error(
        "caller {caller:?} has no credentials: add \"certificate\": {caller:?} if that is the name \
         in its certificate, or \"token\": {{\"client_id\": …}} with claims that only its tokens \
         have"
    )]
    NoProof {
        /// The caller.
        caller: String,
    },
    /// A user's token could match the claims of the caller.
    #[error(
        "the tokens of caller {caller:?} have no required claim except {SUBJECT:?}, which a \
         user's token has as well: add a claim that only its tokens have"
    )]
    WeakProof {
        /// The caller.
        caller: String,
    },
    /// A required claim has a value that no claim can have.
    #[error("the claim {claim:?} of {caller:?} must be a string, a number or a boolean")]
    Claim {
        /// The caller.
        caller: String,
        /// The claim.
        claim: String,
    },
    /// Two callers authenticate by the same credential.
    #[error("callers {first:?} and {second:?} have the same credentials")]
    SameProof {
        /// One of them.
        first: String,
        /// The other one.
        second: String,
    },
    /// `users` does not define users' tokens.
    #[error(
        "\"users\" does not define users' tokens: add \"token\": {{}} for every token that is no \
         caller's, or with the claims that users' tokens have"
    )]
    NoUserToken,
    /// A granted method does not exist.
    #[error("{caller:?} is granted {method:?}, which is no method of the service")]
    NoSuchMethod {
        /// The caller.
        caller: String,
        /// The method.
        method: String,
    },
    /// A platform operation is granted to all users.
    #[error(
        "users are granted {method:?}, with which each user could change all others: list only \
         methods with an acting user, and methods that read"
    )]
    UsersAsPlatform {
        /// The method.
        method: String,
    },
    /// A caller is limited to organizations that cannot exist.
    #[error("the \"organizations\" of {caller:?} are not valid: {why}")]
    Organizations {
        /// The caller.
        caller: String,
        /// The reason.
        why: String,
    },
    /// The policy grants nothing.
    #[error("it grants nothing")]
    Empty,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyForm {
    #[serde(default)]
    callers: Entries<GrantForm>,
    users: Option<UserGrantForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantForm {
    certificate: Option<String>,
    token: Option<Entries<Value>>,
    methods: Vec<String>,
    #[serde(default)]
    acts_for_users: bool,
    #[serde(default)]
    acts_as_platform: bool,
    // A missing limit grants more than a limit.
    #[serde(default, deserialize_with = "given")]
    organizations: Option<Vec<OrganizationForm>>,
}

/// Organizations by name, or by a prefix of the name, and by labels.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrganizationForm {
    #[serde(default, deserialize_with = "given")]
    name: Option<String>,
    #[serde(default, deserialize_with = "given")]
    prefix: Option<String>,
    #[serde(default)]
    labels: Entries<String>,
}

/// Users act for themselves only.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserGrantForm {
    token: Option<Entries<Value>>,
    methods: Vec<String>,
}

impl Policy {
    /// Parses a policy. `methods` are all methods of the service.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn parse(json: &str, methods: &[Method]) -> Result<Self, PolicyError> {
        let PolicyForm { callers, users } = json_object::parse(json)?;
        if callers.0.is_empty() && users.is_none() {
            return Err(PolicyError::Empty);
        }
        let mut policy = Self {
            by_certificate: HashMap::new(),
            by_token: Vec::new(),
            users: users.map(|users| users.grant(methods)).transpose()?,
        };
        for (name, form) in callers.0 {
            policy.add(name, form, methods)?;
        }
        Ok(policy)
    }

    fn add(
        &mut self,
        caller: String,
        form: GrantForm,
        methods: &[Method],
    ) -> Result<(), PolicyError> {
        assert_name(&caller)?;
        let service = Service {
            name: caller.as_str().into(),
            grant: Arc::new(Grant {
                methods: granted(&caller, form.methods, methods)?,
                acts_for_users: form.acts_for_users,
                acts_as_platform: form.acts_as_platform,
                organizations: scope(&caller, form.organizations)?,
            }),
        };
        let same = |other: &Service| PolicyError::SameProof {
            first: other.name.to_string(),
            second: caller.clone(),
        };
        if form.certificate.is_none() && form.token.is_none() {
            return Err(PolicyError::NoProof { caller });
        }
        if let Some(name) = form.certificate {
            assert_name(&name)?;
            if let Some(other) = self.by_certificate.insert(name, service.clone()) {
                return Err(same(&other));
            }
        }
        if let Some(claims) = form.token {
            let claims = Claims::new(&caller, claims)?;
            if claims.0.keys().all(|claim| claim == SUBJECT) {
                return Err(PolicyError::WeakProof { caller });
            }
            if let Some((_, other)) = self.by_token.iter().find(|(other, _)| *other == claims) {
                return Err(same(other));
            }
            self.by_token.push((claims, service));
        }
        Ok(())
    }

    /// Whether a caller authenticates by certificate.
    #[must_use]
    pub fn knows_certificates(&self) -> bool {
        !self.by_certificate.is_empty()
    }

    /// Whether a caller, or users, authenticate by token.
    #[must_use]
    pub fn knows_tokens(&self) -> bool {
        !self.by_token.is_empty() || self.users.is_some()
    }

    pub(super) fn of_certificate(&self, name: &str) -> Option<&Service> {
        self.by_certificate.get(name)
    }

    /// The owner of a token with these claims. `None` if several callers match.
    pub(super) fn of_token(&self, claims: &Map<String, Value>) -> Option<Holder> {
        let mut services = self.by_token.iter().filter(|(rule, _)| rule.admit(claims));
        match (services.next(), services.next()) {
            (Some((_, service)), None) => Some(Holder::Service(service.clone())),
            (Some(_), Some(_)) => None,
            (None, _) => Some(match &self.users {
                Some((rule, grant)) if rule.admit(claims) => Holder::User(grant.clone()),
                _ => Holder::Unknown,
            }),
        }
    }
}

impl UserGrantForm {
    fn grant(self, methods: &[Method]) -> Result<(Claims, Arc<Grant>), PolicyError> {
        const USERS: &str = "users";
        let claims = self.token.ok_or(PolicyError::NoUserToken)?;
        let claims = Claims::new(USERS, claims)?;
        let is_of_platform = |name: &String| {
            let mut methods = methods.iter();
            name == EVERY_METHOD || methods.any(|it| it.is_of_platform && it.name == *name)
        };
        if let Some(method) = self.methods.iter().find(|name| is_of_platform(name)) {
            let method = method.clone();
            return Err(PolicyError::UsersAsPlatform { method });
        }
        let grant = Grant {
            methods: granted(USERS, self.methods, methods)?,
            acts_for_users: false,
            acts_as_platform: false,
            organizations: OrganizationScope::Every,
        };
        Ok((claims, Arc::new(grant)))
    }
}

impl Claims {
    fn new(caller: &str, claims: Entries<Value>) -> Result<Self, PolicyError> {
        let odd = claims.0.iter().find(|(_, value)| {
            !matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_))
        });
        match odd {
            Some((claim, _)) => Err(PolicyError::Claim {
                caller: caller.to_owned(),
                claim: claim.clone(),
            }),
            None => Ok(Self(claims.0.into_iter().collect())),
        }
    }

    /// Whether a token has all required claims: each with the value, or a list with it.
    fn admit(&self, claims: &Map<String, Value>) -> bool {
        self.0.iter().all(|(name, wanted)| match claims.get(name) {
            Some(Value::Array(values)) => values.contains(wanted),
            Some(value) => value == wanted,
            None => false,
        })
    }
}

fn assert_name(name: &str) -> Result<(), PolicyError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.trim() != name {
        "it begins or ends with a blank"
    } else if name.chars().any(char::is_control) {
        "it has a control character"
    } else if name.contains('*') {
        "wildcards are not supported"
    } else {
        return Ok(());
    };
    Err(PolicyError::Name {
        name: name.to_owned(),
        why,
    })
}

fn granted(caller: &str, names: Vec<String>, methods: &[Method]) -> Result<Methods, PolicyError> {
    let is_known = |name: &String| {
        let mut methods = methods.iter();
        name == EVERY_METHOD || methods.any(|method| method.name == *name)
    };
    if let Some(method) = names.iter().find(|name| !is_known(name)) {
        return Err(PolicyError::NoSuchMethod {
            caller: caller.to_owned(),
            method: method.clone(),
        });
    }
    if names.iter().any(|name| name == EVERY_METHOD) {
        Ok(Methods::Every)
    } else {
        Ok(Methods::These(names.into_iter().collect()))
    }
}

/// The organizations of a caller. `None`: every organization.
fn scope(
    caller: &str,
    forms: Option<Vec<OrganizationForm>>,
) -> Result<OrganizationScope, PolicyError> {
    let Some(forms) = forms else {
        return Ok(OrganizationScope::Every);
    };
    let rejected = |why: String| PolicyError::Organizations {
        caller: caller.to_owned(),
        why,
    };
    if forms.is_empty() {
        let why = "the list is empty: leave it out to grant every organization";
        return Err(rejected(why.to_owned()));
    }
    let rules = forms.into_iter().map(|form| form.rule().map_err(rejected));
    Ok(OrganizationScope::AnyOf(
        rules.collect::<Result<Vec<_>, _>>()?.into(),
    ))
}

impl OrganizationForm {
    fn rule(self) -> Result<OrganizationRule, String> {
        let is_name = |text: &str| {
            let name = OrganizationName::parse_existing(text);
            name.map(drop).map_err(|why| format!("{text:?} {why}"))
        };
        let name = match (self.name, self.prefix) {
            (Some(_), Some(_)) => {
                return Err("\"name\" and \"prefix\" exclude each other".to_owned());
            }
            (Some(name), None) => {
                is_name(&name)?;
                NameMatch::Exactly(name)
            }
            (None, Some(prefix)) => {
                is_name(&prefix)?;
                NameMatch::Prefix(prefix)
            }
            (None, None) if self.labels.0.is_empty() => {
                return Err("an entry needs a \"name\", a \"prefix\" or \"labels\"".to_owned());
            }
            (None, None) => NameMatch::All,
        };
        let labels = self.labels.0.iter();
        let labels = labels.map(|(key, value)| (key.as_str(), value.as_str()));
        let labels = Labels::parse(labels, FreeText::parse_new);
        let labels = labels.map_err(|why| format!("\"labels\" {why}"))?;
        Ok(OrganizationRule { name, labels })
    }
}

impl Grant {
    /// Every method, on behalf of any user.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            methods: Methods::Every,
            acts_for_users: true,
            acts_as_platform: true,
            organizations: OrganizationScope::Every,
        }
    }

    pub(super) fn has_method(&self, method: &str) -> bool {
        match &self.methods {
            Methods::Every => true,
            Methods::These(methods) => methods.contains(method),
        }
    }
}

#[cfg(test)]
mod tests;
