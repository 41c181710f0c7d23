//! Backends that are down at the start, and credentials that change afterwards.

use std::{sync::Arc, time::Duration};

use account_service::proto::account_v1::{Role, Source};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    harness::{Backends, Replica, assert_refused, script::Script},
    streams::eventually,
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const ALWAYS: usize = usize::MAX;

pub async fn health_of(replica: &Replica) -> ServingStatus {
    let mut health = HealthClient::new(replica.channel.clone());
    let service = "account.v1.AccountService".to_owned();
    let response = health.check(HealthCheckRequest { service }).await;
    response.unwrap().into_inner().status()
}

async fn is_served_from_the_cache(replica: &Replica) -> bool {
    let response = replica.check(ORG, OLIVIA).await.unwrap();
    assert_eq!(response.role(), Role::Owner);
    replica.settle().await;
    response.source() == Source::Cache
}

#[tokio::test]
async fn a_service_that_starts_without_the_cache_serves_and_uses_it_once_reachable() {
    let backends = Backends::start().await;
    for call in ["Get", "GetBatch", "SetIf", "BesideSetIf"] {
        backends.momento.refuse(call, "", 0, ALWAYS);
    }
    let replica = backends.replica().await;
    assert_eq!(health_of(&replica).await, ServingStatus::Serving);
    replica.found_olivia_org().await;
    assert!(!is_served_from_the_cache(&replica).await);
    backends.momento.clear_rules();
    eventually("the cache is used", async || {
        is_served_from_the_cache(&replica).await
    })
    .await;
}

#[tokio::test]
async fn a_service_that_starts_without_secrets_manager_uses_the_cache_later() {
    let backends = Backends::start().await;
    let secrets = Arc::new(Script::default());
    let (_way, url) = backends.way_to_secrets(secrets.clone()).await;
    secrets.refuse("GetSecretValue", "", 0, ALWAYS);
    let mut settings = backends.serve_settings();
    settings.backends.secrets_endpoint = Some(url);
    let replica = Replica::start(&settings).await;
    replica.found_olivia_org().await;
    assert!(!is_served_from_the_cache(&replica).await);
    secrets.clear_rules();
    eventually("the cache is used", async || {
        is_served_from_the_cache(&replica).await
    })
    .await;
}

#[tokio::test]
async fn a_service_that_starts_without_the_table_becomes_ready_once_it_is_reachable() {
    let backends = Backends::start().await;
    for call in ["DescribeTable", "GetItem", "BatchGetItem", "BesideGetItem"] {
        backends.dynamodb.refuse(call, "", 0, ALWAYS);
    }
    let replica = backends.replica().await;
    assert_eq!(health_of(&replica).await, ServingStatus::NotServing);
    // The liveness check does not request a restart.
    let mut health = HealthClient::new(replica.channel.clone());
    let service = "liveness".to_owned();
    let alive = health.check(HealthCheckRequest { service }).await.unwrap();
    assert_eq!(alive.into_inner().status(), ServingStatus::Serving);
    let response = replica.check(ORG, OLIVIA).await;
    let details = assert_refused(response, Code::Unavailable, "STORE_UNAVAILABLE");
    assert!(details.retry_info().is_some());
    backends.dynamodb.clear_rules();
    eventually("the replica is ready", async || {
        health_of(&replica).await == ServingStatus::Serving
    })
    .await;
    replica.found_olivia_org().await;
    eventually("the cache is used", async || {
        is_served_from_the_cache(&replica).await
    })
    .await;
}

#[tokio::test]
async fn a_rotated_credential_is_used_without_a_restart_and_no_call_fails() {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    let server = &backends.embedded.momento;
    settings.backends.momento_secret_id = backends.store_secret(server).await;
    let replica = Replica::start(&settings).await;
    replica.found_olivia_org().await;
    replica.settle().await;
    assert!(is_served_from_the_cache(&replica).await);

    server.rotate_key();
    assert!(!is_served_from_the_cache(&replica).await);
    let secret = &settings.backends.momento_secret_id;
    backends.put_secret(secret, server).await;
    replica
        .add(ORG, MICHAEL, Role::Member, OLIVIA)
        .await
        .unwrap();
    eventually("the cache is used", async || {
        is_served_from_the_cache(&replica).await
    })
    .await;
    replica.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert_eq!(replica.role_of(ORG, MICHAEL).await, None);
}

/// A replica that reads its secret again every second, and a script that records the reads.
async fn watchful(backends: &Backends) -> (Replica, String, Arc<Script>, impl Drop + use<>) {
    let secrets = Arc::new(Script::default());
    let (way, url) = backends.way_to_secrets(secrets.clone()).await;
    let mut settings = backends.serve_settings();
    settings.backends.secrets_endpoint = Some(url);
    settings.backends.secret_refresh_s = Duration::from_secs(1);
    let secret = backends.store_secret(&backends.embedded.momento).await;
    settings.backends.momento_secret_id.clone_from(&secret);
    (Replica::start(&settings).await, secret, secrets, way)
}

async fn wait_for_two_reads(secrets: &Script) {
    // The first read may have begun before the secret was changed.
    secrets.forget_calls();
    eventually("the secret was read twice", async || {
        secrets.seen("GetSecretValue").len() >= 2
    })
    .await;
}

#[tokio::test]
async fn a_rotated_credential_is_read_before_the_cache_rejects_the_former_one() {
    let backends = Backends::start().await;
    let (replica, secret, secrets, _way) = watchful(&backends).await;
    replica.found_olivia_org().await;
    replica.settle().await;
    // There is no call meanwhile, so that the cache rejects nothing.
    backends.momento.forget_calls();
    backends.embedded.momento.rotate_key();
    backends
        .put_secret(&secret, &backends.embedded.momento)
        .await;
    wait_for_two_reads(&secrets).await;
    eventually("the new credential opens the cache", async || {
        !backends.momento.seen("Get").is_empty()
    })
    .await;
    eventually("the cache is used", async || {
        is_served_from_the_cache(&replica).await
    })
    .await;
}

#[tokio::test]
async fn a_running_replica_does_not_switch_to_another_cache() {
    let backends = Backends::start().await;
    let (replica, secret, secrets, _way) = watchful(&backends).await;
    replica.found_olivia_org().await;
    replica.settle().await;
    let beyond = Backends::start().await;
    backends.put_secret(&secret, &beyond.embedded.momento).await;
    wait_for_two_reads(&secrets).await;
    assert!(is_served_from_the_cache(&replica).await);
    assert!(beyond.momento.seen("Get").is_empty());
    assert!(beyond.momento.seen("GetBatch").is_empty());
}
