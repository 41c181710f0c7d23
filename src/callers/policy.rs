//! The policy: which callers may call which methods, and on whose behalf.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde::Deserialize;

/// Stands for every method.
const EVERY_METHOD: &str = "*";

/// What each caller is granted.
#[derive(Debug, Clone)]
pub struct Policy {
    callers: HashMap<String, Arc<Grant>>,
    users: Option<Arc<Grant>>,
}

/// What one caller is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    methods: Methods,
    /// May act on behalf of every user, without the user's own token.
    pub acts_for_users: bool,
    /// May say `as_platform`.
    pub acts_as_platform: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Methods {
    Every,
    These(HashSet<String>),
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is no JSON of this form.
    #[error("it is no policy: {0}")]
    Form(#[from] serde_json::Error),
    /// There is no such method.
    #[error("{caller:?} is granted {method:?}, which is no method of the service")]
    NoSuchMethod {
        /// Who.
        caller: String,
        /// What.
        method: String,
    },
    /// Nobody is granted anything.
    #[error("it grants nobody anything")]
    Empty,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyForm {
    #[serde(default)]
    callers: HashMap<String, GrantForm>,
    users: Option<UserGrantForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantForm {
    methods: Vec<String>,
    #[serde(default)]
    acts_for_users: bool,
    #[serde(default)]
    acts_as_platform: bool,
}

/// Users act for themselves only.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserGrantForm {
    methods: Vec<String>,
}

impl Policy {
    /// Parses a policy. `methods` are the methods that there are.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn parse(json: &str, methods: &[String]) -> Result<Self, PolicyError> {
        let form: PolicyForm = serde_json::from_str(json)?;
        let granted = |caller: &str, names: Vec<String>| {
            let unknown = names
                .iter()
                .find(|name| *name != EVERY_METHOD && !methods.contains(name));
            match unknown {
                Some(method) => Err(PolicyError::NoSuchMethod {
                    caller: caller.to_owned(),
                    method: method.clone(),
                }),
                None if names.iter().any(|name| name == EVERY_METHOD) => Ok(Methods::Every),
                None => Ok(Methods::These(names.into_iter().collect())),
            }
        };
        let callers = form.callers.into_iter().map(|(caller, form)| {
            let grant = Grant {
                methods: granted(&caller, form.methods)?,
                acts_for_users: form.acts_for_users,
                acts_as_platform: form.acts_as_platform,
            };
            Ok((caller, Arc::new(grant)))
        });
        let callers: HashMap<_, _> = callers.collect::<Result<_, PolicyError>>()?;
        let users = form.users.map(|form| {
            Ok::<_, PolicyError>(Arc::new(Grant {
                methods: granted("users", form.methods)?,
                acts_for_users: false,
                acts_as_platform: false,
            }))
        });
        let users = users.transpose()?;
        if callers.is_empty() && users.is_none() {
            return Err(PolicyError::Empty);
        }
        Ok(Self { callers, users })
    }

    pub(super) fn of_caller(&self, name: &str) -> Option<&Arc<Grant>> {
        self.callers.get(name)
    }

    pub(super) fn of_users(&self) -> Option<&Arc<Grant>> {
        self.users.as_ref()
    }
}

impl Grant {
    /// Every method, on whoever's behalf.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            methods: Methods::Every,
            acts_for_users: true,
            acts_as_platform: true,
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
mod tests {
    use super::*;

    fn methods() -> Vec<String> {
        ["CheckMembership", "CreateUser"].map(String::from).into()
    }

    #[test]
    fn a_policy_grants_what_it_says_and_nothing_else() {
        let policy = r#"{"callers": {"billing": {"methods": ["CheckMembership"]},
            "console": {"methods": ["*"], "acts_for_users": true}},
            "users": {"methods": ["CheckMembership"]}}"#;
        let policy = Policy::parse(policy, &methods()).unwrap();
        let billing = policy.of_caller("billing").unwrap();
        assert!(billing.has_method("CheckMembership"));
        assert!(!billing.has_method("CreateUser"));
        assert!(!billing.acts_for_users);
        let console = policy.of_caller("console").unwrap();
        assert!(console.has_method("CreateUser") && console.acts_for_users);
        assert!(!console.acts_as_platform);
        assert!(policy.of_caller("nobody").is_none());
        assert!(!policy.of_users().unwrap().has_method("CreateUser"));
    }

    #[test]
    fn a_policy_with_a_mistake_is_refused_and_the_mistake_named() {
        for (policy, mistake) in [
            ("", "it is no policy"),
            (r#"{"callers": {}}"#, "grants nobody"),
            (r#"{"callers": {"a": {"methods": ["Check"]}}}"#, "no method"),
            (r#"{"callers": {"a": {"method": ["*"]}}}"#, "unknown field"),
            (r#"{"caller": {}}"#, "unknown field"),
            (
                r#"{"users": {"methods": [], "acts_for_users": true}}"#,
                "unknown field",
            ),
        ] {
            let error = Policy::parse(policy, &methods()).unwrap_err().to_string();
            assert!(error.contains(mistake), "{error}");
        }
    }
}
