//! The tutorial's walk-through.

use account_service::proto::account_v1::{self as pb, Role};
use tonic::Code;

use crate::harness::{assert_refused, start};

#[tokio::test]
async fn olivia_founds_an_organization_and_adds_michael() {
    let (_backends, service) = start().await;
    let request = pb::CreateUserRequest {
        username: "oliviaowner".to_owned(),
        first_name: "Olivia".to_owned(),
        last_name: "Smith".to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let reply = service.client.clone().create_user(request).await.unwrap();
    let olivia = reply.into_inner().user.unwrap();
    assert_eq!(olivia.username, "oliviaowner");
    assert_eq!(olivia.first_name, "Olivia");
    assert_eq!(olivia.last_name, "Smith");
    assert!(!olivia.uid.is_empty());
    assert!(olivia.create_time.is_some());
    assert_eq!(service.get_user("oliviaowner").await.unwrap().0, olivia);

    service.create_user("membermichael").await.unwrap();
    let founded = service
        .create_organization("olivia-org", "oliviaowner")
        .await
        .unwrap();
    assert_eq!(founded.founding_user, "oliviaowner");
    let found = service.get_organization("olivia-org").await.unwrap().0;
    assert_eq!(found, founded);
    let owner = service.get_membership("olivia-org", "oliviaowner").await;
    assert_eq!(owner.unwrap().0.role(), Role::Owner);

    assert_eq!(service.role_of("olivia-org", "membermichael").await, None);
    let added = service
        .add("olivia-org", "membermichael", Role::Member, "oliviaowner")
        .await
        .unwrap();
    assert_eq!(added.adding_user, "oliviaowner");
    let role = service.role_of("olivia-org", "membermichael").await;
    assert_eq!(role, Some(Role::Member));
    let found = service.get_membership("olivia-org", "membermichael").await;
    assert_eq!(found.unwrap().0, added);

    let removed = service
        .remove("olivia-org", "membermichael", "oliviaowner")
        .await
        .unwrap();
    assert_eq!(removed, added);
    assert_eq!(service.role_of("olivia-org", "membermichael").await, None);
    assert_refused(
        service.get_membership("olivia-org", "membermichael").await,
        Code::NotFound,
        "MEMBERSHIP_NOT_FOUND",
    );
}

#[tokio::test]
async fn a_deleted_user_is_denied_at_once_and_a_new_user_of_the_name_inherits_nothing() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    let role = other.role_of("olivia-org", "membermichael").await;
    assert_eq!(role, Some(Role::Member));

    let deleted = service.delete_user("membermichael").await.unwrap();
    assert_eq!(other.role_of("olivia-org", "membermichael").await, None);
    assert_refused(
        other.get_user("membermichael").await,
        Code::NotFound,
        "USER_NOT_FOUND",
    );

    let created = service.create_user("membermichael").await.unwrap();
    assert_ne!(created.uid, deleted.uid);
    assert_eq!(other.role_of("olivia-org", "membermichael").await, None);
    assert_refused(
        other.get_membership("olivia-org", "membermichael").await,
        Code::NotFound,
        "MEMBERSHIP_NOT_FOUND",
    );
    service
        .add("olivia-org", "membermichael", Role::Admin, "oliviaowner")
        .await
        .unwrap();
    let role = other.role_of("olivia-org", "membermichael").await;
    assert_eq!(role, Some(Role::Admin));
}

#[tokio::test]
async fn a_batch_returns_the_same_results_as_single_checks() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let check = |organization: &str, username: &str, minimum_role: Role| pb::MembershipCheck {
        organization_name: organization.to_owned(),
        username: username.to_owned(),
        minimum_role: minimum_role.into(),
    };
    let checks = vec![
        check("olivia-org", "oliviaowner", Role::Unspecified),
        check("olivia-org", "membermichael", Role::Admin),
        check("olivia-org", "nobody", Role::Unspecified),
        check("no-org", "oliviaowner", Role::Unspecified),
        check("olivia-org", "oliviaowner", Role::Owner),
        check("olivia-org", "membermichael", Role::Member),
    ];
    let consistencies = [
        None,
        Some(pb::ReadConsistency {
            requirement: Some(pb::read_consistency::Requirement::FullyConsistent(true)),
        }),
    ];
    for consistency in consistencies {
        let request = pb::BatchCheckMembershipsRequest {
            checks: checks.clone(),
            consistency,
        };
        let reply = service
            .client
            .clone()
            .batch_check_memberships(request)
            .await;
        let results = reply.unwrap().into_inner().results;
        let results: Vec<_> = results
            .iter()
            .map(|result| (result.is_member, result.role(), result.satisfied))
            .collect();
        assert_eq!(
            results,
            [
                (true, Role::Owner, true),
                (true, Role::Member, false),
                (false, Role::Unspecified, false),
                (false, Role::Unspecified, false),
                (true, Role::Owner, true),
                (true, Role::Member, true),
            ]
        );
    }
}

#[tokio::test]
async fn a_batch_of_1000_checks_returns_its_results_in_order() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let checks = (0..1000).map(|at| pb::MembershipCheck {
        organization_name: "olivia-org".to_owned(),
        username: if at % 10 == 7 {
            "oliviaowner".to_owned()
        } else {
            format!("user-{at}")
        },
        ..pb::MembershipCheck::default()
    });
    let request = pb::BatchCheckMembershipsRequest {
        checks: checks.collect(),
        consistency: None,
    };
    for _ in 0..2 {
        let mut client = service.client.clone();
        let reply = client.batch_check_memberships(request.clone()).await;
        let results = reply.unwrap().into_inner().results;
        assert_eq!(results.len(), 1000);
        for (at, result) in results.iter().enumerate() {
            assert_eq!(result.is_member, at % 10 == 7, "{at}");
        }
        service.settle().await;
    }
}
