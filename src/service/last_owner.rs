//! The organizations of which a user is the last Owner.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    MEMBERSHIPS_AT_ONCE, Refusal,
    other_owners::OtherOwners,
    read_set::{ReadSet, keys_of_member},
};
use crate::{
    coherence::Verdict,
    domain::{OrganizationName, Username},
    store::{self, DynamoDb, NameMatch, Slice, Step},
};

/// Most organizations that a refusal names.
const MAX_NAMED: usize = 10;
/// Most organizations whose other Owners are conditions of one transaction. Each takes up to three of
/// DynamoDB's 100 items.
const MAX_OWNED: usize = 30;
/// Searches for other Owners at once.
const SEARCHES_AT_ONCE: usize = 4;

/// An organization in which a user is an Owner whose membership does not expire.
pub(super) struct Owned {
    pub(super) organization: OrganizationName,
    /// The conditions that another such Owner remains. `None`: there is none.
    pub(super) others: Option<Vec<Step>>,
}

/// Requires that each organization of a user keeps another Owner, if that `is_required`. Returns the
/// conditions for that. The organizations are found by an index, which may miss those of the last
/// moments.
pub(super) async fn require_other_owners<T>(
    table: &DynamoDb,
    user: &Username,
    is_required: bool,
) -> Result<Result<Vec<Step>, Verdict<T, Refusal>>, store::Error> {
    if !is_required {
        return Ok(Ok(Vec::new()));
    }
    let (mut conditions, mut without, mut count) = (Vec::new(), Vec::new(), 0);
    let mut after = None;
    loop {
        let slice = Slice {
            after: after.as_ref(),
            limit: MEMBERSHIPS_AT_ONCE,
        };
        let page = table.organizations_of(user, &NameMatch::All, slice).await?;
        for owned in owned(table, user, &page.found).await? {
            count += 1;
            match owned.others {
                Some(others) => conditions.extend(others),
                None => without.push(owned.organization),
            }
        }
        after = page.next;
        if without.len() >= MAX_NAMED || after.is_none() {
            break;
        }
    }
    without.truncate(MAX_NAMED);
    Ok(match (without.is_empty(), count <= MAX_OWNED) {
        (false, _) => Err(Verdict::Deny(Refusal::LastOwner(without))),
        (true, false) => Err(Verdict::Deny(Refusal::TooManyOrganizations(MAX_OWNED))),
        (true, true) => Ok(conditions),
    })
}

/// The organizations in which the user is an Owner whose membership does not expire, also while the
/// user or the organization is suspended.
pub(super) async fn owned(
    table: &DynamoDb,
    user: &Username,
    organizations: &[OrganizationName],
) -> Result<Vec<Owned>, store::Error> {
    let keys = organizations
        .iter()
        .flat_map(|organization| keys_of_member(organization, user));
    let found = ReadSet::read(table, keys).await?;
    let is_owner = |organization: &&OrganizationName| {
        let member = found.member(organization, user);
        member.is_some_and(|member| member.membership.is_lasting_owner())
    };
    let owned = organizations.iter().filter(is_owner);
    let searches = owned.map(async |organization| {
        Ok(Owned {
            organization: organization.clone(),
            others: OtherOwners::conditions(table, organization, user).await?,
        })
    });
    let searches: Vec<_> = searches.collect();
    stream::iter(searches)
        .buffered(SEARCHES_AT_ONCE)
        .try_collect()
        .await
}
