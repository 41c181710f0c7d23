//! The table: its identity, its creation, and the survey of its items.

use std::time::Duration;

use aws_sdk_dynamodb::{
    error::ProvideErrorMetadata as _,
    primitives::DateTime,
    types::{
        AttributeDefinition, AttributeValue, BillingMode, CreateGlobalSecondaryIndexAction,
        GlobalSecondaryIndex, GlobalSecondaryIndexUpdate, IndexStatus, KeySchemaElement, KeyType,
        Projection, ProjectionType, ScalarAttributeType, StreamSpecification, StreamViewType,
        TableDescription, TableStatus, TimeToLiveSpecification, TimeToLiveStatus,
    },
};

use super::{DynamoDb, failed, primary_key, primary_key_of, to_item, unusable};
use crate::{
    domain::{Key, Record, Role},
    store::{
        Error, ErrorKind,
        item::{self, ERASURE, EXPIRE_TIME, PURGE_TIME, ROLE, STATE, TOMBSTONE},
        keys::{
            self, INVERTED_INDEX, LIST_INDEX, LIST_KEY, OWNER_INDEX, OWNER_OF, PARTITION_KEY,
            SORT_KEY,
        },
    },
};

/// Longest wait for an active table: its indexes are filled meanwhile.
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Intervals of checking a new table: short at first, for local servers.
const ACTIVE_POLL: [Duration; 2] = [Duration::from_millis(5), Duration::from_secs(1)];

/// The result of [`DynamoDb::create_table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The table was created.
    Whole,
    /// The table existed. Missing indexes, stream or time to live were added.
    Parts,
    /// The table existed, with index and stream.
    Nothing,
}

/// Items that are not served as their writers may expect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Records whose names are too long or have control characters: they are not served.
    pub names: Finding,
    /// Memberships with an unknown role: they grant nothing.
    pub roles: Finding,
    /// Users and organizations in an unknown state: they count as suspended.
    pub states: Finding,
}

/// Items of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// Number of items.
    pub count: u64,
    /// Partition key and sort key of the first ones, at most five.
    pub examples: Vec<(String, String)>,
}

/// Most items that one request of a survey reads.
const SURVEY_PAGE: i32 = 1000;
/// Most examples of a [`Finding`].
const MAX_EXAMPLES: usize = 5;

impl Finding {
    fn add(&mut self, primary: &(String, String)) {
        self.count += 1;
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(primary.clone());
        }
    }
}

impl DynamoDb {
    /// The table's id or, if the endpoint has none, its ARN and creation time.
    pub(super) async fn identity(&self) -> Result<String, Error> {
        let table = self.describe().await?;
        self.check_keys(&table)?;
        if let Some(id) = table.table_id() {
            return Ok(id.to_owned());
        }
        let arn = table.table_arn().unwrap_or(&self.table);
        let created = table.creation_date_time().map_or(0, DateTime::secs);
        Ok(format!("{}@{created}", arn.replace('/', "|")))
    }

    /// Creates the table with on-demand capacity, its indexes, its stream and its time to live, and
    /// waits until it is active. Adds the missing parts to an existing table, and returns the
    /// findings of its survey.
    ///
    /// # Errors
    /// The table cannot be created, described or updated, or exists with other keys.
    pub async fn create_table(&self) -> Result<(Created, Findings), Error> {
        let table = match self.describe().await {
            Ok(table) => table,
            Err(error) if error.kind == ErrorKind::Missing => {
                self.send_create().await?;
                self.wait_until_active().await?;
                self.let_items_expire().await?;
                return Ok((Created::Whole, Findings::default()));
            }
            Err(error) => return Err(error),
        };
        self.check_keys(&table)?;
        self.wait_until_active().await?;
        let mut created = Created::Nothing;
        if !has_stream(&table) {
            let update = self.client.update_table().table_name(&self.table);
            let update = update.stream_specification(stream()?);
            update.send().await.map_err(failed)?;
            self.wait_until_active().await?;
            created = Created::Parts;
        }
        for index in indexes()? {
            if has_index(&table, index.key_schema()) {
                continue;
            }
            let mut update = self.client.update_table().table_name(&self.table);
            for attribute in index.key_schema() {
                update = update.attribute_definitions(text_attribute(attribute.attribute_name())?);
            }
            let create = CreateGlobalSecondaryIndexAction::builder()
                .index_name(index.index_name())
                .set_key_schema(Some(index.key_schema().to_vec()))
                .set_projection(index.projection)
                .build()
                .map_err(unusable)?;
            let create = GlobalSecondaryIndexUpdate::builder().create(create).build();
            let update = update.global_secondary_index_updates(create);
            update.send().await.map_err(failed)?;
            self.wait_until_active().await?;
            created = Created::Parts;
        }
        let (indexed, findings) = self.survey().await?;
        if indexed > 0 {
            created = Created::Parts;
        }
        if self.let_items_expire().await? {
            created = Created::Parts;
        }
        Ok((created, findings))
    }

    /// Reads the whole table. Adds the index attributes to records of other writers and of
    /// earlier versions. Returns the number of these records, and the findings.
    async fn survey(&self) -> Result<(usize, Findings), Error> {
        let mut items = self
            .client
            .scan()
            .table_name(&self.table)
            .filter_expression("begins_with(PK, :user) OR begins_with(PK, :organization)")
            .limit(SURVEY_PAGE)
            .projection_expression("PK, SK, #list, #owner_of, #role, #state, #purge, #erasure")
            .expression_attribute_names("#list", LIST_KEY)
            .expression_attribute_names("#owner_of", OWNER_OF)
            .expression_attribute_names("#role", ROLE)
            .expression_attribute_names("#state", STATE)
            .expression_attribute_names("#purge", PURGE_TIME)
            .expression_attribute_names("#erasure", ERASURE)
            .expression_attribute_values(":user", AttributeValue::S("USER#".to_owned()))
            .expression_attribute_values(":organization", AttributeValue::S("ORG".to_owned()))
            .into_paginator()
            .items()
            .send();
        let (mut indexed, mut findings) = (0, Findings::default());
        while let Some(item) = items.try_next().await.map_err(failed)? {
            let Some(primary) = primary_key_of(&item) else {
                continue;
            };
            let Some(key) = keys::key_of_item(&primary.0, &primary.1) else {
                if keys::is_of_record(&primary.0, &primary.1) {
                    findings.names.add(&primary);
                }
                continue;
            };
            let is_in_index = |index: &str| item.contains_key(index);
            let (is_listed, is_in_owner_index) = (is_in_index(LIST_KEY), is_in_index(OWNER_OF));
            let item = to_item(item);
            let is_indexed = match item::decode(&key, &item) {
                None => true,
                Some(Record::Membership(membership)) => {
                    if membership.role.is_none() {
                        findings.roles.add(&primary);
                    }
                    membership.role != Some(Role::Owner) || is_in_owner_index
                }
                Some(Record::User(_) | Record::Organization(_)) => {
                    if !item::has_known_state(&item) {
                        findings.states.add(&primary);
                    }
                    is_listed
                }
            };
            if !is_indexed && self.index(&key).await? {
                indexed += 1;
            }
        }
        Ok((indexed, findings))
    }

    /// Adds the index attribute to a record. Returns whether it was missing.
    async fn index(&self, key: &Key) -> Result<bool, Error> {
        let primary = keys::of(key);
        let update = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(primary_key(&primary)))
            .update_expression("SET #index = :index");
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let update = match keys::list_key(key) {
            Some(list_key) => update
                .condition_expression(
                    "attribute_exists(PK) AND attribute_not_exists(#index) \
                     AND NOT #state = :tombstone",
                )
                .expression_attribute_names("#index", LIST_KEY)
                .expression_attribute_names("#state", STATE)
                .expression_attribute_values(":tombstone", text(TOMBSTONE))
                .expression_attribute_values(":index", AttributeValue::S(list_key)),
            None => update
                .condition_expression(
                    "#role = :owner AND attribute_not_exists(#index) \
                     AND NOT attribute_type(#end, :number)",
                )
                .expression_attribute_names("#end", EXPIRE_TIME)
                .expression_attribute_values(":number", text("N"))
                .expression_attribute_names("#index", OWNER_OF)
                .expression_attribute_names("#role", ROLE)
                .expression_attribute_values(":index", AttributeValue::S(primary.0))
                .expression_attribute_values(":owner", text(Role::Owner.as_str())),
        };
        match update.send().await {
            Ok(_) => Ok(true),
            // Another process added it, or the record has changed.
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Enables time to live. Returns whether it was disabled.
    async fn let_items_expire(&self) -> Result<bool, Error> {
        let describe = self.client.describe_time_to_live().table_name(&self.table);
        let described = describe.send().await.map_err(failed)?;
        let status = described
            .time_to_live_description
            .and_then(|description| description.time_to_live_status);
        if let Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling) = status {
            return Ok(false);
        }
        let specification = TimeToLiveSpecification::builder()
            .enabled(true)
            .attribute_name(EXPIRE_TIME)
            .build()
            .map_err(unusable)?;
        let update = self.client.update_time_to_live().table_name(&self.table);
        let update = update.time_to_live_specification(specification);
        update.send().await.map_err(failed)?;
        Ok(true)
    }

    pub(super) async fn describe(&self) -> Result<TableDescription, Error> {
        let output = self
            .client
            .describe_table()
            .table_name(&self.table)
            .send()
            .await
            .map_err(failed)?;
        output
            .table
            .ok_or_else(|| Error::new(ErrorKind::Unusable, "DescribeTable returned no table"))
    }

    fn check_keys(&self, table: &TableDescription) -> Result<(), Error> {
        let keys: Vec<_> = table
            .key_schema()
            .iter()
            .map(|key| (key.attribute_name(), key.key_type()))
            .collect();
        if keys == [(PARTITION_KEY, &KeyType::Hash), (SORT_KEY, &KeyType::Range)] {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unusable,
            format!(
                "table {} has other keys than partition key {PARTITION_KEY} and sort key {SORT_KEY}",
                self.table
            ),
        ))
    }

    async fn send_create(&self) -> Result<(), Error> {
        let sent = self
            .client
            .create_table()
            .table_name(&self.table)
            .billing_mode(BillingMode::PayPerRequest)
            .attribute_definitions(text_attribute(PARTITION_KEY)?)
            .attribute_definitions(text_attribute(SORT_KEY)?)
            .key_schema(key(PARTITION_KEY, KeyType::Hash)?)
            .key_schema(key(SORT_KEY, KeyType::Range)?)
            .attribute_definitions(text_attribute(LIST_KEY)?)
            .attribute_definitions(text_attribute(OWNER_OF)?)
            .set_global_secondary_indexes(Some(indexes()?.into()))
            .stream_specification(stream()?)
            .send()
            .await;
        match sent {
            Ok(_) => Ok(()),
            // Another process creates it at the same time.
            Err(error) if error.code() == Some("ResourceInUseException") => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    async fn wait_until_active(&self) -> Result<(), Error> {
        let [first_pause, later_pause] = ACTIVE_POLL;
        let wait = async {
            let mut polls = 0_u32;
            loop {
                match self.describe().await {
                    Ok(table) if is_active(&table) => {
                        return Ok(());
                    }
                    // A new table may not be found for a moment.
                    Ok(_) => {}
                    Err(error) if error.kind == ErrorKind::Missing => {}
                    Err(error) => return Err(error),
                }
                polls += 1;
                let pause = if polls < 40 { first_pause } else { later_pause };
                tokio::time::sleep(pause).await;
            }
        };
        tokio::time::timeout(ACTIVE_TIMEOUT, wait)
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("table {} does not become active", self.table),
                ))
            })
    }
}

/// Whether the table and its indexes can be used and changed.
fn is_active(table: &TableDescription) -> bool {
    let mut indexes = table.global_secondary_indexes().iter();
    table.table_status() == Some(&TableStatus::Active)
        && indexes.all(|index| {
            let status = index.index_status();
            status.is_none_or(|status| *status == IndexStatus::Active)
        })
}

/// Whether the table has a stream. An existing stream is not changed.
fn has_stream(table: &TableDescription) -> bool {
    let stream = table.stream_specification();
    stream.is_some_and(StreamSpecification::stream_enabled)
}

fn has_index(table: &TableDescription, keys: &[KeySchemaElement]) -> bool {
    let mut indexes = table.global_secondary_indexes().iter();
    indexes.any(|index| index.key_schema() == keys)
}

/// The indexes: the organizations of a user, all users and organizations, the Owners of an
/// organization.
fn indexes() -> Result<[GlobalSecondaryIndex; 3], Error> {
    let index = |name, keys: [&str; 2], projection| {
        let [hash, range] = keys;
        GlobalSecondaryIndex::builder()
            .index_name(name)
            .key_schema(key(hash, KeyType::Hash)?)
            .key_schema(key(range, KeyType::Range)?)
            .projection(Projection::builder().projection_type(projection).build())
            .build()
            .map_err(unusable)
    };
    Ok([
        index(
            INVERTED_INDEX,
            [SORT_KEY, PARTITION_KEY],
            ProjectionType::KeysOnly,
        )?,
        index(
            LIST_INDEX,
            [LIST_KEY, PARTITION_KEY],
            ProjectionType::KeysOnly,
        )?,
        index(OWNER_INDEX, [OWNER_OF, SORT_KEY], ProjectionType::KeysOnly)?,
    ])
}

fn stream() -> Result<StreamSpecification, Error> {
    StreamSpecification::builder()
        .stream_enabled(true)
        .stream_view_type(StreamViewType::NewAndOldImages)
        .build()
        .map_err(unusable)
}

fn text_attribute(name: &str) -> Result<AttributeDefinition, Error> {
    AttributeDefinition::builder()
        .attribute_name(name)
        .attribute_type(ScalarAttributeType::S)
        .build()
        .map_err(unusable)
}

fn key(name: &str, key_type: KeyType) -> Result<KeySchemaElement, Error> {
    KeySchemaElement::builder()
        .attribute_name(name)
        .key_type(key_type)
        .build()
        .map_err(unusable)
}
