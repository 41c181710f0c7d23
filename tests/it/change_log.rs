//! The change log in the table, as its writer and its readers use it.

use std::{collections::BTreeMap, sync::Arc};

use account_service::{
    domain::{ChangeKind, Key, RecordChange, Timestamp, Username},
    store::{self, DynamoDb, LogId, LogPage, MAX_APPENDED, Registers as _},
};

use aws_sdk_dynamodb::config::{BehaviorVersion, Region, SharedCredentialsProvider};

use crate::harness::{Backends, credentials, script::error_body, table_timeout};

const REGISTER: &str = "position";

struct Log {
    table: Arc<DynamoDb>,
    id: LogId,
    values: BTreeMap<String, String>,
    version: u64,
}

impl Log {
    async fn begin(backends: &Backends) -> Self {
        let settings = backends.serve_settings().backends;
        let aws = aws_config::SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials()))
            .build();
        let table = store::TableSettings {
            table: settings.table_name,
            endpoint: settings.dynamodb_endpoint,
            attempt_timeout: settings.dynamodb_attempt_timeout_ms,
            operation_timeout: table_timeout(),
            wall_clock: Timestamp::now,
        };
        let table = Arc::new(DynamoDb::new(&aws, table));
        let values = BTreeMap::new();
        let version = table.swap_register(REGISTER, None, &values).await;
        Self {
            table,
            id: LogId("0123456789abcdef0123456789abcdef".to_owned()),
            values,
            version: version.unwrap().unwrap(),
        }
    }

    /// Appends this number of changes, on the condition that the register has version `found`.
    async fn append(&self, first: u64, changes: usize, found: u64) -> Option<u64> {
        let change = RecordChange {
            key: Key::User(Username::parse_new("oliviaowner").unwrap()),
            kind: ChangeKind::Deleted,
            before: None,
            after: None,
            time: None,
            made: None,
        };
        let register = (REGISTER, found, &self.values);
        let changes = vec![change; changes];
        let appended = self
            .table
            .append(&self.id, page(first, &changes), register)
            .await;
        appended.unwrap()
    }

    /// Fills the log up to this number.
    async fn fill(&mut self, end: u64) {
        let mut first = 1;
        while first < end {
            let count = (end - first).min(MAX_APPENDED as u64);
            let count = usize::try_from(count).unwrap();
            let version = self.append(first, count, self.version).await;
            self.version = version.unwrap();
            first += count as u64;
        }
    }
}

/// A page of these changes alone.
fn page(first: u64, changes: &[RecordChange]) -> LogPage<'_> {
    LogPage {
        first,
        changes,
        passed: &[],
        counts: &[],
    }
}

#[tokio::test]
async fn only_one_of_two_writers_appends() {
    let backends = Backends::start().await;
    let log = Log::begin(&backends).await;
    let next = log.append(1, 2, log.version).await.unwrap();
    assert_eq!(next, log.version + 1);
    // Another writer that has found the same version.
    assert_eq!(log.append(1, 1, log.version).await, None);
    let read = log.table.read_log(&log.id, 0).await.unwrap();
    let numbers: Vec<_> = read.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [1, 2]);
    // A rejection for another reason is an error, and no lost race with another writer.
    let denied = error_body("AccessDeniedException");
    backends
        .dynamodb
        .answer("BesideTransactWriteItems", 1, 400, &denied);
    let refused = log
        .table
        .append(&log.id, page(3, &[]), (REGISTER, next, &log.values));
    refused.await.unwrap_err();
}

#[tokio::test]
async fn a_register_that_another_replica_is_writing_is_not_written() {
    let backends = Backends::start().await;
    let log = Log::begin(&backends).await;
    let swap = async || {
        let found = Some(log.version);
        log.table.swap_register(REGISTER, found, &log.values).await
    };
    let script = &backends.dynamodb;
    script.answer(
        "BesidePutItem",
        1,
        400,
        &error_body("TransactionConflictException"),
    );
    assert_eq!(swap().await.unwrap(), None);
    script.answer(
        "BesidePutItem",
        1,
        400,
        &error_body("AccessDeniedException"),
    );
    swap().await.unwrap_err();
    assert_eq!(swap().await.unwrap(), Some(log.version + 1));
}

#[tokio::test]
async fn the_oldest_kept_change_is_found_in_any_block() {
    const END: u64 = 2150;
    let backends = Backends::start().await;
    let table = backends.table();
    let mut log = Log::begin(&backends).await;
    assert_eq!(log.table.oldest_kept(&log.id, 1).await.unwrap(), 1);
    log.fill(END).await;
    let mut oldest = 1;
    for kept in [1, 2, 999, 1000, 1001, 1950, 2000, 2149, END] {
        // DynamoDB deletes the oldest ones first.
        table.delete_logged(&log.id.0, oldest..kept).await;
        oldest = kept;
        backends.forget_calls();
        let found = log.table.oldest_kept(&log.id, END).await.unwrap();
        assert_eq!(found, kept);
        // At most two queries find its block, and three find the change in it.
        assert!(backends.dynamodb.seen("BesideQuery").len() <= 5, "{kept}");
    }
}
