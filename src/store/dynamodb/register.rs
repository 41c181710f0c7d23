//! Registers: items that are replaced by compare-and-swap.

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_sdk_dynamodb::{
    error::ProvideErrorMetadata as _,
    operation::put_item::PutItemError,
    types::{AttributeValue, Put, builders::PutBuilder},
};

use super::{Attributes, DynamoDb, failed, primary_key, unusable};
use crate::{
    domain::Timestamp,
    store::{Error, ErrorKind, Register, Registers, item, keys},
};

#[async_trait]
impl Registers for DynamoDb {
    async fn table_identity(&self) -> Result<String, Error> {
        self.identity().await
    }

    async fn read_register(&self, name: &str) -> Result<Option<Register>, Error> {
        let item = self.get_item(&keys::of_register(name)).await?;
        item.map(|item| decode(name, item)).transpose()
    }

    async fn swap_register(
        &self,
        name: &str,
        found: Option<u64>,
        values: &BTreeMap<String, String>,
    ) -> Result<Option<u64>, Error> {
        let swap = Swap::new(name, found, values);
        let version = swap.version;
        let put = swap.into_put(&self.table).build().map_err(unusable)?;
        let put = self
            .client
            .put_item()
            .table_name(put.table_name)
            .set_item(Some(put.item))
            .set_condition_expression(put.condition_expression)
            .set_expression_attribute_names(put.expression_attribute_names)
            .set_expression_attribute_values(put.expression_attribute_values);
        match Box::pin(put.send()).await {
            Ok(_) => Ok(Some(version)),
            Err(error)
                if matches!(
                    error.as_service_error(),
                    Some(PutItemError::ConditionalCheckFailedException(_))
                ) =>
            {
                Ok(None)
            }
            // Another replica writes it at this moment.
            Err(error) if error.code() == Some("TransactionConflictException") => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

/// A register's next version, which replaces the one that was read.
pub(super) struct Swap {
    pub(super) version: u64,
    attributes: Attributes,
    found: Option<u64>,
}

impl Swap {
    pub(super) fn new(name: &str, found: Option<u64>, values: &BTreeMap<String, String>) -> Self {
        let version = found.map_or_else(first_version, |found| found.saturating_add(1));
        Self {
            version,
            attributes: encode(name, version, values),
            found,
        }
    }

    pub(super) fn into_put(self, table: &str) -> PutBuilder {
        let put = Put::builder()
            .table_name(table)
            .set_item(Some(self.attributes));
        match self.found {
            None => put.condition_expression("attribute_not_exists(PK)"),
            Some(version) => put
                .condition_expression("#ver = :ver")
                .expression_attribute_names("#ver", item::VERSION)
                .expression_attribute_values(":ver", AttributeValue::N(version.to_string())),
        }
    }
}

/// The first version of a register: beyond the versions of a deleted register, because registers
/// are written less than a thousand times a second.
fn first_version() -> u64 {
    u64::try_from(Timestamp::now().0).unwrap_or(1)
}

fn encode(name: &str, version: u64, values: &BTreeMap<String, String>) -> Attributes {
    let mut attributes = primary_key(&keys::of_register(name));
    let values = values.iter();
    attributes.extend(values.map(|(name, text)| (name.clone(), AttributeValue::S(text.clone()))));
    let version = AttributeValue::N(version.to_string());
    attributes.insert(item::VERSION.to_owned(), version);
    attributes
}

fn decode(name: &str, attributes: Attributes) -> Result<Register, Error> {
    let version = attributes
        .get(item::VERSION)
        .and_then(|version| version.as_n().ok()?.parse().ok())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Malformed,
                format!("register {name} has no number {}", item::VERSION),
            )
        })?;
    let values = attributes.into_iter().filter_map(|(name, value)| {
        let is_key = [keys::PARTITION_KEY, keys::SORT_KEY].contains(&name.as_str());
        match value {
            AttributeValue::S(text) if !is_key => Some((name, text)),
            _ => None,
        }
    });
    Ok(Register {
        version,
        values: values.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_begins_beyond_the_versions_of_one_that_was_deleted() {
        let before = Timestamp::now().0;
        let version = Swap::new("generation", None, &BTreeMap::new()).version;
        assert!(i64::try_from(version).unwrap() >= before);
        assert_eq!(
            Swap::new("generation", Some(7), &BTreeMap::new()).version,
            8
        );
    }
}
