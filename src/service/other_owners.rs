//! The search for a remaining Owner when another Owner leaves an organization.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    Refusal,
    read_set::{ReadSet, keys_around, keys_of_member},
};
use crate::{
    coherence::Verdict,
    domain::{Membership, OrganizationName, Username},
    store::{self, DynamoDb, Step},
};

/// Longest read of the index of Owners.
const HINT_PATIENCE: Duration = Duration::from_secs(1);
/// Owners that are read together to find a remaining one.
const OWNERS_AT_ONCE: usize = 25;

/// The search for a remaining Owner when another Owner leaves.
pub(super) struct OtherOwners<'a> {
    table: &'a DynamoDb,
    organization: &'a OrganizationName,
    leaving: &'a Username,
    /// Records of Owners who do not remain, if a refusal is to reveal them.
    others: Option<ReadSet>,
}

impl<'a> OtherOwners<'a> {
    fn of(table: &'a DynamoDb, organization: &'a OrganizationName, leaving: &'a Username) -> Self {
        Self {
            table,
            organization,
            leaving,
            others: None,
        }
    }
}

impl OtherOwners<'_> {
    /// Adds the condition that another lasting Owner remains. Refuses if there is none. The acting
    /// user may be that Owner: its conditions are among `conditions` already. `found` has the
    /// records of the leaving Owner's membership.
    pub(super) async fn require_one<T>(
        table: &DynamoDb,
        acting: Option<&Membership>,
        leaving: &Membership,
        found: &ReadSet,
        conditions: &mut Vec<Step>,
    ) -> Result<Result<(), Verdict<T, Refusal>>, store::Error> {
        let Membership {
            organization_name: organization,
            member_username: leaving,
            ..
        } = leaving;
        let remains =
            |acting: &Membership| acting.member_username != *leaving && acting.is_lasting_owner();
        if acting.is_some_and(remains) {
            return Ok(Ok(()));
        }
        let mut search = OtherOwners::of(table, organization, leaving);
        search.others = Some(ReadSet::empty(table));
        if let Some(remains) = search.find().await? {
            conditions.extend(remains);
            return Ok(Ok(()));
        }
        let mut others = search.others.unwrap_or_else(|| ReadSet::empty(table));
        let mut because_of: Vec<_> = others.keys().cloned().collect();
        because_of.extend(keys_around(organization, leaving));
        others.extend(found.clone());
        let refusal = Refusal::LastOwner(vec![organization.clone()]);
        Ok(Err(others.refuse(because_of, refusal)))
    }

    /// The conditions that another lasting Owner remains if this one is gone. `None` if there is none.
    pub(super) async fn conditions(
        table: &DynamoDb,
        organization: &OrganizationName,
        leaving: &Username,
    ) -> Result<Option<Vec<Step>>, store::Error> {
        OtherOwners::of(table, organization, leaving).find().await
    }

    /// The conditions that another Owner remains. `None` if there is none.
    async fn find(&mut self) -> Result<Option<Vec<Step>>, store::Error> {
        let hints = timeout(HINT_PATIENCE, self.table.owner_hints(self.organization));
        let hints = match hints.await {
            Ok(Ok(hints)) => hints,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the index of Owners cannot be read");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        if let Some(remains) = self.find_among(&hints).await? {
            return Ok(Some(remains));
        }
        // The index may miss an Owner. Only the memberships themselves prove that there is none.
        let mut after = None;
        loop {
            let page = self.table.owners(self.organization, after.as_ref()).await?;
            if let Some(remains) = self.find_among(&page.found).await? {
                return Ok(Some(remains));
            }
            after = match page.next {
                None => return Ok(None),
                next => next,
            };
        }
    }

    /// The conditions that one of these Owners remains. Deleted or suspended users do not count,
    /// and memberships that expire.
    async fn find_among(&mut self, owners: &[Username]) -> Result<Option<Vec<Step>>, store::Error> {
        let organization = self.organization;
        let others: Vec<_> = owners.iter().filter(|it| *it != self.leaving).collect();
        for some in others.chunks(OWNERS_AT_ONCE) {
            let keys = some
                .iter()
                .flat_map(|owner| keys_of_member(organization, owner));
            let found = ReadSet::read(self.table, keys).await?;
            let remaining = some
                .iter()
                .find(|owner| found.is_lasting_owner(organization, owner));
            if let Some(owner) = remaining {
                return Ok(Some(found.still_counts(organization, owner)));
            }
            if let Some(others) = &mut self.others {
                others.extend(found);
            }
        }
        Ok(None)
    }
}
