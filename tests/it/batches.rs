//! Many users or organizations in one read.

use account_service::proto::account_v1::{self as pb, Source};
use tonic::Code;

use crate::harness::{Backends, assert_refused, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

fn names(batch: &pb::BatchGetUsersResponse) -> Vec<&str> {
    let users = batch.users.iter();
    users.map(|user| user.username.as_str()).collect()
}

fn assert_calls(backends: &Backends, expected: &[&str]) {
    assert_eq!(backends.calls(), expected);
    backends.forget_calls();
}

#[tokio::test]
async fn users_are_returned_in_order_and_once_after_one_round_trip() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.settle().await;
    backends.forget_calls();
    let wanted = [MICHAEL, "nobody", OLIVIA, MICHAEL, "nobody"];
    for source in [Source::Store, Source::Cache] {
        let batch = service.get_users(&wanted).await;
        assert_eq!(names(&batch), [MICHAEL, OLIVIA]);
        assert_eq!(batch.not_found, ["nobody"]);
        assert_eq!(batch.source(), source);
        service.settle().await;
        match source {
            // Only the missing keys are leased, read and filled.
            Source::Store => {
                assert_calls(&backends, &["1 x GetBatch", "2 x SetIf", "1 x GetItem"]);
            }
            _ => assert_calls(&backends, &["1 x GetBatch"]),
        }
    }
}

#[tokio::test]
async fn more_than_300_users_take_several_round_trips_and_are_returned_in_order() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.settle().await;
    let strangers: Vec<_> = (0..599).map(|it| format!("stranger-{it}")).collect();
    let mut wanted: Vec<_> = strangers.iter().map(String::as_str).collect();
    wanted.insert(0, OLIVIA);
    wanted.insert(350, MICHAEL);
    backends.forget_calls();
    let batch = service.get_users(&wanted).await;
    assert_eq!(names(&batch), [OLIVIA, MICHAEL]);
    assert_eq!(batch.not_found, strangers);
    assert_eq!(backends.momento.seen("GetBatch").len(), 3);
}

#[tokio::test]
async fn organizations_are_returned_in_order_after_one_round_trip() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service
        .create_organization("another-org", MICHAEL)
        .await
        .unwrap();
    service.settle().await;
    backends.forget_calls();
    let request = pb::BatchGetOrganizationsRequest {
        organization_names: ["another-org", ORG].map(str::to_owned).into(),
        consistency: None,
    };
    let mut client = service.client.clone();
    let batch = client.batch_get_organizations(request).await.unwrap();
    let batch = batch.into_inner();
    let founders = batch.organizations.iter();
    let founders: Vec<_> = founders.map(|it| it.founding_user.as_str()).collect();
    assert_eq!(founders, [MICHAEL, OLIVIA]);
    assert_eq!(batch.not_found, Vec::<String>::new());
    assert_eq!(batch.source(), Source::Cache);
    assert_calls(&backends, &["1 x GetBatch"]);
}

#[tokio::test]
async fn a_batch_entry_that_the_cache_omits_is_unknown_and_not_absent() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.settle().await;
    backends.cut_batches_after(1);
    let batch = service.get_users(&[OLIVIA, MICHAEL]).await;
    assert_eq!(names(&batch), [OLIVIA, MICHAEL]);
    assert_eq!(batch.source(), Source::Store);
}

#[tokio::test]
async fn a_batch_of_1000_names_is_accepted_and_a_longer_one_is_rejected() {
    let (_backends, service) = start().await;
    service.create_user("u7").await.unwrap();
    let many: Vec<_> = (0..1001).map(|number| format!("u{number}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let batch = service.get_users(&many[..1000]).await;
    assert_eq!(names(&batch), ["u7"]);
    assert_eq!(batch.not_found.len(), 999);
    for (usernames, field) in [
        (many, "usernames"),
        (vec![], "usernames"),
        (vec!["fine", "not\nfine"], "usernames[1]"),
    ] {
        let request = pb::BatchGetUsersRequest {
            usernames: usernames.into_iter().map(str::to_owned).collect(),
            consistency: None,
        };
        let refused = service.client.clone().batch_get_users(request).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        let violations = details.bad_request().unwrap().field_violations.clone();
        assert_eq!(violations[0].field, field);
    }
}
