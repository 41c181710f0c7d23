//! Membership checks: the role of a user in an organization, if the user is a member.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tokio::task::consume_budget;

use super::{Accounts, Error, Freshness, Source, read_set::keys_of_member, store_failed};
use crate::domain::{Key, OrganizationName, Record, Role, Username, effective_role};

/// A membership check.
#[derive(Debug, Clone)]
pub struct Check {
    /// The organization.
    pub organization_name: OrganizationName,
    /// The user.
    pub username: Username,
    /// The least role that satisfies the check. `None`: any.
    pub minimum_role: Option<Role>,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckResult {
    /// The member's role; `None` if the user is not a member.
    pub role: Option<Role>,
    /// Whether the user is a member with at least the least role.
    pub is_satisfied: bool,
}

impl CheckResult {
    fn new(role: Option<Role>, minimum_role: Option<Role>) -> Self {
        let is_satisfied = role.is_some_and(|role| minimum_role.is_none_or(|least| role >= least));
        Self { role, is_satisfied }
    }
}

impl Accounts {
    /// Runs one check.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn check(
        &self,
        check: Check,
        freshness: Freshness,
    ) -> Result<(CheckResult, Source), Error> {
        let keys = keys_of_member(&check.organization_name, &check.username);
        let result = self.reads.read(&keys, freshness).await;
        let result = result.map_err(store_failed)?;
        let role = role_of([0, 1, 2].map(|position| result.record(position)));
        Ok((CheckResult::new(role, check.minimum_role), result.source))
    }

    /// Runs many checks. Each record is looked up once.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn check_batch(
        &self,
        checks: &[Check],
        freshness: Freshness,
    ) -> Result<(Vec<CheckResult>, Source), Error> {
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
        let mut results = Vec::with_capacity(checks.len());
        for check in checks {
            let record = |key| result.record(*positions.get(&key)?);
            let role = role_of(keys_of_check(check).map(record));
            results.push(CheckResult::new(role, check.minimum_role));
            consume_budget().await;
        }
        Ok((results, result.source))
    }
}

/// The effective role, from the records of [`keys_of_member`].
fn role_of(records: [Option<&Record>; 3]) -> Option<Role> {
    match records {
        [
            Some(Record::User(user)),
            Some(Record::Organization(organization)),
            Some(Record::Membership(membership)),
        ] => effective_role(user, organization, membership),
        _ => None,
    }
}
