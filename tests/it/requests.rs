//! Requests with an id have their effect once, however often they are sent.

use std::{future::Future, pin::Pin};

use account_service::proto::account_v1::{self as pb, Role, State};
use tonic::{Code, Status};

use crate::harness::{Backends, Client, PATIENCE, assert_refused, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

type PendingResponse = Pin<Box<dyn Future<Output = Result<String, Status>> + Send>>;
/// Sends the same request each time; returns the whole response as text.
type Sending = Box<dyn Fn(&Client) -> PendingResponse>;

fn id() -> String {
    uuid::Uuid::new_v4().to_string()
}

macro_rules! request {
    ($rpc:ident $request:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let mut request = pb::$request::default();
        $(request.$field = $value.into();)*
        request.request_id = id();
        let send: Sending = Box::new(move |client| {
            let (mut client, request) = (client.clone(), request.clone());
            Box::pin(async move {
                let reply = client.$rpc(request).await?.into_inner();
                Ok(format!("{reply:?}"))
            })
        });
        (stringify!($rpc), send)
    }};
}

/// Every RPC that writes, in an order in which each succeeds.
fn every_mutation() -> Vec<(&'static str, Sending)> {
    let user = pb::User {
        username: OLIVIA.to_owned(),
        display_name: "Olivia".to_owned(),
        ..pb::User::default()
    };
    let organization = pb::Organization {
        organization_name: ORG.to_owned(),
        display_name: "Olivia's".to_owned(),
        ..pb::Organization::default()
    };
    vec![
        request!(create_user CreateUserRequest { username: MICHAEL }),
        request!(create_user CreateUserRequest {
            username: OLIVIA,
            labels: [("b", "2"), ("a", "1"), ("c", "3")]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        }),
        request!(update_user UpdateUserRequest { user: user }),
        request!(suspend_user SuspendUserRequest { username: OLIVIA }),
        request!(resume_user ResumeUserRequest { username: OLIVIA }),
        request!(create_organization CreateOrganizationRequest {
            organization_name: ORG,
            founding_user: OLIVIA,
        }),
        request!(update_organization UpdateOrganizationRequest {
            organization: organization,
            actor: pb::update_organization_request::Actor::ActingUser(OLIVIA.to_owned()),
        }),
        request!(suspend_organization SuspendOrganizationRequest { organization_name: ORG }),
        request!(resume_organization ResumeOrganizationRequest { organization_name: ORG }),
        request!(add_user_to_organization AddUserToOrganizationRequest {
            organization_name: ORG,
            member_username: MICHAEL,
            role: Role::Member,
            adding_user: OLIVIA,
        }),
        request!(update_membership UpdateMembershipRequest {
            membership: pb::Membership {
                organization_name: ORG.to_owned(),
                member_username: MICHAEL.to_owned(),
                labels: [("job".to_owned(), "nurse".to_owned())].into(),
                ..pb::Membership::default()
            },
            acting_user: OLIVIA,
        }),
        request!(change_member_role ChangeMemberRoleRequest {
            organization_name: ORG,
            member_username: MICHAEL,
            role: Role::Admin,
            acting_user: OLIVIA,
        }),
        request!(transfer_ownership TransferOwnershipRequest {
            organization_name: ORG,
            new_owner: MICHAEL,
            actor: pb::transfer_ownership_request::Actor::ActingUser(OLIVIA.to_owned()),
        }),
        // The actor leaves, and so has no permission when the request is sent again.
        request!(remove_user_from_organization RemoveUserFromOrganizationRequest {
            organization_name: ORG,
            member_username: OLIVIA,
            acting_user: OLIVIA,
        }),
        request!(delete_organization DeleteOrganizationRequest {
            organization_name: ORG,
            actor: pb::delete_organization_request::Actor::ActingUser(MICHAEL.to_owned()),
        }),
        request!(delete_user DeleteUserRequest { username: OLIVIA }),
    ]
}

#[tokio::test]
async fn a_repeated_request_id_returns_the_change_whose_reply_was_lost() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    for (rpc, send) in every_mutation() {
        for _ in 0..3 {
            backends.dynamodb.lose_reply("TransactWriteItems", "");
        }
        let lost = send(&service.client).await;
        assert_refused(lost, Code::Unavailable, "OUTCOME_UNKNOWN");
        let response = send(&other.client).await;
        let response = response.unwrap_or_else(|status| panic!("{rpc}: {status:?}"));
        backends.flush_cache().await;
        assert_eq!(send(&service.client).await.unwrap(), response, "{rpc}");
    }
}

#[tokio::test]
async fn a_change_whose_replica_crashed_is_returned_by_another_replica() {
    let backends = Backends::start().await;
    for (rpc, send) in every_mutation() {
        let settings = backends.serve_settings().cache.to_coherence();
        let dying = backends.isolated(settings.clone()).await;
        let held = dying.dynamodb.hold_reply("TransactWriteItems", "");
        let sent = tokio::spawn(send(&dying.replica.client));
        held.reached().await;
        // The write is committed, but not confirmed, and has no response. Its fences are
        // lost, too.
        sent.abort();
        drop(dying);
        backends.flush_cache().await;
        let other = backends.isolated(settings).await;
        let response = send(&other.replica.client).await;
        response.unwrap_or_else(|status| panic!("{rpc}: {status:?}"));
    }
}

#[tokio::test]
async fn a_request_that_is_sent_many_times_at_once_has_its_effect_once() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    for (rpc, send) in every_mutation() {
        let clients = [&service.client, &other.client].into_iter().cycle();
        let sent = clients.take(8).map(&send);
        let responses: Vec<_> = futures_util::future::join_all(sent).await;
        let (responses, failures): (Vec<_>, Vec<_>) =
            responses.into_iter().partition(Result::is_ok);
        assert!(!responses.is_empty(), "{rpc}: {failures:?}");
        let response = responses[0].as_ref().unwrap();
        for other in &responses {
            assert_eq!(other.as_ref().unwrap(), response, "{rpc}");
        }
        for failure in failures {
            assert_refused(failure, Code::Aborted, "CONTENTION");
        }
    }
}

#[tokio::test]
async fn another_request_with_the_same_id_is_rejected() {
    let (_backends, service) = start().await;
    let request = |username: &str| pb::CreateUserRequest {
        username: username.to_owned(),
        request_id: "0e1d61d4-3c0a-4a5e-9f6b-7a8b9c0d1e2f".to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let mut client = service.client.clone();
    client.create_user(request(OLIVIA)).await.unwrap();
    let refused = client.create_user(request(MICHAEL)).await;
    let details = assert_refused(refused, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let violations = &details.bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, "request_id");
    service.get_user(MICHAEL).await.unwrap_err();
    // A request of another method is rejected, too, although its fields are the same.
    let refused = client
        .delete_user(pb::DeleteUserRequest {
            username: OLIVIA.to_owned(),
            request_id: request(OLIVIA).request_id,
            ..pb::DeleteUserRequest::default()
        })
        .await;
    assert_refused(refused, Code::InvalidArgument, "REQUEST_ID_REUSED");
    service.get_user(OLIVIA).await.unwrap();
}

#[tokio::test]
async fn an_equivalent_request_returns_the_first_outcome() {
    let (_backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    let mut client = service.client.clone();
    let update = |request_id: String, paths: &[&str]| pb::UpdateUserRequest {
        user: Some(pb::User {
            username: OLIVIA.to_owned(),
            first_name: "Olivia".to_owned(),
            display_name: "O".to_owned(),
            ..pb::User::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        request_id,
    };
    let id = id();
    let first = client.update_user(update(id.clone(), &["first_name", "display_name"]));
    let first = first.await.unwrap().into_inner();
    let without_mask = pb::UpdateUserRequest {
        update_mask: None,
        ..update(id.clone(), &[])
    };
    let mut with_ignored_fields = update(id.clone(), &["display_name", "first_name"]);
    if let Some(user) = &mut with_ignored_fields.user {
        user.set_state(State::Suspended);
        user.last_name = "not in the mask".to_owned();
    }
    for again in [
        update(id.to_uppercase(), &["first_name", "display_name"]),
        update(id.clone(), &["display_name", "first_name", "display_name"]),
        update(id.clone(), &[]),
        without_mask,
        with_ignored_fields,
    ] {
        let response = client.update_user(again).await.unwrap().into_inner();
        assert_eq!(response, first);
    }
    let another = client.update_user(update(id, &["*"])).await;
    assert_refused(another, Code::InvalidArgument, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn an_actor_without_permission_learns_nothing_from_an_old_request() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let mut client = service.client.clone();
    let change = pb::ChangeMemberRoleRequest {
        organization_name: ORG.to_owned(),
        member_username: MICHAEL.to_owned(),
        role: Role::Owner.into(),
        acting_user: OLIVIA.to_owned(),
        request_id: id(),
        ..pb::ChangeMemberRoleRequest::default()
    };
    client.change_member_role(change.clone()).await.unwrap();
    // Olivia is removed by the new Owner.
    service.remove(ORG, OLIVIA, MICHAEL).await.unwrap();
    let refused = client.change_member_role(change).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
}

#[tokio::test]
async fn an_active_actor_receives_the_outcome_of_a_request_that_ended_its_permission() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let mut client = service.client.clone();
    let leave = pb::RemoveUserFromOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: MICHAEL.to_owned(),
        acting_user: MICHAEL.to_owned(),
        request_id: id(),
        ..pb::RemoveUserFromOrganizationRequest::default()
    };
    let first = client.remove_user_from_organization(leave.clone()).await;
    let again = client.remove_user_from_organization(leave.clone()).await;
    let [first, again] = [first, again].map(|response| response.unwrap().into_inner());
    assert_eq!(again, first);
    let suspend = pb::SuspendUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    client.suspend_user(suspend).await.unwrap();
    let refused = client.remove_user_from_organization(leave).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
}

#[tokio::test]
async fn an_old_request_that_is_sent_again_does_not_undo_later_changes() {
    let (_backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    let mut client = service.client.clone();
    let rename = |display_name: &str| pb::UpdateUserRequest {
        user: Some(pb::User {
            username: OLIVIA.to_owned(),
            display_name: display_name.to_owned(),
            ..pb::User::default()
        }),
        request_id: id(),
        ..pb::UpdateUserRequest::default()
    };
    let first = rename("first");
    client.update_user(first.clone()).await.unwrap();
    client.update_user(rename("second")).await.unwrap();
    let again = client.update_user(first).await.unwrap().into_inner();
    assert_eq!(again.user.unwrap().display_name, "first");
    let user = service.get_user(OLIVIA).await.unwrap().0;
    assert_eq!(user.display_name, "second");
}

#[tokio::test]
async fn a_request_that_changed_nothing_changes_nothing_when_it_is_sent_again() {
    let (_backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    let mut client = service.client.clone();
    let suspension = |request_id: &str| pb::SuspendUserRequest {
        username: OLIVIA.to_owned(),
        request_id: request_id.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    let named = suspension(&id());
    client.suspend_user(suspension("")).await.unwrap();
    client.suspend_user(named.clone()).await.unwrap();
    let resumption = pb::ResumeUserRequest {
        username: OLIVIA.to_owned(),
        ..pb::ResumeUserRequest::default()
    };
    client.resume_user(resumption).await.unwrap();
    let again = client.suspend_user(named).await.unwrap().into_inner();
    assert_eq!(again.user.unwrap().state(), State::Suspended);
    let user = service.get_user(OLIVIA).await.unwrap().0;
    assert_eq!(user.state(), State::Active);
}

#[tokio::test]
async fn a_rejected_request_is_decided_anew_when_it_is_sent_again() {
    let (_backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    let request = pb::CreateUserRequest {
        username: OLIVIA.to_owned(),
        request_id: id(),
        ..pb::CreateUserRequest::default()
    };
    let mut client = service.client.clone();
    let refused = client.create_user(request.clone()).await;
    assert_refused(refused, Code::AlreadyExists, "USER_ALREADY_EXISTS");
    service.delete_user(OLIVIA).await.unwrap();
    client.create_user(request).await.unwrap();
}

#[tokio::test]
async fn a_request_id_that_is_no_uuid_is_rejected() {
    let (_backends, service) = start().await;
    for request_id in ["1", "00000000-0000-0000-0000-000000000000"] {
        let request = pb::CreateUserRequest {
            username: OLIVIA.to_owned(),
            request_id: request_id.to_owned(),
            ..pb::CreateUserRequest::default()
        };
        let refused = service.client.clone().create_user(request).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "request_id");
    }
}

#[tokio::test]
async fn the_outcome_of_a_request_is_kept_for_a_day_and_then_expires() {
    let (backends, service) = start().await;
    let request_id = id();
    let request = pb::CreateUserRequest {
        username: OLIVIA.to_owned(),
        request_id: request_id.clone(),
        ..pb::CreateUserRequest::default()
    };
    service.client.clone().create_user(request).await.unwrap();
    let key = format!("REQUEST#{request_id}");
    let expires: u64 = backends
        .table()
        .number(&key, &key, "expireTime")
        .await
        .unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let left = expires - now.as_secs();
    let day = 24 * 3600;
    assert!((day - PATIENCE.as_secs()..=day).contains(&left), "{left}");
    assert_eq!(
        backends.table().expiring_attribute().await.as_deref(),
        Some("expireTime")
    );
}
