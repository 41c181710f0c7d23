//! The embedded Momento, called by the real SDK.

use std::time::Duration;

use momento::{
    MomentoErrorCode,
    cache::{
        CreateCacheResponse, GetResponse, SetIfAbsentOrEqualResponse, SetIfAbsentResponse,
        SetIfEqualResponse, SetIfNotEqualResponse, SetIfPresentAndNotEqualResponse,
        SetIfPresentResponse,
    },
};

use crate::harness::Backends;

const CACHE: &str = "accounts-cache";

async fn value_of(client: &momento::CacheClient, key: &str) -> Option<String> {
    match client.get(CACHE, key).await.unwrap() {
        GetResponse::Hit { value } => Some(value.try_into().unwrap()),
        GetResponse::Miss => None,
    }
}

#[tokio::test]
async fn every_condition_of_a_conditional_set_behaves_as_momento_documents() {
    let backends = Backends::start().await;
    let client = backends.momento_client();

    let stored = client.set_if_present(CACHE, "k", "0").await.unwrap();
    assert_eq!(stored, SetIfPresentResponse::NotStored);
    let stored = client
        .set_if_present_and_not_equal(CACHE, "k", "0", "x")
        .await;
    assert_eq!(stored.unwrap(), SetIfPresentAndNotEqualResponse::NotStored);
    let stored = client.set_if_equal(CACHE, "k", "0", "").await.unwrap();
    assert_eq!(stored, SetIfEqualResponse::NotStored);
    assert_eq!(value_of(&client, "k").await, None);

    let stored = client.set_if_absent(CACHE, "k", "1").await.unwrap();
    assert_eq!(stored, SetIfAbsentResponse::Stored);
    let stored = client.set_if_absent(CACHE, "k", "2").await.unwrap();
    assert_eq!(stored, SetIfAbsentResponse::NotStored);
    let stored = client.set_if_equal(CACHE, "k", "2", "x").await.unwrap();
    assert_eq!(stored, SetIfEqualResponse::NotStored);
    let stored = client.set_if_equal(CACHE, "k", "2", "1").await.unwrap();
    assert_eq!(stored, SetIfEqualResponse::Stored);
    let stored = client.set_if_not_equal(CACHE, "k", "3", "2").await.unwrap();
    assert_eq!(stored, SetIfNotEqualResponse::NotStored);
    let stored = client.set_if_not_equal(CACHE, "k", "3", "x").await.unwrap();
    assert_eq!(stored, SetIfNotEqualResponse::Stored);
    let stored = client
        .set_if_absent_or_equal(CACHE, "k", "4", "x")
        .await
        .unwrap();
    assert_eq!(stored, SetIfAbsentOrEqualResponse::NotStored);
    let stored = client
        .set_if_absent_or_equal(CACHE, "k", "4", "3")
        .await
        .unwrap();
    assert_eq!(stored, SetIfAbsentOrEqualResponse::Stored);
    let stored = client.set_if_present(CACHE, "k", "5").await.unwrap();
    assert_eq!(stored, SetIfPresentResponse::Stored);
    let stored = client
        .set_if_present_and_not_equal(CACHE, "k", "6", "5")
        .await;
    assert_eq!(stored.unwrap(), SetIfPresentAndNotEqualResponse::NotStored);
    let stored = client
        .set_if_present_and_not_equal(CACHE, "k", "6", "x")
        .await;
    assert_eq!(stored.unwrap(), SetIfPresentAndNotEqualResponse::Stored);
    // The SDK's look-ups may return an older value.
    assert_eq!(value_of(&client, "k").await.as_deref(), Some("5"));
    let stored = client.set_if_equal(CACHE, "k", "6", "6").await.unwrap();
    assert_eq!(stored, SetIfEqualResponse::Stored);

    client.delete(CACHE, "k").await.unwrap();
    let stored = client.set_if_not_equal(CACHE, "k", "7", "7").await.unwrap();
    assert_eq!(stored, SetIfNotEqualResponse::Stored);
    client.delete(CACHE, "k").await.unwrap();
    let stored = client
        .set_if_absent_or_equal(CACHE, "k", "8", "x")
        .await
        .unwrap();
    assert_eq!(stored, SetIfAbsentOrEqualResponse::Stored);
}

#[tokio::test]
async fn batches_return_results_by_position_and_plain_calls_work() {
    let backends = Backends::start().await;
    let client = backends.momento_client();
    client.set(CACHE, "a", "1").await.unwrap();
    let items: std::collections::HashMap<_, _> = [("b", "2"), ("c", "3")].into();
    client.set_batch(CACHE, items).await.unwrap();
    let found = client
        .get_batch(CACHE, vec!["c", "missing", "a", "b"])
        .await;
    let found: std::collections::HashMap<String, GetResponse> = found.unwrap().try_into().unwrap();
    assert_eq!(found["a"], GetResponse::from("1"));
    assert_eq!(found["b"], GetResponse::from("2"));
    assert_eq!(found["c"], GetResponse::from("3"));
    assert_eq!(found["missing"], GetResponse::Miss);
}

#[tokio::test]
async fn caches_are_created_listed_flushed_and_deleted() {
    let backends = Backends::start().await;
    let client = backends.momento_client();
    let created = client.create_cache(CACHE).await.unwrap();
    assert_eq!(created, CreateCacheResponse::AlreadyExists);
    let created = client.create_cache("another").await.unwrap();
    assert_eq!(created, CreateCacheResponse::Created);
    let caches = client.list_caches().await.unwrap().caches;
    let names: Vec<_> = caches.iter().map(|cache| cache.name.as_str()).collect();
    assert_eq!(names, [CACHE, "another"]);
    client.set("another", "k", "v").await.unwrap();
    client.flush_cache("another").await.unwrap();
    let found = client.get("another", "k").await.unwrap();
    assert_eq!(found, GetResponse::Miss);
    client.delete_cache("another").await.unwrap();
    let error = client.get("another", "k").await.unwrap_err();
    assert_eq!(error.error_code, MomentoErrorCode::CacheNotFoundError);
}

#[tokio::test]
async fn oversized_values_zero_ttls_and_unsupported_calls_are_rejected() {
    let backends = Backends::start().await;
    let client = backends.momento_client();
    let large = vec![0_u8; 1024 * 1024 + 1];
    let error = client.set(CACHE, "k", large).await.unwrap_err();
    assert_eq!(error.error_code, MomentoErrorCode::LimitExceededError);
    let error = client.increment(CACHE, "k", 1).await.unwrap_err();
    assert_eq!(error.error_code, MomentoErrorCode::BadRequestError);
    let request = momento::cache::SetRequest::new(CACHE, "k", "v").ttl(Duration::ZERO);
    let error = client.send_request(request).await.unwrap_err();
    assert_eq!(error.error_code, MomentoErrorCode::InvalidArgumentError);
}
