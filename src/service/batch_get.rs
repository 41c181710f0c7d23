//! Batch reads: each record is looked up once, and returned in the order of the request.

use std::collections::HashSet;

use super::{
    Accounts, Error, Freshness, Source,
    scope::{not_granted, require},
    store_failed,
};
use crate::domain::{
    Key, Organization, OrganizationName, OrganizationScope, Record, User, Username,
};

/// The result of a batch read.
#[derive(Debug)]
pub struct Batch<T, N> {
    /// The records that exist.
    pub found: Vec<T>,
    /// The names without a record.
    pub not_found: Vec<N>,
    /// The source of the records.
    pub source: Source,
}

impl Accounts {
    /// Returns the users of these names.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn get_users(
        &self,
        names: Vec<Username>,
        freshness: Freshness,
    ) -> Result<Batch<User, Username>, Error> {
        let into_user = Record::into_user;
        self.get_batch(names, Key::User, into_user, freshness).await
    }

    /// Returns the organizations of these names.
    ///
    /// # Errors
    /// [`super::Refusal::OrganizationNotGranted`], [`Error::Store`].
    pub async fn get_organizations(
        &self,
        scope: &OrganizationScope,
        names: Vec<OrganizationName>,
        freshness: Freshness,
    ) -> Result<Batch<Organization, OrganizationName>, Error> {
        let into_organization = Record::into_organization;
        let batch = self.get_batch(names, Key::Organization, into_organization, freshness);
        let batch = batch.await?;
        if let Some(other) = batch.found.iter().find(|found| !scope.has(found)) {
            return Err(not_granted(&other.organization_name));
        }
        for name in &batch.not_found {
            require(scope, name, None)?;
        }
        Ok(batch)
    }

    async fn get_batch<T, N: Clone>(
        &self,
        names: Vec<N>,
        key: impl Fn(N) -> Key,
        from_record: impl Fn(Record) -> Option<T>,
        freshness: Freshness,
    ) -> Result<Batch<T, N>, Error> {
        let mut seen = HashSet::new();
        let (names, keys): (Vec<_>, Vec<_>) = names
            .into_iter()
            .map(|name| (name.clone(), key(name)))
            .filter(|(_, key)| seen.insert(key.clone()))
            .unzip();
        let result = self.reads.read(&keys, freshness).await;
        let result = result.map_err(store_failed)?;
        let mut batch = Batch {
            found: Vec::new(),
            not_found: Vec::new(),
            source: result.source,
        };
        for (name, record) in names.into_iter().zip(result.into_records()) {
            match record.and_then(&from_record) {
                Some(found) => batch.found.push(found),
                None => batch.not_found.push(name),
            }
        }
        Ok(batch)
    }
}
