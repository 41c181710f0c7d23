//! The read set of a write: the records that it has read, and the conditions that their facts
//! are unchanged.

use std::collections::HashMap;

use super::Refusal;
use crate::{
    coherence::{Plan, Verdict},
    domain::{
        Key, Membership, Organization, OrganizationName, Record, Standing, State, Timestamp, User,
        Username, standing_membership,
    },
    store::{self, DynamoDb, Step},
};

/// Records as strong reads returned them.
#[derive(Clone)]
pub(super) struct ReadSet {
    /// `None`: no such record.
    records: HashMap<Key, Option<Record>>,
    /// The time after the reads.
    now: Timestamp,
    /// The time by which a commit that starts now has ended.
    end_of_commit: Timestamp,
}

impl ReadSet {
    /// Reads records. Keys may repeat.
    pub(super) async fn read(
        table: &DynamoDb,
        keys: impl IntoIterator<Item = Key>,
    ) -> Result<Self, store::Error> {
        let mut records: HashMap<_, _> = keys.into_iter().map(|key| (key, None)).collect();
        let keys: Vec<_> = records.keys().cloned().collect();
        for (key, found) in keys.iter().zip(table.read_strong(&keys).await?) {
            records.insert(key.clone(), found);
        }
        Ok(Self {
            records,
            ..Self::empty(table)
        })
    }

    /// A read set without records.
    pub(super) fn empty(table: &DynamoDb) -> Self {
        Self {
            records: HashMap::new(),
            now: table.now(),
            end_of_commit: table.end_of_commit(),
        }
    }

    /// The keys that were read.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.records.keys()
    }

    pub(super) fn record(&self, key: &Key) -> Option<&Record> {
        self.records.get(key)?.as_ref()
    }

    /// All records that were found.
    pub(super) fn records(&self) -> Vec<Record> {
        self.records.values().flatten().cloned().collect()
    }

    /// The users and organizations that were found.
    pub(super) fn profiles(&self) -> Vec<Record> {
        let mut profiles = self.records();
        profiles.retain(|record| !matches!(record, Record::Membership(_)));
        profiles
    }

    /// Adds another read set. Its records replace those of this one.
    pub(super) fn extend(&mut self, other: Self) {
        self.records.extend(other.records);
    }

    /// Refuses because of these keys, and reveals their records or that there are none.
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

    /// The user, unless it is deleted.
    pub(super) fn user(&self, username: &Username) -> Option<&User> {
        self.stored_user(username)
            .filter(|user| user.deletion.is_none())
    }

    /// The organization, unless it is deleted.
    pub(super) fn organization(&self, name: &OrganizationName) -> Option<&Organization> {
        self.stored_organization(name)
            .filter(|organization| organization.deletion.is_none())
    }

    /// The user, also if it is deleted and can be undeleted.
    pub(super) fn stored_user(&self, username: &Username) -> Option<&User> {
        match self.record(&Key::User(username.clone()))? {
            Record::User(user) => Some(user),
            _ => None,
        }
    }

    /// The organization, also if it is deleted and can be undeleted.
    pub(super) fn stored_organization(&self, name: &OrganizationName) -> Option<&Organization> {
        match self.record(&Key::Organization(name.clone()))? {
            Record::Organization(organization) => Some(organization),
            _ => None,
        }
    }

    /// The membership between the present incarnations, also while it is suspended.
    pub(super) fn member(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> Option<Standing> {
        self.member_in(self.organization(organization)?, username)
    }

    /// The same, in this organization.
    pub(super) fn member_in(
        &self,
        organization: &Organization,
        username: &Username,
    ) -> Option<Standing> {
        self.standing(self.now, self.user(username)?, organization)
    }

    /// The same, for a membership that is to be changed. It does not expire before a commit that starts
    /// now has ended: a change never revives a membership.
    pub(super) fn member_to_change(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> Option<Standing> {
        let organization = self.organization(organization)?;
        self.standing(self.end_of_commit, self.user(username)?, organization)
    }

    /// The membership, also that of a deleted user who can be undeleted. That one is suspended.
    pub(super) fn stored_member(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> Option<Standing> {
        let user = self.stored_user(username)?;
        let organization = self.organization(organization)?;
        let is_deleted = user.deletion.is_some();
        let mut standing = self.standing(self.now, &user.clone().undeleted(), organization)?;
        if is_deleted {
            standing.state = State::Suspended;
        }
        Some(standing)
    }

    /// The membership between a user and an organization at a time.
    fn standing(
        &self,
        time: Timestamp,
        user: &User,
        organization: &Organization,
    ) -> Option<Standing> {
        let key = Key::Membership(
            organization.organization_name.clone(),
            user.username.clone(),
        );
        let membership = self.record(&key)?.clone().into_membership();
        standing_membership(Some(user), Some(organization), membership, || time)
    }

    /// Whether a membership counts, as of the reads. `None`: there is no such membership any more.
    pub(super) fn present_state(&self, membership: &Membership) -> Option<State> {
        let standing = standing_membership(
            self.user(&membership.member_username),
            self.organization(&membership.organization_name),
            Some(membership.clone()),
            || self.now,
        );
        standing.map(|standing| standing.state)
    }

    /// The effective membership of an acting user. It does not expire before a commit that starts
    /// now has ended.
    pub(super) fn acting(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> Option<Membership> {
        self.acting_in(self.organization(organization)?, username)
    }

    /// The same, in this organization.
    pub(super) fn acting_in(
        &self,
        organization: &Organization,
        username: &Username,
    ) -> Option<Membership> {
        let user = self.user(username)?;
        let member = self.standing(self.end_of_commit, user, organization)?;
        member.into_effective()
    }

    /// Whether a user is an Owner who can act unless the organization is suspended, and whose
    /// membership does not expire.
    pub(super) fn is_lasting_owner(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> bool {
        let is_active = |user: &User| user.state == State::Active;
        let member = self.member(organization, username);
        member.is_some_and(|member| member.membership.is_lasting_owner())
            && self.user(username).is_some_and(is_active)
    }

    /// The user and the organization of a membership, if they were found. A result that
    /// shows a member reveals both.
    pub(super) fn around(
        &self,
        organization: &OrganizationName,
        username: &Username,
    ) -> Vec<Record> {
        let keys = keys_around(organization, username);
        let found = keys.iter().filter_map(|key| self.record(key));
        found.cloned().collect()
    }

    /// The condition that the facts of a record are unchanged, see [`Step::Require`].
    pub(super) fn still(&self, key: Key) -> Step {
        let found = self.record(&key).cloned();
        Step::Require { key, found }
    }

    /// The conditions that a membership counts as it did.
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

/// The user and the organization of a membership.
pub(super) fn keys_around(organization: &OrganizationName, username: &Username) -> [Key; 2] {
    [
        Key::User(username.clone()),
        Key::Organization(organization.clone()),
    ]
}

/// The three records that decide whether a membership counts.
pub(super) fn keys_of_member(organization: &OrganizationName, username: &Username) -> [Key; 3] {
    [
        Key::User(username.clone()),
        Key::Organization(organization.clone()),
        Key::Membership(organization.clone(), username.clone()),
    ]
}

/// The plan to change a record, and to publish it if `may_publish`.
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

/// A transaction of `write` and conditions. Each record occurs once: a write has its own
/// condition.
pub(super) fn transaction(write: Vec<Step>, conditions: Vec<Step>) -> Vec<Step> {
    let mut steps = write;
    for condition in conditions {
        let key = condition.key();
        if steps.iter().all(|step| step.key() != key) {
            steps.push(condition);
        }
    }
    steps
}
