//! Membership checks: the role of a user in an organization, if the user is a member.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tokio::task::consume_budget;

use super::{
    Accounts, Error, Freshness, MEMBERSHIPS_AT_ONCE, Source, read_set::keys_of_member,
    scope::require, store_failed,
};
use crate::domain::{
    ExpireTime, Key, Labels, OrganizationName, OrganizationScope, Record, Role, Timestamp,
    Username, effective_membership,
};

/// A membership check.
#[derive(Debug, Clone)]
pub struct Check {
    /// The organization.
    pub organization_name: OrganizationName,
    /// The user.
    pub username: Username,
    /// The least role that satisfies the check. `None`: any.
    pub minimum_role: Option<Role>,
    /// Whether the result has the labels of the membership.
    pub with_labels: bool,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult {
    /// The member's role; `None` if the user is not a member.
    pub role: Option<Role>,
    /// Whether the user is a member with at least the least role.
    pub is_satisfied: bool,
    /// The end of the membership. `None`: it does not expire, or the user is not a member.
    pub expire_time: Option<ExpireTime>,
    /// The labels of the membership, if the check requests them.
    pub labels: Labels,
}

impl Check {
    /// The result, from the records of [`keys_of_member`].
    fn result(
        &self,
        records: [Option<&Record>; 3],
        now: impl FnOnce() -> Timestamp,
    ) -> CheckResult {
        let effective = match records {
            [
                Some(Record::User(user)),
                Some(Record::Organization(organization)),
                Some(Record::Membership(membership)),
            ] => effective_membership(user, organization, membership, now),
            _ => None,
        };
        let role = effective.map(|(role, _)| role);
        let least = self.minimum_role;
        CheckResult {
            role,
            is_satisfied: role.is_some_and(|role| least.is_none_or(|least| role >= least)),
            expire_time: effective.and_then(|(_, membership)| membership.expire_time),
            labels: match effective {
                Some((_, membership)) if self.with_labels => membership.labels.clone(),
                _ => Labels::default(),
            },
        }
    }
}

impl Accounts {
    /// Runs one check.
    ///
    /// # Errors
    /// [`super::Refusal::OrganizationNotGranted`], [`Error::Store`].
    pub async fn check(
        &self,
        scope: &OrganizationScope,
        check: Check,
        freshness: Freshness,
    ) -> Result<(CheckResult, Source), Error> {
        let keys = keys_of_member(&check.organization_name, &check.username);
        let result = self.reads.read(&keys, freshness).await;
        let result = result.map_err(store_failed)?;
        let records = [0, 1, 2].map(|position| result.record(position));
        require(scope, &check.organization_name, records[1])?;
        Ok((check.result(records, || self.table.now()), result.source))
    }

    /// Runs many checks, [`MEMBERSHIPS_AT_ONCE`] at a time. Each record of these is looked up once.
    ///
    /// # Errors
    /// [`super::Refusal::OrganizationNotGranted`], [`Error::Store`].
    pub async fn check_batch(
        &self,
        scope: &OrganizationScope,
        checks: &[Check],
        freshness: Freshness,
    ) -> Result<(Vec<CheckResult>, Source), Error> {
        let mut results = Vec::with_capacity(checks.len());
        let mut source = Source::Memory;
        for checks in checks.chunks(MEMBERSHIPS_AT_ONCE.into()) {
            let some = self.check_some(scope, checks, freshness, &mut results);
            source = source.max(some.await?);
        }
        Ok((results, source))
    }

    /// Runs some checks, and adds their results.
    async fn check_some(
        &self,
        scope: &OrganizationScope,
        checks: &[Check],
        freshness: Freshness,
        results: &mut Vec<CheckResult>,
    ) -> Result<Source, Error> {
        let keys_of_check =
            |check: &Check| keys_of_member(&check.organization_name, &check.username);
        let mut positions: HashMap<Key, usize, RandomState> = HashMap::default();
        let mut keys = Vec::new();
        for check in checks {
            for key in keys_of_check(check) {
                positions.entry(key).or_insert_with_key(|key| {
                    keys.push(key.clone());
                    keys.len() - 1
                });
            }
            consume_budget().await;
        }
        let result = self.reads.read(&keys, freshness).await;
        let result = result.map_err(store_failed)?;
        for check in checks {
            let record = |key| result.record(*positions.get(&key)?);
            let records = keys_of_check(check).map(record);
            require(scope, &check.organization_name, records[1])?;
            results.push(check.result(records, || self.table.now()));
            consume_budget().await;
        }
        Ok(result.source)
    }
}
