//! An e-mail address belongs to one user, and a look-up by the address finds that user.

use account_service::proto::account_v1::{self as pb, read_consistency::Requirement};
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::harness::{Backends, Client, Replica, assert_refused, start};

const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const EMAIL: &str = "Olivia@example.com";

async fn create(mut client: Client, username: &str, email: &str) -> Result<pb::User, Status> {
    let request = pb::CreateUserRequest {
        username: username.to_owned(),
        email: email.to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let response = client.create_user(request).await?;
    Ok(response.into_inner().user.unwrap())
}

async fn set_email(replica: &Replica, username: &str, email: &str) -> Result<pb::User, Status> {
    let user = pb::User {
        username: username.to_owned(),
        email: email.to_owned(),
        ..pb::User::default()
    };
    let mask = FieldMask {
        paths: vec!["email".to_owned()],
    };
    let request = pb::UpdateUserRequest {
        user: Some(user),
        update_mask: Some(mask),
        ..pb::UpdateUserRequest::default()
    };
    let response = replica.client.clone().update_user(request).await?;
    Ok(response.into_inner().user.unwrap())
}

async fn look_up(replica: &Replica, email: &str) -> Result<String, Status> {
    let request = pb::LookupUserRequest {
        email: email.to_owned(),
        ..pb::LookupUserRequest::default()
    };
    let response = replica.client.clone().lookup_user(request).await?;
    Ok(response.into_inner().user.unwrap().username)
}

/// Asserts that no user has the address, on either replica.
async fn assert_free(replicas: [&Replica; 2], email: &str) {
    for replica in replicas {
        let refused = look_up(replica, email).await;
        assert_refused(refused, Code::NotFound, "EMAIL_NOT_FOUND");
    }
}

#[tokio::test]
async fn an_address_that_no_mail_system_accepts_is_rejected() {
    let (_backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    for odd in [
        "Olivia@example.com.",
        "<o@x>",
        "mailto:o@x",
        "a..b@x",
        ".o@x",
    ] {
        let refused = create(service.client.clone(), MICHAEL, odd).await;
        assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        let refused = set_email(&service, OLIVIA, odd).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "user.email");
    }
}

#[tokio::test]
async fn an_invalid_address_in_the_table_can_be_looked_up_kept_and_released() {
    const ODD: &str = "olivia..o@example.com";
    let (backends, service) = start().await;
    // Written past the service, which would reject the address.
    let table = backends.table();
    let (user, claim) = (format!("USER#{OLIVIA}"), format!("EMAIL#{ODD}"));
    for (key, attributes) in [
        (&user, &[("username", OLIVIA), ("email", ODD)][..]),
        (&claim, &[("username", OLIVIA)]),
    ] {
        let keys = [("PK", key.as_str()), ("SK", key)];
        table.put(&[&keys, attributes].concat()).await;
    }
    let replica = backends.replica().await;
    assert_eq!(look_up(&replica, ODD).await.unwrap(), OLIVIA);
    let kept = set_email(&replica, OLIVIA, ODD).await.unwrap();
    assert_eq!(kept.email, ODD);
    set_email(&replica, OLIVIA, "").await.unwrap();
    assert_free([&service, &replica], ODD).await;
}

#[tokio::test]
async fn a_look_up_by_address_ignores_upper_and_lower_case() {
    let (_backends, service) = start().await;
    let user = create(service.client.clone(), OLIVIA, EMAIL).await.unwrap();
    assert_eq!(user.email, EMAIL);
    for email in [EMAIL, "olivia@EXAMPLE.com"] {
        assert_eq!(look_up(&service, email).await.unwrap(), OLIVIA);
    }
    let refused = look_up(&service, "michael@example.com").await;
    assert_refused(refused, Code::NotFound, "EMAIL_NOT_FOUND");
    for email in ["", "olivia", "ölivia@example.com"] {
        let refused = look_up(&service, email).await;
        assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    }
}

#[tokio::test]
async fn a_look_up_ignores_a_claim_that_its_user_does_not_hold() {
    let (backends, service) = start().await;
    let table = backends.table();
    for (username, attribute) in [(OLIVIA, "email"), (MICHAEL, "uid")] {
        let email = format!("{username}@example.com");
        create(service.client.clone(), username, &email)
            .await
            .unwrap();
        // The state that another writer may leave: the user has another address, or is
        // another user.
        let key = format!("USER#{username}");
        table
            .set_text(&key, &key, attribute, "other@example.com")
            .await;
        let request = pb::LookupUserRequest {
            email,
            consistency: Some(pb::ReadConsistency {
                requirement: Some(Requirement::FullyConsistent(true)),
            }),
            ..pb::LookupUserRequest::default()
        };
        let refused = service.client.clone().lookup_user(request).await;
        assert_refused(refused, Code::NotFound, "EMAIL_NOT_FOUND");
    }
}

#[tokio::test]
async fn an_address_that_another_user_has_is_rejected() {
    let (_backends, service) = start().await;
    create(service.client.clone(), OLIVIA, EMAIL).await.unwrap();
    let refused = create(service.client.clone(), MICHAEL, "olivia@example.COM").await;
    assert_refused(refused, Code::AlreadyExists, "EMAIL_ALREADY_EXISTS");
    service.get_user(MICHAEL).await.unwrap_err();
    create(service.client.clone(), MICHAEL, "").await.unwrap();
    let refused = set_email(&service, MICHAEL, EMAIL).await;
    assert_refused(refused, Code::AlreadyExists, "EMAIL_ALREADY_EXISTS");
    assert_eq!(look_up(&service, EMAIL).await.unwrap(), OLIVIA);
    // A user may change the letter case of their own address.
    set_email(&service, OLIVIA, "OLIVIA@example.com")
        .await
        .unwrap();
    assert_eq!(look_up(&service, EMAIL).await.unwrap(), OLIVIA);
}

#[tokio::test]
async fn a_released_address_is_free_at_once() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    let both = [&service, &other];
    create(service.client.clone(), OLIVIA, EMAIL).await.unwrap();
    create(service.client.clone(), MICHAEL, "").await.unwrap();
    assert_eq!(look_up(&other, EMAIL).await.unwrap(), OLIVIA);
    let changed = set_email(&service, OLIVIA, "new@example.com")
        .await
        .unwrap();
    assert_eq!(changed.email, "new@example.com");
    assert_free(both, EMAIL).await;
    assert_eq!(look_up(&other, "new@example.com").await.unwrap(), OLIVIA);
    set_email(&service, MICHAEL, EMAIL).await.unwrap();
    assert_eq!(look_up(&other, EMAIL).await.unwrap(), MICHAEL);
    set_email(&service, MICHAEL, "").await.unwrap();
    assert_free(both, EMAIL).await;
    service.delete_user(OLIVIA).await.unwrap();
    assert_free(both, "new@example.com").await;
    set_email(&service, MICHAEL, "new@example.com")
        .await
        .unwrap();
    // A new user of the name does not get the address.
    create(service.client.clone(), OLIVIA, "").await.unwrap();
    assert_eq!(look_up(&other, "new@example.com").await.unwrap(), MICHAEL);
}

#[tokio::test]
async fn one_of_many_concurrent_claims_of_an_address_succeeds() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    let clients = [&service, &other].into_iter().cycle();
    let creations = clients.take(10).enumerate().map(|(at, replica)| {
        let client = replica.client.clone();
        async move { create(client, &format!("user{at}"), EMAIL).await }
    });
    let created = futures_util::future::join_all(creations).await;
    let (created, refused): (Vec<_>, Vec<_>) = created.into_iter().partition(Result::is_ok);
    assert_eq!(created.len(), 1, "{refused:?}");
    let created = created.into_iter().next().unwrap().unwrap();
    assert_eq!(look_up(&other, EMAIL).await.unwrap(), created.username);
}

#[tokio::test]
async fn the_address_of_a_user_who_was_deleted_in_the_console_is_free() {
    let backends = Backends::start().await;
    let service = backends.replica().await;
    create(service.client.clone(), OLIVIA, EMAIL).await.unwrap();
    let key = format!("USER#{OLIVIA}");
    backends.table().delete(&key, &key).await;
    backends.flush_cache().await;
    let refused = look_up(&service, EMAIL).await;
    assert_refused(refused, Code::NotFound, "EMAIL_NOT_FOUND");
    create(service.client.clone(), MICHAEL, EMAIL)
        .await
        .unwrap();
    assert_eq!(look_up(&service, EMAIL).await.unwrap(), MICHAEL);
}

#[tokio::test]
async fn an_address_that_is_released_and_claimed_again_stays_with_its_user() {
    let (backends, service) = start().await;
    create(service.client.clone(), OLIVIA, EMAIL).await.unwrap();
    create(service.client.clone(), MICHAEL, "").await.unwrap();
    // Michael's write reads Olivia's claim, and then that she has another address.
    let look = backends
        .dynamodb
        .hold("GetItem", &format!("USER#{OLIVIA}"), 0);
    let commit = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let (refused, ()) = tokio::join!(set_email(&service, MICHAEL, EMAIL), async {
        look.reached().await;
        set_email(&service, OLIVIA, "other@example.com")
            .await
            .unwrap();
        look.release();
        commit.reached().await;
        set_email(&service, OLIVIA, EMAIL).await.unwrap();
        commit.release();
    });
    assert_refused(refused, Code::AlreadyExists, "EMAIL_ALREADY_EXISTS");
    assert_eq!(look_up(&service, EMAIL).await.unwrap(), OLIVIA);
    assert_eq!(service.get_user(MICHAEL).await.unwrap().0.email, "");
}

#[tokio::test]
async fn a_claim_written_past_the_service_is_replaced_only_if_it_is_unchanged() {
    let (backends, service) = start().await;
    create(service.client.clone(), MICHAEL, "").await.unwrap();
    let key = format!("EMAIL#{}", EMAIL.to_lowercase());
    for (username, uid) in [("nobody", "another"), ("somebody", "one")] {
        let claim = [
            ("PK", key.as_str()),
            ("SK", &key),
            ("username", "nobody"),
            ("uid", "one"),
        ];
        backends.table().put(&claim).await;
        let commit = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
        backends.forget_calls();
        let (claimed, ()) = tokio::join!(set_email(&service, MICHAEL, EMAIL), async {
            commit.reached().await;
            let claim = [
                ("PK", key.as_str()),
                ("SK", &key),
                ("username", username),
                ("uid", uid),
            ];
            backends.table().put(&claim).await;
            commit.release();
        });
        // Neither claim has a user: the second attempt of the write succeeds.
        claimed.unwrap();
        assert_eq!(backends.dynamodb.seen("TransactWriteItems").len(), 2);
        set_email(&service, MICHAEL, "").await.unwrap();
    }
}

#[tokio::test]
async fn the_claim_of_a_released_address_is_removed() {
    let (backends, service) = start().await;
    let table = backends.table();
    create(service.client.clone(), OLIVIA, EMAIL).await.unwrap();
    let key = format!("EMAIL#{}", EMAIL.to_lowercase());
    assert!(table.attributes_of(&key, &key).await.is_some());
    set_email(&service, OLIVIA, "new@example.com")
        .await
        .unwrap();
    assert_eq!(table.attributes_of(&key, &key).await, None);
    service.delete_user(OLIVIA).await.unwrap();
    let key = "EMAIL#new@example.com";
    assert_eq!(table.attributes_of(key, key).await, None);
}

#[tokio::test]
async fn a_change_of_letter_case_in_an_address_is_stored() {
    let (_backends, service) = start().await;
    let created = create(service.client.clone(), OLIVIA, "olivia@example.com")
        .await
        .unwrap();
    let changed = set_email(&service, OLIVIA, "Olivia@Example.com")
        .await
        .unwrap();
    assert_eq!(changed.email, "Olivia@Example.com");
    assert_ne!(changed.etag, created.etag);
    assert_eq!(service.get_user(OLIVIA).await.unwrap().0, changed);
}
