//! Memberships that expire, and labels of memberships.

use std::time::{Duration, SystemTime};

use account_service::{
    coherence::CoherenceSettings,
    domain::Timestamp,
    proto::account_v1::{self as pb, Role, Source},
};
use aws_sdk_dynamodb::types::AttributeValue;
use tonic::{Code, Status};

use crate::{
    harness::{Backends, Replica, assert_refused, from_now, no_older_than, patient, start},
    streams::eventually,
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const HOUR: Duration = Duration::from_secs(3600);

fn add_michael(
    role: Role,
    end: Option<prost_types::Timestamp>,
) -> pb::AddUserToOrganizationRequest {
    pb::AddUserToOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: MICHAEL.to_owned(),
        role: role.into(),
        adding_user: OLIVIA.to_owned(),
        expire_time: end,
        ..pb::AddUserToOrganizationRequest::default()
    }
}

/// Adds Michael until an end soon, which has not passed when the call returns. Returns the end.
async fn add_for(service: &Replica, role: Role, span: Duration) -> SystemTime {
    let mut end = SystemTime::UNIX_EPOCH;
    eventually("Michael is added before the end", async || {
        let wanted = from_now(span);
        end = SystemTime::UNIX_EPOCH + Duration::from_secs(wanted.seconds.unsigned_abs());
        let added = service
            .client
            .clone()
            .add_user_to_organization(add_michael(role, Some(wanted)))
            .await;
        added.is_ok_and(|_| SystemTime::now() < end)
    })
    .await;
    end
}

fn end_of(membership: &pb::Membership) -> Option<i64> {
    membership.expire_time.map(|end| end.seconds)
}

/// Sets the end of a membership.
async fn set_end(
    service: &Replica,
    member: &str,
    end: Option<prost_types::Timestamp>,
    acting_user: &str,
) -> Result<pb::Membership, Status> {
    let update = pb::Membership {
        expire_time: end,
        ..pb::Membership::default()
    };
    service
        .update_membership(ORG, member, update, &["expire_time"], acting_user)
        .await
}

/// Whether each kind of read shows Michael as a member.
async fn reads(service: &Replica) -> Vec<(&'static str, bool)> {
    let mut client = service.client.clone();
    let check = pb::CheckMembershipRequest {
        organization_name: ORG.to_owned(),
        username: MICHAEL.to_owned(),
        ..pb::CheckMembershipRequest::default()
    };
    let stale = pb::CheckMembershipRequest {
        consistency: Some(no_older_than(HOUR)),
        ..check.clone()
    };
    let batch = pb::BatchCheckMembershipsRequest {
        checks: vec![pb::MembershipCheck {
            organization_name: ORG.to_owned(),
            username: MICHAEL.to_owned(),
            ..pb::MembershipCheck::default()
        }],
        consistency: None,
    };
    let members = pb::ListOrganizationMembersRequest {
        organization_name: ORG.to_owned(),
        ..pb::ListOrganizationMembersRequest::default()
    };
    let organizations = pb::ListUserOrganizationsRequest {
        username: MICHAEL.to_owned(),
        ..pb::ListUserOrganizationsRequest::default()
    };
    let check = client.check_membership(check).await.unwrap();
    let stale = client.check_membership(stale).await.unwrap();
    let batch = client.batch_check_memberships(batch).await.unwrap();
    let members = client.list_organization_members(members).await.unwrap();
    let members = members.into_inner().memberships;
    let organizations = client.list_user_organizations(organizations).await.unwrap();
    vec![
        ("check", check.into_inner().is_member),
        ("with max_staleness", stale.into_inner().is_member),
        ("batch", batch.into_inner().results[0].is_member),
        ("get", service.get_membership(ORG, MICHAEL).await.is_ok()),
        (
            "members",
            members.iter().any(|it| it.member_username == MICHAEL),
        ),
        (
            "organizations",
            !organizations.into_inner().memberships.is_empty(),
        ),
    ]
}

#[tokio::test]
async fn an_expired_member_is_no_member_in_any_read_on_any_replica() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    let end = add_for(&service, Role::Admin, Duration::from_secs(6)).await;
    let mut was_member = false;
    loop {
        let before = SystemTime::now();
        for replica in [&service, &other] {
            let reads = reads(replica).await;
            let after = SystemTime::now();
            for (read, is_member) in reads {
                if before >= end {
                    assert!(!is_member, "{read}");
                } else if after < end {
                    assert!(is_member, "{read}");
                    was_member = true;
                }
            }
        }
        if before >= end {
            break;
        }
    }
    assert!(was_member);
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
    let refused = service.remove(ORG, MICHAEL, OLIVIA).await;
    assert_refused(refused, Code::NotFound, "MEMBERSHIP_NOT_FOUND");
    let refused = set_end(&service, MICHAEL, None, OLIVIA).await;
    assert_refused(refused, Code::NotFound, "MEMBERSHIP_NOT_FOUND");
}

#[tokio::test]
async fn the_end_is_returned_in_whole_seconds_and_stored_for_the_clean_up_of_the_table() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let end = prost_types::Timestamp {
        nanos: 999_999_999,
        ..from_now(HOUR)
    };
    let mut client = service.client.clone();
    let added = client
        .add_user_to_organization(add_michael(Role::Member, Some(end)))
        .await;
    let added = added.unwrap().into_inner().membership.unwrap();
    let whole = prost_types::Timestamp { nanos: 0, ..end };
    assert_eq!(added.expire_time, Some(whole));
    let (found, _) = service.get_membership(ORG, MICHAEL).await.unwrap();
    assert_eq!(found.expire_time, Some(whole));
    let check = service.check(ORG, MICHAEL).await.unwrap();
    assert_eq!(check.expire_time, Some(whole));
    let check = service.check(ORG, OLIVIA).await.unwrap();
    assert_eq!(check.expire_time, None);
    let table = backends.table();
    let items = table.partition(&format!("ORGMEMBERS#{ORG}")).await;
    let item = &items[&format!("MEMBER#{MICHAEL}")];
    let attribute = table.expiring_attribute().await.unwrap();
    assert_eq!(item[&attribute], AttributeValue::N(end.seconds.to_string()));
}

#[tokio::test]
async fn a_membership_is_prolonged_shortened_and_made_permanent() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    let mut client = service.client.clone();
    let end = from_now(HOUR);
    let added = client
        .add_user_to_organization(add_michael(Role::Member, Some(end)))
        .await;
    let mut etag = added.unwrap().into_inner().membership.unwrap().etag;
    for end in [Some(from_now(2 * HOUR)), Some(from_now(HOUR / 2)), None] {
        // Cached on both replicas.
        for replica in [&service, &other] {
            replica.check(ORG, MICHAEL).await.unwrap();
            replica.settle().await;
        }
        let updated = set_end(&service, MICHAEL, end, OLIVIA).await.unwrap();
        let end = end.map(|end| end.seconds);
        assert_eq!(end_of(&updated), end);
        assert_ne!(updated.etag, etag);
        etag = updated.etag;
        for replica in [&service, &other] {
            let check = replica.check(ORG, MICHAEL).await.unwrap();
            assert!(check.is_member);
            assert_eq!(check.expire_time.map(|end| end.seconds), end);
        }
    }
    // The same end again changes nothing.
    let same = set_end(&service, MICHAEL, None, OLIVIA).await.unwrap();
    assert_eq!(same.etag, etag);
}

#[tokio::test]
async fn an_expired_membership_is_replaced_by_a_new_one() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let end = add_for(&service, Role::Admin, Duration::from_secs(2)).await;
    let mut added = Err(Status::unknown("not called"));
    eventually("the user is added again", async || {
        added = service.add(ORG, MICHAEL, Role::Member, OLIVIA).await;
        added.is_ok()
    })
    .await;
    assert!(SystemTime::now() >= end);
    let added = added.unwrap();
    assert_eq!((added.role(), added.expire_time), (Role::Member, None));
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Member));
}

#[tokio::test]
async fn an_actor_whose_membership_may_expire_during_the_commit_is_not_permitted() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    service.create_user("newcomer").await.unwrap();
    // The table may take two seconds.
    add_for(&service, Role::Admin, Duration::from_secs(2)).await;
    let added = service.add(ORG, "newcomer", Role::Member, MICHAEL).await;
    assert_refused(added, Code::PermissionDenied, "NOT_PERMITTED");
}

#[tokio::test]
async fn a_decision_that_is_late_is_made_again_before_its_actor_expires() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.create_user("newcomer").await.unwrap();
    let end = add_for(&service, Role::Admin, Duration::from_secs(6)).await;
    service.settle().await;
    backends.forget_calls();
    // The decision is made, and the commit waits for its fence.
    let fences = backends.momento.hold_all("SetIf", "newcomer");
    let adding = {
        let service = service.client.clone();
        let request = pb::AddUserToOrganizationRequest {
            organization_name: ORG.to_owned(),
            member_username: "newcomer".to_owned(),
            role: Role::Member.into(),
            adding_user: MICHAEL.to_owned(),
            ..pb::AddUserToOrganizationRequest::default()
        };
        tokio::spawn(async move { service.clone().add_user_to_organization(request).await })
    };
    eventually("the membership expires soon", async || {
        SystemTime::now() + Duration::from_secs(1) >= end
    })
    .await;
    assert!(!backends.momento.seen("SetIf").is_empty());
    drop(fences);
    let added = adding.await.unwrap();
    assert_refused(added, Code::PermissionDenied, "NOT_PERMITTED");
    assert_eq!(service.role_of(ORG, "newcomer").await, None);
}

#[tokio::test]
async fn an_organization_keeps_an_owner_whose_membership_does_not_expire() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let mut client = service.client.clone();
    let end = Some(from_now(HOUR));
    let added = client
        .add_user_to_organization(add_michael(Role::Owner, end))
        .await;
    added.unwrap();
    let last = "LAST_OWNER";
    let refused = service.remove(ORG, OLIVIA, OLIVIA).await;
    assert_refused(refused, Code::FailedPrecondition, last);
    let refused = service.remove(ORG, OLIVIA, MICHAEL).await;
    assert_refused(refused, Code::FailedPrecondition, last);
    let refused = service.change_role(ORG, OLIVIA, Role::Admin, MICHAEL).await;
    assert_refused(refused, Code::FailedPrecondition, last);
    let refused = set_end(&service, OLIVIA, end, MICHAEL).await;
    assert_refused(refused, Code::FailedPrecondition, last);
    // Nobody prolongs its own membership.
    for end in [None, Some(from_now(2 * HOUR))] {
        let refused = set_end(&service, MICHAEL, end, MICHAEL).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    }
    // A new owner's membership does not expire.
    let transferred = service.transfer(ORG, MICHAEL, Some(OLIVIA)).await.unwrap();
    assert_eq!(transferred.new_owner.unwrap().expire_time, None);
    let ended = set_end(&service, OLIVIA, end, MICHAEL).await.unwrap();
    assert_eq!(end_of(&ended), end.map(|end| end.seconds));
    service.remove(ORG, OLIVIA, OLIVIA).await.unwrap();
    let refused = service.remove(ORG, MICHAEL, MICHAEL).await;
    assert_refused(refused, Code::FailedPrecondition, last);
}

#[tokio::test]
async fn an_actor_whose_membership_expires_grants_nothing_that_outlasts_it() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    for username in ["newcomer", "lasting"] {
        service.create_user(username).await.unwrap();
    }
    service
        .add(ORG, "lasting", Role::Member, OLIVIA)
        .await
        .unwrap();
    let mut client = service.client.clone();
    let end = from_now(HOUR);
    let added = client
        .add_user_to_organization(add_michael(Role::Owner, Some(end)))
        .await;
    added.unwrap();
    let beyond = prost_types::Timestamp {
        seconds: end.seconds + 1,
        ..end
    };
    let denied = "NOT_PERMITTED";
    let add = |end| pb::AddUserToOrganizationRequest {
        member_username: "newcomer".to_owned(),
        adding_user: MICHAEL.to_owned(),
        ..add_michael(Role::Member, end)
    };
    for end in [None, Some(beyond)] {
        let refused = client.add_user_to_organization(add(end)).await;
        assert_refused(refused, Code::PermissionDenied, denied);
    }
    client
        .add_user_to_organization(add(Some(end)))
        .await
        .unwrap();
    for end in [None, Some(beyond)] {
        let refused = set_end(&service, "newcomer", end, MICHAEL).await;
        assert_refused(refused, Code::PermissionDenied, denied);
    }
    // A promotion within the end, and none beyond it.
    let promoted = service.change_role(ORG, "newcomer", Role::Owner, MICHAEL);
    promoted.await.unwrap();
    let refused = service.change_role(ORG, "lasting", Role::Admin, MICHAEL);
    assert_refused(refused.await, Code::PermissionDenied, denied);
    for new_owner in [MICHAEL, "lasting", "newcomer"] {
        let refused = service.transfer(ORG, new_owner, Some(MICHAEL)).await;
        assert_refused(refused, Code::PermissionDenied, denied);
    }
    // Restrictions are no grants.
    set_end(&service, "lasting", Some(end), MICHAEL)
        .await
        .unwrap();
    service.remove(ORG, "lasting", MICHAEL).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
}

#[tokio::test]
async fn a_repeated_request_shows_an_expired_membership_as_one_that_does_not_count() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let end = SystemTime::now() + Duration::from_secs(3);
    let request = pb::AddUserToOrganizationRequest {
        request_id: uuid::Uuid::new_v4().to_string(),
        ..add_michael(Role::Member, Some(end.into()))
    };
    let mut client = service.client.clone();
    client
        .add_user_to_organization(request.clone())
        .await
        .unwrap();
    eventually("the membership has expired", async || {
        SystemTime::now() >= end
    })
    .await;
    let again = client.add_user_to_organization(request).await.unwrap();
    let again = again.into_inner().membership.unwrap();
    assert_eq!(again.state(), pb::State::Suspended);
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn an_end_that_is_past_or_no_time_is_rejected() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let (now, later) = (from_now(Duration::ZERO), from_now(HOUR));
    let past = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
    let bad = [
        now,
        past(0),
        past(-1),
        past(i64::MIN),
        past(i64::MAX),
        prost_types::Timestamp { nanos: -1, ..later },
        prost_types::Timestamp {
            nanos: 1_000_000_000,
            ..later
        },
    ];
    let path = |details: tonic_types::ErrorDetails| {
        let violations = &details.bad_request().unwrap().field_violations;
        violations[0].field.clone()
    };
    for end in bad {
        let added = service
            .client
            .clone()
            .add_user_to_organization(add_michael(Role::Member, Some(end)))
            .await;
        let details = assert_refused(added, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(path(details), "expire_time");
    }
    service
        .add(ORG, MICHAEL, Role::Member, OLIVIA)
        .await
        .unwrap();
    for end in bad {
        let refused = set_end(&service, MICHAEL, Some(end), OLIVIA).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(path(details), "membership.expire_time");
    }
    for mask in ["roles", "expire_time.seconds", ""] {
        let update = pb::Membership::default();
        let refused = service
            .update_membership(ORG, MICHAEL, update, &[mask], OLIVIA)
            .await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(path(details), "update_mask.paths[0]");
    }
    let refused = service
        .client
        .clone()
        .update_membership(pb::UpdateMembershipRequest::default())
        .await;
    let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(path(details), "membership");
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Member));
}

#[tokio::test]
async fn each_replica_judges_an_end_by_its_own_clock() {
    fn ahead() -> Timestamp {
        Timestamp::now().after(Duration::from_secs(60))
    }
    let backends = Backends::start().await;
    let service = backends.replica().await;
    let ahead = patient(CoherenceSettings {
        wall_clock: ahead,
        ..backends.serve_settings().cache.to_coherence()
    });
    let ahead = Replica::start_with(&backends.serve_settings(), ahead).await;
    service.found_olivia_org().await;
    let mut client = service.client.clone();
    for (end, expected) in [(HOUR, Some(Role::Member)), (Duration::from_secs(50), None)] {
        let end = Some(from_now(end));
        let added = client
            .add_user_to_organization(add_michael(Role::Member, end))
            .await;
        added.unwrap();
        assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Member));
        assert_eq!(ahead.role_of(ORG, MICHAEL).await, expected);
        service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    }
}

fn labels(count: usize, value: &str) -> std::collections::BTreeMap<String, String> {
    let labels = (0..count).map(|number| (format!("label-{number}"), value.to_owned()));
    labels.collect()
}

#[tokio::test]
async fn labels_of_a_membership_are_returned_where_they_are_wanted() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    let mut client = other.client.clone();
    let added = pb::AddUserToOrganizationRequest {
        labels: labels(2, "first"),
        ..add_michael(Role::Member, None)
    };
    let added = client.add_user_to_organization(added).await.unwrap();
    let added = added.into_inner().membership.unwrap();
    assert_eq!(added.labels, labels(2, "first"));
    let check = |with_labels| pb::CheckMembershipRequest {
        organization_name: ORG.to_owned(),
        username: MICHAEL.to_owned(),
        with_labels,
        ..pb::CheckMembershipRequest::default()
    };
    let members = pb::ListOrganizationMembersRequest {
        organization_name: ORG.to_owned(),
        ..pb::ListOrganizationMembersRequest::default()
    };
    for value in ["first", "second"] {
        let wanted = labels(2, value);
        let checked = client.check_membership(check(true)).await.unwrap();
        assert_eq!(checked.into_inner().labels, wanted);
        let checked = client.check_membership(check(false)).await.unwrap();
        assert!(checked.into_inner().labels.is_empty());
        let (found, _) = other.get_membership(ORG, MICHAEL).await.unwrap();
        assert_eq!(found.labels, wanted);
        let listed = client.list_organization_members(members.clone()).await;
        let listed = listed.unwrap().into_inner().memberships;
        let listed = listed.iter().find(|it| it.member_username == MICHAEL);
        assert_eq!(listed.unwrap().labels, wanted);
        let update = pb::Membership {
            labels: labels(2, "second"),
            ..pb::Membership::default()
        };
        let updated = service
            .update_membership(ORG, MICHAEL, update, &["labels"], OLIVIA)
            .await;
        assert_eq!(updated.unwrap().labels, labels(2, "second"));
    }
    let update = pb::Membership {
        labels: labels(33, ""),
        ..pb::Membership::default()
    };
    let refused = service
        .update_membership(ORG, MICHAEL, update, &["labels"], OLIVIA)
        .await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    let cleared = service
        .update_membership(ORG, MICHAEL, pb::Membership::default(), &["*"], OLIVIA)
        .await;
    assert!(cleared.unwrap().labels.is_empty());
}

#[tokio::test]
async fn a_list_of_memberships_with_large_labels_has_pages_that_clients_accept() {
    const ORGANIZATIONS: usize = 230;
    let (_backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    let large = labels(32, &"x".repeat(256));
    for number in 0..ORGANIZATIONS {
        let organization = format!("org-{number}");
        let created = service.create_organization(&organization, OLIVIA).await;
        created.unwrap();
        let update = pb::Membership {
            labels: large.clone(),
            ..pb::Membership::default()
        };
        service
            .update_membership(&organization, OLIVIA, update, &["labels"], OLIVIA)
            .await
            .unwrap();
    }
    let mut client = service.client.clone();
    let (mut listed, mut pages) = (Vec::new(), 0);
    let mut request = pb::ListUserOrganizationsRequest {
        username: OLIVIA.to_owned(),
        page_size: 1000,
        ..pb::ListUserOrganizationsRequest::default()
    };
    loop {
        let page = client.list_user_organizations(request.clone()).await;
        let page = page.unwrap().into_inner();
        pages += 1;
        for membership in page.memberships {
            assert_eq!(membership.labels.len(), 32);
            listed.push(membership.organization_name);
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, 2);
    listed.dedup();
    assert_eq!(listed.len(), ORGANIZATIONS);
}

#[tokio::test]
async fn an_expired_member_is_no_member_in_the_memory_of_a_replica() {
    let (_backends, first, second) = super::near_cache::two().await;
    first.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    let end = add_for(&first, Role::Member, Duration::from_secs(6)).await;
    let mut from_memory = 0;
    loop {
        let before = SystemTime::now();
        let check = second.check(ORG, MICHAEL).await.unwrap();
        if before >= end {
            assert!(!check.is_member);
            break;
        }
        from_memory += usize::from(check.is_member && check.source() == Source::Memory);
    }
    assert!(from_memory > 0);
}
