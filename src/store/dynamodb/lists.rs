//! Queries of lists, page by page: members from the table, the other lists from its indexes.

use std::collections::HashMap;

use aws_sdk_dynamodb::{
    error::ProvideErrorMetadata as _,
    operation::query::{QueryOutput, builders::QueryFluentBuilder},
    types::AttributeValue,
};
use futures_util::future::try_join_all;

use super::{Attributes, DynamoDb, decode, failed, primary_key, primary_key_of};
use crate::{
    domain::{Key, Membership, NameMatch, OrganizationName, ProfileName, Record, Role, Username},
    store::{
        Error, ErrorKind, ListPage, ListPosition, OWNER_HINTS, ProfileKind, Slice,
        item::{EXPIRE_TIME, ROLE},
        keys::{
            self, INVERTED_INDEX, LIST_INDEX, LIST_KEY, OWNER_INDEX, OWNER_OF, PARTITION_KEY,
            SORT_KEY,
        },
    },
};

/// Lists, page by page. A page may have fewer entries than the limit, or none. A record that
/// is created or deleted meanwhile may be missing. Every other record is on exactly one page.
impl DynamoDb {
    /// The memberships of an organization by the member's name, strongly consistent,
    /// ineffective ones included.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn members(
        &self,
        organization: &OrganizationName,
        names: &NameMatch,
        slice: Slice<'_>,
    ) -> Result<ListPage<Membership>, Error> {
        let pk = keys::members_of(organization);
        let start = slice
            .after
            .map(|ListPosition(sk)| primary_key(&(pk.clone(), sk.clone())));
        let query = self.client.query().consistent_read(true);
        let query = with_keys(query, (PARTITION_KEY, pk), (SORT_KEY, keys::MEMBER), names);
        let output = self.page(query, start, Some(slice.limit)).await?;
        let next = last_key(&output, SORT_KEY);
        let items = output.items.unwrap_or_default().into_iter();
        let found = items.filter_map(|item| {
            let (pk, sk) = primary_key_of(&item)?;
            decode(&keys::key_of_item(&pk, &sk)?, item)?.into_membership()
        });
        let found = found.collect();
        Ok(ListPage { found, next })
    }

    /// The organizations of which a user was a member moments ago, by name.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn organizations_of(
        &self,
        user: &Username,
        names: &NameMatch,
        slice: Slice<'_>,
    ) -> Result<ListPage<OrganizationName>, Error> {
        let sk = keys::member_sort(user);
        let start = slice
            .after
            .map(|ListPosition(pk)| primary_key(&(pk.clone(), sk.clone())));
        let query = self.client.query().index_name(INVERTED_INDEX);
        let query = with_keys(
            query,
            (SORT_KEY, sk),
            (PARTITION_KEY, keys::MEMBERS_OF),
            names,
        );
        let output = self.page(query, start, Some(slice.limit)).await?;
        let next = last_key(&output, PARTITION_KEY);
        let keys = keys_in(output);
        let found = keys.filter_map(|key| match key {
            Key::Membership(organization, _) => Some(organization),
            _ => None,
        });
        Ok(ListPage {
            found: found.collect(),
            next,
        })
    }

    /// The memberships under the name of a user or an organization, each read strongly, ineffective ones
    /// included. Those of a user are found by an index, as of moments ago.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn memberships_under(
        &self,
        name: &ProfileName,
        slice: Slice<'_>,
    ) -> Result<ListPage<Membership>, Error> {
        let username = match name {
            ProfileName::Organization(name) => {
                return self.members(name, &NameMatch::All, slice).await;
            }
            ProfileName::User(username) => username,
        };
        let listed = self
            .organizations_of(username, &NameMatch::All, slice)
            .await?;
        let key = |organization| Key::Membership(organization, username.clone());
        let keys: Vec<_> = listed.found.into_iter().map(key).collect();
        let records = self.read_strong(&keys).await?.into_iter().flatten();
        Ok(ListPage {
            found: records.filter_map(Record::into_membership).collect(),
            next: listed.next,
        })
    }

    /// All users, or all organizations, as of moments ago, in no particular order.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn profiles(
        &self,
        kind: ProfileKind,
        names: &NameMatch,
        slice: Slice<'_>,
    ) -> Result<ListPage<Key>, Error> {
        let mut found = Vec::new();
        let (mut shard, mut after) = match slice.after {
            None => (0, None),
            Some(position) => parse_directory_place(position)?,
        };
        loop {
            let room = usize::from(slice.limit).saturating_sub(found.len());
            let room = u16::try_from(room).unwrap_or(slice.limit);
            let output = self
                .profiles_of_shard((kind, shard), names, after.take(), room)
                .await?;
            let last = last_key(&output, PARTITION_KEY);
            found.extend(keys_in(output));
            let next = match last {
                Some(ListPosition(pk)) => Some(format!("{shard}|{pk}")),
                None if shard + 1 < keys::LIST_SHARDS => {
                    shard += 1;
                    Some(format!("{shard}|"))
                }
                None => None,
            };
            let is_full = found.len() >= usize::from(slice.limit);
            match next {
                Some(next) if is_full => {
                    return Ok(ListPage {
                        found,
                        next: Some(ListPosition(next)),
                    });
                }
                Some(next) => (shard, after) = parse_directory_place(&ListPosition(next))?,
                None => return Ok(ListPage { found, next: None }),
            }
        }
    }
}

impl DynamoDb {
    /// The same, by name: reads the limit from each partition of the index.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn profiles_by_name(
        &self,
        kind: ProfileKind,
        names: &NameMatch,
        slice: Slice<'_>,
    ) -> Result<ListPage<Key>, Error> {
        let after = slice.after.map(|ListPosition(pk)| pk.clone());
        let shards = (0..keys::LIST_SHARDS)
            .map(|shard| self.profiles_of_shard((kind, shard), names, after.clone(), slice.limit));
        let outputs = try_join_all(shards).await?;
        // Entries beyond the end of a partition's page may be missing.
        let complete_until = outputs
            .iter()
            .filter_map(|output| last_key(output, PARTITION_KEY))
            .map(|ListPosition(pk)| pk)
            .min();
        let mut found: Vec<_> = outputs
            .into_iter()
            .flat_map(|output| output.items.unwrap_or_default())
            .filter_map(|item| primary_key_of(&item))
            .filter(|(pk, _)| complete_until.as_ref().is_none_or(|until| pk <= until))
            .collect();
        found.sort();
        let is_cut = found.len() > usize::from(slice.limit);
        found.truncate(slice.limit.into());
        let next = if is_cut {
            found.last().map(|(pk, _)| pk.clone())
        } else {
            complete_until
        };
        let found = found
            .iter()
            .filter_map(|(pk, sk)| keys::key_of_item(pk, sk));
        Ok(ListPage {
            found: found.collect(),
            next: next.map(ListPosition),
        })
    }

    /// A page of one partition of the index, after the record with this partition key.
    async fn profiles_of_shard(
        &self,
        (kind, shard): (ProfileKind, u8),
        names: &NameMatch,
        after: Option<String>,
        limit: u16,
    ) -> Result<QueryOutput, Error> {
        let list_key = keys::list_key_of_shard(kind, shard);
        let start = after.map(|pk| {
            let mut key = primary_key(&(pk.clone(), pk));
            key.insert(LIST_KEY.to_owned(), AttributeValue::S(list_key.clone()));
            key
        });
        let query = self.client.query().index_name(LIST_INDEX);
        let kind = match kind {
            ProfileKind::Users => keys::USER,
            ProfileKind::Organizations => keys::ORGANIZATION,
        };
        let query = with_keys(query, (LIST_KEY, list_key), (PARTITION_KEY, kind), names);
        self.page(query, start, Some(limit)).await
    }

    /// Returns at most [`OWNER_HINTS`] users who were Owners of the organization moments ago,
    /// by an index: candidates to read first. Empty if the table lacks the index.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn owner_hints(
        &self,
        organization: &OrganizationName,
    ) -> Result<Vec<Username>, Error> {
        let query = self
            .client
            .query()
            .index_name(OWNER_INDEX)
            .key_condition_expression("#owner_of = :pk")
            .expression_attribute_names("#owner_of", OWNER_OF)
            .expression_attribute_values(":pk", AttributeValue::S(keys::members_of(organization)));
        match self.page(query, None, Some(OWNER_HINTS)).await {
            Ok(output) => Ok(members_in(output)),
            Err(error) if error.kind == ErrorKind::NoIndex => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Returns a page of the users whose memberships have the role Owner and no end, deleted users
    /// included. The pages read the whole partition of the organization, up to 1 MB each.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn owners(
        &self,
        organization: &OrganizationName,
        after: Option<&ListPosition>,
    ) -> Result<ListPage<Username>, Error> {
        let pk = keys::members_of(organization);
        let start = after.map(|ListPosition(sk)| primary_key(&(pk.clone(), sk.clone())));
        let query = self
            .client
            .query()
            .consistent_read(true)
            .key_condition_expression("#pk = :pk")
            .filter_expression("#role = :owner AND NOT attribute_type(#end, :number)")
            .projection_expression("#pk, #sk")
            .expression_attribute_names("#pk", PARTITION_KEY)
            .expression_attribute_names("#sk", SORT_KEY)
            .expression_attribute_names("#role", ROLE)
            .expression_attribute_names("#end", EXPIRE_TIME)
            .expression_attribute_values(":number", AttributeValue::S("N".to_owned()))
            .expression_attribute_values(":pk", AttributeValue::S(pk))
            .expression_attribute_values(":owner", AttributeValue::S(Role::Owner.as_str().into()));
        let output = self.page(query, start, None).await?;
        let next = last_key(&output, SORT_KEY);
        Ok(ListPage {
            found: members_in(output),
            next,
        })
    }

    async fn page(
        &self,
        query: QueryFluentBuilder,
        start: Option<Attributes>,
        limit: Option<u16>,
    ) -> Result<QueryOutput, Error> {
        let is_of_index = query.get_index_name().is_some();
        let query = query
            .table_name(&self.table)
            .set_exclusive_start_key(start)
            .set_limit(limit.map(Into::into));
        // Boxed: the futures of the SDK are large.
        Box::pin(query.send()).await.map_err(|error| {
            let is_invalid = error.code() == Some("ValidationException");
            let mut failed = failed(error);
            if is_of_index && is_invalid {
                failed.kind = ErrorKind::NoIndex;
            }
            failed
        })
    }
}

/// Adds the key condition: a partition, and the names in the sort key after `before`.
fn with_keys(
    query: QueryFluentBuilder,
    (partition, value): (&str, String),
    (sort, before): (&str, &str),
    names: &NameMatch,
) -> QueryFluentBuilder {
    let query = query
        .expression_attribute_names("#partition", partition)
        .expression_attribute_values(":partition", AttributeValue::S(value));
    let (condition, name) = match names {
        NameMatch::All => return query.key_condition_expression("#partition = :partition"),
        NameMatch::Prefix(name) => ("begins_with(#sort, :name)", name),
        NameMatch::Exactly(name) => ("#sort = :name", name),
    };
    query
        .key_condition_expression(format!("#partition = :partition AND {condition}"))
        .expression_attribute_names("#sort", sort)
        .expression_attribute_values(":name", AttributeValue::S(format!("{before}{name}")))
}

/// The end of a directory's page: the shard, and the partition key in it.
fn parse_directory_place(
    ListPosition(position): &ListPosition,
) -> Result<(u8, Option<String>), Error> {
    let parsed = position.split_once('|').and_then(|(shard, pk)| {
        let shard = shard
            .parse()
            .ok()
            .filter(|shard| *shard < keys::LIST_SHARDS)?;
        Some((shard, (!pk.is_empty()).then(|| pk.to_owned())))
    });
    parsed.ok_or_else(|| Error::new(ErrorKind::Unusable, "the position is not the end of a page"))
}

pub(super) fn last_key(output: &QueryOutput, name: &str) -> Option<ListPosition> {
    let last: &HashMap<_, _> = output.last_evaluated_key.as_ref()?;
    last.get(name)?.as_s().ok().cloned().map(ListPosition)
}

fn members_in(output: QueryOutput) -> Vec<Username> {
    let members = keys_in(output).filter_map(|key| match key {
        Key::Membership(_, member) => Some(member),
        _ => None,
    });
    members.collect()
}

fn keys_in(output: QueryOutput) -> impl Iterator<Item = Key> {
    let items = output.items.unwrap_or_default().into_iter();
    items.filter_map(|item| {
        let (pk, sk) = primary_key_of(&item)?;
        keys::key_of_item(&pk, &sk)
    })
}
