//! The organizations of which a user is the last Owner.

use std::{collections::HashSet, future::ready, pin::pin};

use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};

use super::{
    MEMBERSHIPS_AT_ONCE, Refusal,
    other_owners::OtherOwners,
    read_set::{ReadSet, keys_of_member},
};
use crate::{
    coherence::Verdict,
    domain::{Key, NameMatch, OrganizationName, Standing, Username},
    store::{self, DynamoDb, Slice, Step},
};

/// Most organizations that a refusal names.
const MAX_NAMED: usize = 10;
/// Most organizations whose other Owners are conditions of one transaction. Each takes up to three of
/// DynamoDB's 100 items.
const MAX_OWNED: usize = 30;
/// Searches for other Owners at once.
const SEARCHES_AT_ONCE: usize = 4;

/// An organization in which a user is an Owner whose membership does not expire.
struct Owned {
    organization: OrganizationName,
    /// The conditions that another such Owner remains. `None`: there is none.
    others: Option<Vec<Step>>,
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
    let (mut owned, mut conditions) = (Vec::new(), Vec::new());
    let mut after = None;
    loop {
        let slice = Slice {
            after: after.as_ref(),
            limit: MEMBERSHIPS_AT_ONCE,
        };
        let page = table.organizations_of(user, &NameMatch::All, slice).await?;
        let (some, deleted) = owned_among(table, user, page.found).await?;
        owned.extend(some);
        conditions.extend(deleted);
        if owned.len() + conditions.len() > MAX_OWNED {
            let refusal = Refusal::TooManyOrganizations(MAX_OWNED);
            return Ok(Err(Verdict::refuse(refusal)));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut without = Vec::new();
    let mut searches = pin!(searches(table, user, &owned));
    while let Some(owned) = searches.try_next().await? {
        match owned.others {
            Some(others) => conditions.extend(others),
            None => without.push(owned.organization),
        }
        if without.len() >= MAX_NAMED {
            break;
        }
    }
    Ok(if without.is_empty() {
        Ok(conditions)
    } else {
        Err(Verdict::refuse(Refusal::LastOwner(without)))
    })
}

/// The organizations of which the user is the last Owner, among these.
pub(super) async fn without_other_owner(
    table: &DynamoDb,
    user: &Username,
    organizations: Vec<OrganizationName>,
) -> Result<HashSet<OrganizationName>, store::Error> {
    let (owned, _) = owned_among(table, user, organizations).await?;
    let without = searches(table, user, &owned)
        .try_filter(|owned| ready(owned.others.is_none()))
        .map_ok(|owned| owned.organization);
    without.try_collect().await
}

/// The organizations in which the user is an Owner whose membership does not expire, also while the
/// user or the organization is suspended. Also the conditions that deleted ones are not undeleted.
async fn owned_among(
    table: &DynamoDb,
    user: &Username,
    mut organizations: Vec<OrganizationName>,
) -> Result<(Vec<OrganizationName>, Vec<Step>), store::Error> {
    let keys = organizations
        .iter()
        .flat_map(|organization| keys_of_member(organization, user));
    let found = ReadSet::read(table, keys).await?;
    let is_owned = |member: Option<Standing>| {
        member.is_some_and(|member| member.membership.is_lasting_owner())
    };
    let deleted = organizations.iter().filter(|organization| {
        let found_organization = found.stored_organization(organization);
        let deleted = found_organization.filter(|it| it.deletion.is_some());
        let undeleted = deleted.map(|it| it.clone().undeleted());
        undeleted.is_some_and(|it| is_owned(found.member_in(&it, user)))
    });
    let deleted = deleted.map(|organization| found.still(Key::Organization(organization.clone())));
    let deleted = deleted.collect();
    organizations.retain(|organization| is_owned(found.member(organization, user)));
    Ok((organizations, deleted))
}

/// Searches for another Owner of each of these organizations.
fn searches<'a>(
    table: &'a DynamoDb,
    user: &'a Username,
    organizations: &'a [OrganizationName],
) -> impl Stream<Item = Result<Owned, store::Error>> + 'a {
    stream::iter(organizations)
        .map(move |organization| async move {
            Ok(Owned {
                organization: organization.clone(),
                others: OtherOwners::conditions(table, organization, user).await?,
            })
        })
        .buffered(SEARCHES_AT_ONCE)
}
