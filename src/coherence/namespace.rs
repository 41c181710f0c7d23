//! Namespaces: the prefix of the cache keys of one generation, and the keys of records in it.

use std::sync::Arc;

use crate::domain::Key;

/// The namespace of one generation of one deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// The namespace of a deployment's generation.
    #[must_use]
    pub fn new(deployment: &str, generation: &str) -> Self {
        Self(format!("v1/{deployment}/{generation}").into())
    }

    /// The cache key of a record.
    #[must_use]
    pub fn key(&self, key: &Key) -> String {
        self.parts(key).concat()
    }

    /// The cache keys of records.
    pub(super) fn keys(&self, keys: &[Key]) -> Vec<String> {
        keys.iter().map(|key| self.key(key)).collect()
    }

    fn parts<'a>(&'a self, key: &'a Key) -> [&'a str; 5] {
        let namespace = &*self.0;
        match key {
            Key::User(username) => [namespace, "/u/", username.as_str(), "", ""],
            Key::Organization(name) => [namespace, "/o/", name.as_str(), "", ""],
            Key::Membership(organization, member) => {
                let organization = organization.as_str();
                // Names have no control characters, so no two keys are equal.
                let separator = if organization.contains('/') {
                    "\n"
                } else {
                    "/"
                };
                [namespace, "/m/", organization, separator, member.as_str()]
            }
        }
    }

    /// A key that no record has, for probes of the cache.
    pub(super) fn probe_key(&self) -> String {
        format!("{}/probe", self.0)
    }
}
