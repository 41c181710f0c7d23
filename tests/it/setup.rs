//! Setup of tables that are missing, being created, or not accessible.

use account_service::{boot::provision, config::BackendSettings};

use crate::harness::{Backends, script::error_body};

/// A table with one index, as DynamoDB describes it.
fn described(table_status: &str, index_status: &str) -> String {
    let keys =
        r#"[{"AttributeName":"PK","KeyType":"HASH"},{"AttributeName":"SK","KeyType":"RANGE"}]"#;
    format!(
        r#"{{"Table":{{"TableStatus":"{table_status}","KeySchema":{keys},"GlobalSecondaryIndexes":
        [{{"IndexName":"SK-PK-index","IndexStatus":"{index_status}"}}]}}}}"#
    )
}

async fn refusal(settings: &BackendSettings) -> String {
    provision::run(settings, None)
        .await
        .unwrap_err()
        .to_string()
}

#[tokio::test]
async fn two_concurrent_setups_both_succeed() {
    let backends = Backends::start().await;
    let settings = backends.settings_of_another_table().backends;
    let create = backends
        .dynamodb
        .hold("CreateTable", &settings.table_name, 0);
    let first = tokio::spawn({
        let settings = settings.clone();
        async move { provision::run(&settings, None).await }
    });
    create.reached().await;
    assert_eq!(
        provision::run(&settings, None).await.unwrap().table,
        "created"
    );
    create.release();
    assert_eq!(first.await.unwrap().unwrap().table, "created");
}

#[tokio::test]
async fn setup_waits_until_a_new_table_and_its_indexes_can_be_used() {
    let backends = Backends::start().await;
    let settings = backends.settings_of_another_table().backends;
    let script = &backends.dynamodb;
    let not_found = error_body("ResourceNotFoundException");
    // A table may not be visible directly after its creation.
    script.answer("DescribeTable", 2, 400, &not_found);
    script.answer("DescribeTable", 1, 200, &described("CREATING", "ACTIVE"));
    script.answer("DescribeTable", 1, 200, &described("ACTIVE", "CREATING"));
    script.forget_calls();
    assert_eq!(
        provision::run(&settings, None).await.unwrap().table,
        "created"
    );
    assert_eq!(script.seen("DescribeTable").len(), 5);
}

#[tokio::test]
async fn setup_reports_a_missing_permission_without_a_wait() {
    let backends = Backends::start().await;
    let script = &backends.dynamodb;
    let denied = error_body("AccessDeniedException");
    let not_found = error_body("ResourceNotFoundException");
    script.answer("CreateTable", 1, 400, &denied);
    assert!(
        refusal(&backends.settings_of_another_table().backends)
            .await
            .contains("said the test")
    );
    script.answer("DescribeTable", 1, 400, &not_found);
    script.answer("DescribeTable", 1, 400, &denied);
    assert!(
        refusal(&backends.settings_of_another_table().backends)
            .await
            .contains("said the test")
    );
    // Setup has to put a record of an earlier version into its index.
    let table = backends.table();
    let (pk, sk) = ("USER#oliviaowner", "USER#oliviaowner");
    table.put(&[("PK", pk), ("SK", sk)]).await;
    script.answer("UpdateItem", 1, 400, &denied);
    let settings = backends.serve_settings().backends;
    assert!(refusal(&settings).await.contains("said the test"));
}

#[tokio::test]
async fn a_record_that_is_deleted_while_setup_indexes_it_stays_deleted() {
    let backends = Backends::start().await;
    let settings = backends.serve_settings().backends;
    let table = backends.table();
    let (pk, sk) = ("USER#oliviaowner", "USER#oliviaowner");
    table.put(&[("PK", pk), ("SK", sk)]).await;
    let update = backends.dynamodb.hold("UpdateItem", pk, 0);
    let setup = tokio::spawn(async move { provision::run(&settings, None).await });
    update.reached().await;
    table.delete(pk, sk).await;
    update.release();
    assert_eq!(setup.await.unwrap().unwrap().table, "exists");
    assert_eq!(table.attributes_of(pk, sk).await, None);
}

#[tokio::test]
async fn a_table_with_other_keys_is_rejected() {
    use aws_sdk_dynamodb::types::{
        AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    };
    let backends = Backends::start().await;
    let settings = backends.settings_of_another_table().backends;
    let key = KeySchemaElement::builder().attribute_name("id");
    let attribute = AttributeDefinition::builder().attribute_name("id");
    let attribute = attribute.attribute_type(ScalarAttributeType::S);
    let create = backends.table().client.create_table();
    let create = create
        .table_name(&settings.table_name)
        .billing_mode(BillingMode::PayPerRequest)
        .key_schema(key.key_type(KeyType::Hash).build().unwrap())
        .attribute_definitions(attribute.build().unwrap());
    create.send().await.unwrap();
    assert!(refusal(&settings).await.contains("has other keys"));
}
