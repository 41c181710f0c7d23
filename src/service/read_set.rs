//! The read set of a write: the records that it has read, and the conditions under which
//! they are unchanged.

use std::collections::HashMap;

use super::Refusal;
use crate::{
    coherence::{Plan, Verdict},
    domain::{
        DeletedName, Key, Organization, OrganizationName, Orphans, Record, Role, Standing,
        Timestamp, User, Username, standing_membership,
    },
    store::{self, Step, StrongReads},
};

/// Records as strong reads returned them.
#[derive(Clone)]
pub(super) struct ReadSet(HashMap<Key, Option<Record>>);

impl ReadSet {
    /// Reads records; the keys may repeat.
    pub(super) async fn read(
        table: &dyn StrongReads,
        keys: impl IntoIterator<Item = Key>,
    ) -> Result<Self, store::Error> {
        let mut records: HashMap<_, _> = keys.into_iter().map(|key| (key, None)).collect();
        let keys: Vec<_> = records.keys().cloned().collect();
        for (key, found) in keys.iter().zip(table.read_strong(&keys).await?) {
            records.insert(key.clone(), found);
        }
        Ok(Self(records))
    }

    /// Nothing was read yet.
    pub(super) fn empty() -> Self {
        Self(HashMap::new())
    }

    /// What was read.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.keys()
    }

    pub(super) fn record(&self, key: &Key) -> Option<&Record> {
        self.0.get(key)?.as_ref()
    }

    /// All that were found.
    pub(super) fn records(&self) -> Vec<Record> {
        self.0.values().flatten().cloned().collect()
    }

    /// The users and organizations that were found.
    pub(super) fn profiles(&self) -> Vec<Record> {
        let mut profiles = self.records();
        profiles.retain(|record| !matches!(record, Record::Membership(_)));
        profiles
    }

    /// Adds what another read_set has, over what this one has.
    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Refuses because of these records, as they were found or not found.
    pub(super) fn refuse<T>(
        &self,
        because_of: impl IntoIterator<Item = Key>,
        refusal: Refusal,
    ) -> Verdict<T, Refusal> {
        let (mut absent, mut premises) = (Vec::new(), Vec::new());
        for key in because_of {
            match self.record(&key) {
                Some(record) => premises.push(record.clone()),
                None => absent.push(key),
            }
        }
        Verdict::Refuse {
            refusal,
            absent,
            premises,
        }
    }

    pub(super) fn user(&self, username: &Username) -> Option<&User> {
        match self.record(&Key::User(username.clone()))? {
            Record::User(user) => Some(user),
            _ => None,
        }
    }

    pub(super) fn organization(&self, name: &OrganizationName) -> Option<&Organization> {
        match self.record(&Key::Organization(name.clone()))? {
            Record::Organization(organization) => Some(organization),
            _ => None,
        }
    }

    /// The membership, if there is one, also if it does not count for now.
    pub(super) fn member(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> Option<Standing> {
        let key = Key::Membership(organization.clone(), username.clone());
        let membership = self.record(&key)?.clone().into_membership();
        standing_membership(
            self.user(username),
            self.organization(organization),
            membership,
        )
    }

    /// The role with which a user may act in an organization.
    pub(super) fn role(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> Option<Role> {
        let member = self.member(organization, username)?;
        member.into_effective()?.role
    }

    /// The user and the organization of a membership, as far as they were found:
    /// that somebody is a member says that they are there.
    pub(super) fn around(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> Vec<Record> {
        let keys = keys_around(organization, username);
        let found = keys.iter().filter_map(|key| self.record(key));
        found.cloned().collect()
    }

    /// The condition that a record is still as it was found.
    pub(super) fn still(&self, key: Key) -> Step {
        let found = self.record(&key).cloned();
        Step::Require { key, found }
    }

    /// The conditions under which a membership still counts as it did.
    pub(super) fn still_counts(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> Vec<Step> {
        keys_of_member(organization, username)
            .into_iter()
            .map(|key| self.still(key))
            .collect()
    }
}

/// The deletion of a user or an organization, and the removal of what it leaves.
pub(super) fn deletion(found: Record, gone: DeletedName) -> Vec<Step> {
    let orphans = Orphans {
        gone,
        uid: found.uid().cloned(),
        time: Timestamp::now(),
    };
    vec![Step::Delete { found }, Step::CleanUp(orphans)]
}

/// The user and the organization of a membership.
pub(super) fn keys_around(organization: &OrganizationName, username: &Username) -> [Key; 2] {
    [
        Key::User(username.clone()),
        Key::Organization(organization.clone()),
    ]
}

/// The three records that make a membership count.
pub(super) fn keys_of_member(organization: &OrganizationName, username: &Username) -> [Key; 3] {
    [
        Key::User(username.clone()),
        Key::Organization(organization.clone()),
        Key::Membership(organization.clone(), username.clone()),
    ]
}

/// The plan to change a record that was found, and to publish it if that may be.
pub(super) fn rewrite<T>(
    found: Record,
    record: Record,
    conditions: Vec<Step>,
    may_publish: bool,
    output: T,
) -> Plan<T> {
    let update = Step::Update {
        found,
        record: record.clone(),
    };
    Plan {
        steps: transaction(vec![update], conditions),
        publish: may_publish.then_some(record).into_iter().collect(),
        premises: Vec::new(),
        output,
    }
}

/// A transaction of `write` and the conditions, each record named once: the
/// write's own condition covers its record.
pub(super) fn transaction(write: Vec<Step>, conditions: Vec<Step>) -> Vec<Step> {
    let mut steps = write;
    for condition in conditions {
        let key = key_of(&condition);
        if steps.iter().all(|step| key_of(step) != key) {
            steps.push(condition);
        }
    }
    steps
}

fn key_of(step: &Step) -> Option<Key> {
    match step {
        Step::Require { key, .. } => Some(key.clone()),
        Step::Create { record, .. } | Step::Update { record, .. } => Some(record.key()),
        Step::Delete { found } => Some(found.key()),
        Step::Claim { .. } | Step::CleanUp(_) | Step::Remember { .. } => None,
    }
}
