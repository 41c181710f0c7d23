//! Permissions of the actor of a change in an organization.

use super::{
    Refusal, is_version,
    read_set::{ReadSet, keys_of_member},
};
use crate::{
    coherence::Verdict,
    domain::{Actor, Etag, Key, Organization, OrganizationName, Role, outlasts},
    store::{self, DynamoDb, Step},
};

impl Actor {
    /// Whether the actor has at least this role.
    pub(super) fn has(
        &self,
        least: Role,
        found: &ReadSet,
        organization: &OrganizationName,
    ) -> bool {
        self.has_in(least, found, found.organization(organization))
    }

    /// The same, in this organization.
    fn has_in(&self, least: Role, found: &ReadSet, organization: Option<&Organization>) -> bool {
        match self {
            Self::User(username) => organization
                .and_then(|organization| found.acting_in(organization, username)?.role)
                .is_some_and(|role| role >= least),
            Self::Platform => true,
        }
    }

    /// Whether the actor may grant a membership without an end.
    pub(super) fn grants_without_end(
        &self,
        found: &ReadSet,
        organization: &OrganizationName,
    ) -> bool {
        match self {
            Self::User(username) => found
                .acting(organization, username)
                .is_some_and(|acting| !outlasts(None, acting.expire_time)),
            Self::Platform => true,
        }
    }

    /// The records that decide whether the actor has a role.
    pub(super) fn keys(&self, organization: &OrganizationName) -> Vec<Key> {
        match self {
            Self::User(username) => keys_of_member(organization, username).into(),
            Self::Platform => Vec::new(),
        }
    }

    /// The conditions that the facts of these records are unchanged.
    pub(super) fn conditions(&self, found: &ReadSet, organization: &OrganizationName) -> Vec<Step> {
        match self {
            Self::User(username) => found.still_counts(organization, username),
            Self::Platform => Vec::new(),
        }
    }
}

/// Whether a deleted organization that can be undeleted may be changed, too. The actor then needs the role
/// that the undeletion brings back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AlsoDeleted {
    /// It may.
    Yes,
    /// It counts as deleted.
    No,
}

/// The organization and the conditions of a change, or the refusal.
pub(super) type Permitted<T> = Result<(Organization, Vec<Step>), Verdict<T, Refusal>>;

impl Actor {
    /// Whether the actor has the role `least`, and the organization has the version of the etag.
    pub(super) async fn may_change<T>(
        &self,
        least: Role,
        table: &DynamoDb,
        name: &OrganizationName,
        etag: Option<&Etag>,
        also_deleted: AlsoDeleted,
    ) -> Result<Permitted<T>, store::Error> {
        let mut keys = self.keys(name);
        keys.push(Key::Organization(name.clone()));
        let found = ReadSet::read(table, keys).await?;
        let organization = found
            .stored_organization(name)
            .filter(|found| also_deleted == AlsoDeleted::Yes || found.deletion.is_none());
        let undeleted = organization.cloned().map(Organization::undeleted);
        if !self.has_in(least, &found, undeleted.as_ref()) {
            return Ok(Err(Verdict::Deny(Refusal::NotPermitted)));
        }
        let Some(organization) = organization else {
            let refusal = Refusal::OrganizationNotFound(name.clone());
            return Ok(Err(Verdict::refuse(refusal)));
        };
        if !is_version(etag, &organization.stamp) {
            return Ok(Err(Verdict::refuse(Refusal::EtagMismatch)));
        }
        let conditions = self.conditions(&found, name);
        Ok(Ok((organization.clone(), conditions)))
    }
}
