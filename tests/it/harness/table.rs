//! A client of the table that bypasses the service.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use aws_sdk_dynamodb::types::AttributeValue;

use super::credentials;

/// A client of the table that bypasses the service.
pub struct Table {
    pub client: aws_sdk_dynamodb::Client,
    /// The table's name.
    pub name: String,
    url: String,
}

impl Table {
    pub(super) fn new(url: &str, name: &str) -> Self {
        Self {
            client: dynamodb_client(url),
            name: name.to_owned(),
            url: url.to_owned(),
        }
    }

    /// Puts an item of text attributes.
    pub async fn put(&self, attributes: &[(&str, &str)]) {
        let item = attributes.iter().map(|(name, text)| {
            let text = AttributeValue::S((*text).to_owned());
            ((*name).to_owned(), text)
        });
        let put = self.client.put_item().table_name(&self.name);
        put.set_item(Some(item.collect())).send().await.unwrap();
    }

    /// Disables the table's stream, because the servers of tests write more slowly the more
    /// records their stream holds.
    pub async fn end_stream(&self) {
        let stream = aws_sdk_dynamodb::types::StreamSpecification::builder();
        let stream = stream.stream_enabled(false).build().unwrap();
        let table = self.client.update_table().table_name(&self.name);
        table.stream_specification(stream).send().await.unwrap();
    }

    /// Puts many items of text attributes.
    pub async fn put_many(&self, items: Vec<Vec<(&str, String)>>) {
        use aws_sdk_dynamodb::types::{PutRequest, WriteRequest};
        use futures_util::StreamExt as _;
        let write = |items: &[Vec<(&str, String)>]| {
            let requests = items.iter().map(|item| {
                let item = item.iter();
                let item =
                    item.map(|(name, text)| ((*name).to_owned(), AttributeValue::S(text.clone())));
                let put = PutRequest::builder().set_item(Some(item.collect()));
                WriteRequest::builder()
                    .put_request(put.build().unwrap())
                    .build()
            });
            let write = self.client.batch_write_item();
            write.request_items(&self.name, requests.collect()).send()
        };
        let batches: Vec<_> = items.chunks(25).map(write).collect();
        let mut written = futures_util::stream::iter(batches).buffer_unordered(4);
        while let Some(written) = written.next().await {
            let unprocessed = written.unwrap().unprocessed_items.unwrap_or_default();
            assert!(unprocessed.is_empty());
        }
    }

    /// Changes a text attribute of an item.
    pub async fn set_text(&self, pk: &str, sk: &str, name: &str, text: &str) {
        let value = |text: &str| AttributeValue::S(text.to_owned());
        let update = self.client.update_item().table_name(&self.name);
        let update = update.key("PK", value(pk)).key("SK", value(sk));
        let update = update
            .update_expression("SET #name = :text")
            .expression_attribute_names("#name", name)
            .expression_attribute_values(":text", value(text));
        update.send().await.unwrap();
    }

    /// The names of the table's stream and of its first shard.
    pub async fn stream_and_shard(&self) -> (String, String) {
        let table = self.client.describe_table().table_name(&self.name);
        let table = table.send().await.unwrap().table.unwrap();
        let arn = table.latest_stream_arn.unwrap();
        let config = aws_sdk_dynamodbstreams::Config::builder()
            .behavior_version(aws_sdk_dynamodbstreams::config::BehaviorVersion::latest())
            .region(aws_sdk_dynamodbstreams::config::Region::new("us-east-1"))
            .credentials_provider(credentials())
            .endpoint_url(&self.url)
            .build();
        let streams = aws_sdk_dynamodbstreams::Client::from_conf(config);
        let described = streams.describe_stream().stream_arn(&arn).send().await;
        let description = described.unwrap().stream_description.unwrap();
        (arn, description.shards()[0].shard_id().unwrap().to_owned())
    }

    /// All items with a partition key, by sort key.
    pub async fn partition(&self, pk: &str) -> BTreeMap<String, HashMap<String, AttributeValue>> {
        let query = self.client.query().table_name(&self.name);
        let query = query
            .consistent_read(true)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(pk.to_owned()));
        let items = query.into_paginator().items().send();
        let items = items.collect::<Result<Vec<_>, _>>().await.unwrap();
        let by_sort_key = |item: HashMap<_, AttributeValue>| {
            let sk = item["SK"].as_s().unwrap().clone();
            (sk, item)
        };
        items.into_iter().map(by_sort_key).collect()
    }

    /// All items.
    pub async fn items(&self) -> Vec<HashMap<String, AttributeValue>> {
        let scan = self.client.scan().table_name(&self.name);
        let items = scan.consistent_read(true).into_paginator().items().send();
        items.collect::<Result<_, _>>().await.unwrap()
    }

    /// Puts an item.
    pub async fn put_item(&self, item: HashMap<String, AttributeValue>) {
        let put = self.client.put_item().table_name(&self.name);
        put.set_item(Some(item)).send().await.unwrap();
    }

    /// Deletes an item.
    pub async fn delete(&self, pk: &str, sk: &str) {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let delete = self.client.delete_item().table_name(&self.name);
        let delete = delete.key("PK", text(pk)).key("SK", text(sk));
        delete.send().await.unwrap();
    }

    /// Drops an index, and waits until it is gone.
    pub async fn drop_index(&self, name: &str) {
        use aws_sdk_dynamodb::types::{
            DeleteGlobalSecondaryIndexAction as Delete, GlobalSecondaryIndexUpdate,
        };
        let delete = Delete::builder().index_name(name).build().unwrap();
        let update = GlobalSecondaryIndexUpdate::builder().delete(delete).build();
        let table = self.client.update_table().table_name(&self.name);
        let table = table.global_secondary_index_updates(update);
        table.send().await.unwrap();
        let has_index = async || {
            let table = self.client.describe_table().table_name(&self.name);
            let table = table.send().await.unwrap().table.unwrap();
            let mut indexes = table.global_secondary_indexes().iter();
            indexes.any(|index| index.index_name() == Some(name))
        };
        while has_index().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Deletes the first change after a cursor from the log of changes.
    pub async fn expire_first_logged(&self, cursor: &str) {
        let (log, after) = cursor.split_once('-').unwrap();
        let number = after.parse::<u64>().unwrap() + 1;
        self.delete_logged(log, number..number + 1).await;
    }

    /// Deletes these changes of a log, as if their time to live were over.
    pub async fn delete_logged(&self, log: &str, numbers: std::ops::Range<u64>) {
        use futures_util::StreamExt as _;
        let deletions = numbers.map(async |number| {
            let pk = format!("CHANGELOG#{log}#{}", number / 1000);
            self.delete(&pk, &format!("{number:020}")).await;
        });
        let deletions: Vec<_> = deletions.collect();
        let deletions = futures_util::stream::iter(deletions).buffer_unordered(4);
        deletions.collect::<()>().await;
    }

    /// The number of items under a partition key whose sort keys have this prefix.
    pub async fn count(&self, pk: &str, sk: &str) -> usize {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let query = self.client.query().table_name(&self.name);
        let query = query
            .key_condition_expression("PK = :pk AND begins_with(SK, :sk)")
            .expression_attribute_values(":pk", text(pk))
            .expression_attribute_values(":sk", text(sk));
        let items = query.into_paginator().items().send();
        items.collect::<Result<Vec<_>, _>>().await.unwrap().len()
    }

    /// A number attribute of an item.
    pub async fn number(&self, pk: &str, sk: &str, name: &str) -> Option<u64> {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let get = self.client.get_item().table_name(&self.name);
        let get = get.key("PK", text(pk)).key("SK", text(sk));
        let item = get.consistent_read(true).send().await.unwrap().item?;
        item.get(name)?.as_n().ok()?.parse().ok()
    }

    /// The attribute with the time at which items expire.
    pub async fn expiring_attribute(&self) -> Option<String> {
        let describe = self.client.describe_time_to_live().table_name(&self.name);
        let described = describe.send().await.unwrap();
        described.time_to_live_description?.attribute_name
    }

    /// The names of an item's attributes, sorted; `None` if there is no item.
    pub async fn attributes_of(&self, pk: &str, sk: &str) -> Option<Vec<String>> {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let get = self.client.get_item().table_name(&self.name);
        let get = get.key("PK", text(pk)).key("SK", text(sk));
        let item = get.consistent_read(true).send().await.unwrap().item?;
        let mut names: Vec<_> = item.into_keys().collect();
        names.sort();
        Some(names)
    }
}

fn dynamodb_client(url: &str) -> aws_sdk_dynamodb::Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
        .region(aws_sdk_dynamodb::config::Region::new("us-east-1"))
        .credentials_provider(credentials())
        .endpoint_url(url)
        .build();
    aws_sdk_dynamodb::Client::from_conf(config)
}
