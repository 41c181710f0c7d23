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
    let answer = health.check(HealthCheckRequest { service }).await;
    answer.unwrap().into_inner().status()
}

async fn is_answered_from_the_cache(replica: &Replica) -> bool {
    let answer = replica.check(ORG, OLIVIA).await.unwrap();
    assert_eq!(answer.role(), Role::Owner);
    replica.settle().await;
    answer.source() == Source::Cache
}

#[tokio::test]
async fn a_service_that_starts_without_the_cache_answers_and_uses_it_once_it_is_there() {
    let backends = Backends::start().await;
    for call in ["Get", "GetBatch", "SetIf", "BesideSetIf"] {
        backends.momento.refuse(call, "", 0, ALWAYS);
    }
    let replica = backends.replica().await;
    assert_eq!(health_of(&replica).await, ServingStatus::Serving);
    replica.found_olivia_org().await;
    assert!(!is_answered_from_the_cache(&replica).await);
    backends.momento.behave();
    eventually("the cache is used", async || {
        is_answered_from_the_cache(&replica).await
    })
    .await;
}

#[tokio::test]
async fn a_service_that_starts_without_secrets_manager_uses_the_cache_once_it_has_the_credential() {
    let backends = Backends::start().await;
    let secrets = Arc::new(Script::default());
    let (_way, url) = backends.way_to_secrets(secrets.clone()).await;
    secrets.refuse("GetSecretValue", "", 0, ALWAYS);
    let mut settings = backends.serve_settings();
    settings.backends.secrets_endpoint = Some(url);
    let replica = Replica::start(&settings).await;
    replica.found_olivia_org().await;
    assert!(!is_answered_from_the_cache(&replica).await);
    secrets.behave();
    eventually("the cache is used", async || {
        is_answered_from_the_cache(&replica).await
    })
    .await;
}

#[tokio::test]
async fn a_service_that_starts_without_the_table_is_not_ready_and_becomes_so_by_itself() {
    let backends = Backends::start().await;
    for call in ["DescribeTable", "GetItem", "BatchGetItem", "BesideGetItem"] {
        backends.dynamodb.refuse(call, "", 0, ALWAYS);
    }
    let replica = backends.replica().await;
    assert_eq!(health_of(&replica).await, ServingStatus::NotServing);
    // Nor is it to be restarted.
    let mut health = HealthClient::new(replica.channel.clone());
    let service = "liveness".to_owned();
    let alive = health.check(HealthCheckRequest { service }).await.unwrap();
    assert_eq!(alive.into_inner().status(), ServingStatus::Serving);
    let answer = replica.check(ORG, OLIVIA).await;
    let details = assert_refused(answer, Code::Unavailable, "STORE_UNAVAILABLE");
    assert!(details.retry_info().is_some());
    backends.dynamodb.behave();
    eventually("it is ready", async || {
        health_of(&replica).await == ServingStatus::Serving
    })
    .await;
    replica.found_olivia_org().await;
    eventually("the cache is used", async || {
        is_answered_from_the_cache(&replica).await
    })
    .await;
}

#[tokio::test]
async fn a_credential_that_is_rotated_is_used_without_a_restart_and_no_call_fails() {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    let server = &backends.embedded.momento;
    settings.backends.momento_secret_id = backends.store_secret(server).await;
    let replica = Replica::start(&settings).await;
    replica.found_olivia_org().await;
    replica.settle().await;
    assert!(is_answered_from_the_cache(&replica).await);

    server.rotate_key();
    assert!(!is_answered_from_the_cache(&replica).await);
    let secret = &settings.backends.momento_secret_id;
    backends.put_secret(secret, server).await;
    replica
        .add(ORG, MICHAEL, Role::Member, OLIVIA)
        .await
        .unwrap();
    eventually("the cache is used", async || {
        is_answered_from_the_cache(&replica).await
    })
    .await;
    replica.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert_eq!(replica.role_of(ORG, MICHAEL).await, None);
}

/// A replica that reads its secret again every second, which a script sees.
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

async fn looked_again(secrets: &Script) {
    // The one before may have been under way when the secret was changed.
    secrets.forget_calls();
    eventually("the secret was read twice", async || {
        secrets.seen("GetSecretValue").len() >= 2
    })
    .await;
}

#[tokio::test]
async fn a_credential_that_is_rotated_is_found_before_the_cache_refuses_the_former() {
    let backends = Backends::start().await;
    let (replica, secret, secrets, _way) = watchful(&backends).await;
    replica.found_olivia_org().await;
    replica.settle().await;
    // Nobody calls meanwhile, so that nothing is refused.
    backends.momento.forget_calls();
    backends.embedded.momento.rotate_key();
    backends
        .put_secret(&secret, &backends.embedded.momento)
        .await;
    looked_again(&secrets).await;
    eventually("the new credential opens the cache", async || {
        !backends.momento.seen("Get").is_empty()
    })
    .await;
    eventually("the cache is used", async || {
        is_answered_from_the_cache(&replica).await
    })
    .await;
}

#[tokio::test]
async fn a_running_replica_does_not_change_over_to_another_cache() {
    let backends = Backends::start().await;
    let (replica, secret, secrets, _way) = watchful(&backends).await;
    replica.found_olivia_org().await;
    replica.settle().await;
    let beyond = Backends::start().await;
    backends.put_secret(&secret, &beyond.embedded.momento).await;
    looked_again(&secrets).await;
    assert!(is_answered_from_the_cache(&replica).await);
    assert!(beyond.momento.seen("Get").is_empty());
    assert!(beyond.momento.seen("GetBatch").is_empty());
}
