//! Tests of erasures: the name of an erased user is replaced or removed wherever it is stored.

use std::time::Duration;

use account_service::{background::erasure::ErasureTiming, boot::Tuning, proto::account_v1 as pb};
use pb::{Role, State, watch_changes_request::Start};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::{
    harness::{Backends, PATIENCE, Replica, assert_refused, from_now, pace, start},
    streams::{eventually, following},
};

const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const ORG: &str = "olivia-org";
const MICHAEL_ORG: &str = "michael-org";
const EMAIL: &str = "michael@example.com";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Short intervals, with this pause after each page.
pub fn at_once(pause: Duration) -> ErasureTiming {
    ErasureTiming {
        poll: pace(Duration::from_millis(20)),
        beat: pace(Duration::from_millis(50)),
        takeover: pace(Duration::from_millis(200)),
        pause,
        settle: Duration::from_secs(2),
        grace: Duration::ZERO,
    }
}

/// A follower of the stream that erases.
fn erasing(pause: Duration) -> Tuning {
    Tuning {
        erasure: Some(at_once(pause)),
        ..following()
    }
}

fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl Replica {
    async fn erase(&self, username: &str) -> Result<pb::Erasure, Status> {
        let request = pb::EraseUserRequest {
            username: username.to_owned(),
            ..pb::EraseUserRequest::default()
        };
        let erased = self.client.clone().erase_user(request).await?;
        Ok(erased.into_inner().erasure.unwrap())
    }

    async fn erasure(&self, id: &str) -> Result<pb::Erasure, Status> {
        let request = pb::GetErasureRequest {
            erasure_id: id.to_owned(),
        };
        let found = self.client.clone().get_erasure(request).await?;
        Ok(found.into_inner().erasure.unwrap())
    }

    /// Waits until an erasure is done.
    async fn erased(&self, id: &str) -> pb::Erasure {
        let mut erasure = None;
        eventually("the erasure is done", async || {
            erasure = self.erasure(id).await.ok();
            erasure.as_ref().is_some_and(|it| it.done_time.is_some())
        })
        .await;
        erasure.unwrap()
    }

    async fn create_full_michael(&self) {
        let request = pb::CreateUserRequest {
            username: MICHAEL.to_owned(),
            first_name: "Michael".to_owned(),
            email: EMAIL.to_owned(),
            external_id: "00u1".to_owned(),
            labels: [("team".to_owned(), "accounts".to_owned())].into(),
            request_id: request_id(),
            ..pb::CreateUserRequest::default()
        };
        self.client.clone().create_user(request).await.unwrap();
    }

    async fn add_with_id(&self, organization: &str, member: &str, adding_user: &str) {
        let request = pb::AddUserToOrganizationRequest {
            organization_name: organization.to_owned(),
            member_username: member.to_owned(),
            role: Role::Admin.into(),
            adding_user: adding_user.to_owned(),
            expire_time: (member == MICHAEL).then(|| from_now(DAY)),
            request_id: request_id(),
            ..pb::AddUserToOrganizationRequest::default()
        };
        let mut client = self.client.clone();
        client.add_user_to_organization(request).await.unwrap();
    }

    /// Michael is named in every way in which the service stores a name.
    async fn name_michael_everywhere(&self) {
        self.create_user(OLIVIA).await.unwrap();
        self.create_user("newcomer").await.unwrap();
        self.create_full_michael().await;
        self.create_organization(ORG, OLIVIA).await.unwrap();
        self.create_organization(MICHAEL_ORG, MICHAEL)
            .await
            .unwrap();
        self.add_with_id(ORG, MICHAEL, OLIVIA).await;
        self.add_with_id(MICHAEL_ORG, OLIVIA, MICHAEL).await;
        self.add(ORG, "newcomer", Role::Member, OLIVIA)
            .await
            .unwrap();
        let promoted = self.change_role(MICHAEL_ORG, OLIVIA, Role::Owner, MICHAEL);
        promoted.await.unwrap();
        // Michael is the last actor of a membership that does not name him.
        let labels = pb::Membership {
            labels: [("job".to_owned(), "nurse".to_owned())].into(),
            ..pb::Membership::default()
        };
        let labelled = self.update_membership(ORG, "newcomer", labels, &["labels"], MICHAEL);
        labelled.await.unwrap();
    }

    /// All responses of WatchChanges until now, as text.
    async fn all_changes(&self) -> String {
        let request = pb::WatchChangesRequest {
            start: Some(Start::Oldest(true)),
            ..pb::WatchChangesRequest::default()
        };
        let mut client = self.client.clone();
        let mut watch = client.watch_changes(request).await.unwrap().into_inner();
        self.create_user("last").await.unwrap();
        let mut texts = Vec::new();
        let reading = async {
            while !texts
                .last()
                .is_some_and(|text: &String| text.contains("\"last\""))
            {
                let response = watch.message().await.unwrap().unwrap();
                texts.push(format!("{:?}", response.changes));
            }
        };
        timeout(PATIENCE, reading).await.expect("too few changes");
        texts.concat()
    }
}

/// The primary keys of all items that contain the name.
async fn named(backends: &Backends) -> Vec<String> {
    let items = backends.table().items().await.into_iter();
    let named = items.filter(|item| format!("{item:?}").contains(MICHAEL));
    let key = |item: &std::collections::HashMap<_, aws_sdk_dynamodb::types::AttributeValue>| {
        format!(
            "{} {}",
            item["PK"].as_s().unwrap(),
            item["SK"].as_s().unwrap()
        )
    };
    named.map(|item| key(&item)).collect()
}

#[tokio::test]
async fn an_erased_user_is_named_only_where_the_erasure_reports_it() {
    let backends = Backends::start().await;
    let service = Replica::start_with(&backends.serve_settings(), erasing(Duration::ZERO)).await;
    let other = backends.replica().await;
    service.name_michael_everywhere().await;
    // Michael is named by a membership that has expired, and that the table has not removed.
    let (soon, member) = (from_now(Duration::from_secs(2)), Role::Member);
    let added = service.add_until(MICHAEL_ORG, "newcomer", member, MICHAEL, Some(soon));
    added.await.unwrap();
    eventually("the membership has expired", async || {
        service.role_of(MICHAEL_ORG, "newcomer").await.is_none()
    })
    .await;
    assert_eq!(other.role_of(ORG, MICHAEL).await, Some(Role::Admin));
    let before = named(&backends).await.len();
    assert!(before > 10, "{before}");

    let erasure = service.erase(MICHAEL).await.unwrap();
    assert_eq!(other.role_of(ORG, MICHAEL).await, None);
    let done = other.erased(&erasure.erasure_id).await;
    assert!(done.changed_count > 10 && done.examined_count > done.changed_count);
    assert!(done.remainders.iter().all(|it| it.until_time.is_some()));
    let pseudonym = done.pseudonym.clone();
    for remaining in named(&backends).await {
        let is_reported = remaining.starts_with("USER#membermichael ")
            || remaining.starts_with("LEFTOVERS ")
            || remaining.starts_with("DELETED#ORGMEMBERS#");
        assert!(is_reported, "{remaining}");
    }
    // The history is kept, under the pseudonym.
    for replica in [&service, &other] {
        let (organization, _) = replica.get_organization(MICHAEL_ORG).await.unwrap();
        assert_eq!(organization.founding_user, pseudonym);
        let (membership, _) = replica.get_membership(MICHAEL_ORG, OLIVIA).await.unwrap();
        assert_eq!(membership.adding_user, pseudonym);
        assert_eq!(membership.role(), Role::Owner);
    }
    let changes = service.all_changes().await;
    assert!(changes.contains(&pseudonym));
    for personal in [MICHAEL, "\"Michael\"", EMAIL, "00u1", "accounts"] {
        assert!(!changes.contains(personal), "{personal}");
    }
    // A new user of the name inherits nothing.
    service.create_full_michael().await;
    assert_eq!(other.role_of(MICHAEL_ORG, MICHAEL).await, None);
    service.create_organization("again", MICHAEL).await.unwrap();
    let (organization, _) = other.get_organization("again").await.unwrap();
    assert_eq!(organization.founding_user, MICHAEL);
}

#[tokio::test]
async fn the_name_of_a_user_that_is_being_erased_is_taken() {
    let (_backends, service) = start().await;
    service.name_michael_everywhere().await;
    let mut client = service.client.clone();
    let request = pb::EraseUserRequest {
        username: MICHAEL.to_owned(),
        request_id: request_id(),
        ..pb::EraseUserRequest::default()
    };
    let erased = client
        .erase_user(request.clone())
        .await
        .unwrap()
        .into_inner();
    let (found, _) = service.get_user(MICHAEL).await.unwrap();
    assert_eq!(found.state(), State::Deleted);
    assert_eq!(
        (found.first_name, found.email),
        <(String, String)>::default()
    );
    assert!(found.labels.is_empty() && found.purge_time.is_none());
    let taken = service.create_user(MICHAEL).await;
    assert_refused(taken, Code::AlreadyExists, "USER_ALREADY_EXISTS");
    let undelete = pb::UndeleteUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::UndeleteUserRequest::default()
    };
    let refused = client.undelete_user(undelete).await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
    let refused = service.delete_user(MICHAEL).await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
    // The address is free at once.
    let claim = pb::UpdateUserRequest {
        user: Some(pb::User {
            username: OLIVIA.to_owned(),
            email: EMAIL.to_owned(),
            ..pb::User::default()
        }),
        ..pb::UpdateUserRequest::default()
    };
    client.update_user(claim).await.unwrap();
    // Repeated, with the same request id and without: the same erasure.
    let again = client.erase_user(request).await.unwrap().into_inner();
    let anew = service.erase(MICHAEL).await.unwrap();
    let id = erased.erasure.unwrap().erasure_id;
    assert_eq!(again.erasure.unwrap().erasure_id, id);
    assert_eq!(anew.erasure_id, id);
    assert_eq!(anew.done_time, None);
    assert!(anew.remainders.iter().all(|it| it.until_time.is_none()));

    let refused = service.erase("nobody").await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
    let refused = service.erasure(&request_id()).await;
    assert_refused(refused, Code::NotFound, "ERASURE_NOT_FOUND");
    let refused = service.erasure(MICHAEL).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
}

#[tokio::test]
async fn an_erasure_is_continued_by_another_replica() {
    let backends = Backends::start().await;
    // After a page of the table, this replica pauses for longer than the test.
    let first = Replica::start_with(&backends.serve_settings(), erasing(DAY)).await;
    first.name_michael_everywhere().await;
    for number in 0..120 {
        first.create_user(&format!("user-{number}")).await.unwrap();
    }
    let erasure = first.erase(MICHAEL).await.unwrap();
    let mut examined = 0;
    eventually("a page is examined", async || {
        examined = first
            .erasure(&erasure.erasure_id)
            .await
            .unwrap()
            .examined_count;
        examined > 0
    })
    .await;
    // It stops without releasing its lease.
    drop(first);
    let second = Replica::start_with(&backends.serve_settings(), erasing(Duration::ZERO)).await;
    let done = second.erased(&erasure.erasure_id).await;
    assert!(done.examined_count > examined);
    let (organization, _) = second.get_organization(MICHAEL_ORG).await.unwrap();
    assert_eq!(organization.founding_user, done.pseudonym);
    second.create_full_michael().await;
}

#[tokio::test]
async fn a_deleted_user_is_erased_and_the_last_owner_is_not_if_so_requested() {
    let (backends, service) = start().await;
    service.name_michael_everywhere().await;
    let request = pb::EraseUserRequest {
        username: OLIVIA.to_owned(),
        unless_last_owner: true,
        ..pb::EraseUserRequest::default()
    };
    let refused = service.client.clone().erase_user(request).await;
    assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
    let delete = pb::DeleteUserRequest {
        username: MICHAEL.to_owned(),
        undelete_window: Some(DAY.try_into().unwrap()),
        ..pb::DeleteUserRequest::default()
    };
    service.client.clone().delete_user(delete).await.unwrap();
    service.erase(MICHAEL).await.unwrap();
    let items = backends.table().items().await.into_iter();
    let mut purges = items.filter(|item| item["PK"].as_s().unwrap() == "PURGES");
    assert!(purges.next().is_none());
}

#[tokio::test]
async fn an_erasure_that_is_interrupted_after_the_purge_does_not_touch_the_next_user_of_the_name() {
    let backends = Backends::start().await;
    let service = Replica::start_with(&backends.serve_settings(), erasing(Duration::ZERO)).await;
    service.name_michael_everywhere().await;
    let (first, _) = service.get_user(MICHAEL).await.unwrap();
    // The progress cannot be saved once the user is purged.
    backends
        .dynamodb
        .answer_about("PutItem", "\"REST\"", 500, "");
    let erasure = service.erase(MICHAEL).await.unwrap();
    eventually("the name is free", async || {
        service.create_user(MICHAEL).await.is_ok()
    })
    .await;
    service.add_with_id(ORG, MICHAEL, OLIVIA).await;
    let scheduled = async || {
        let items = backends.table().items().await.into_iter();
        let ends = items.filter(|item| item["PK"].as_s().unwrap() == "EXPIRIES");
        let of_michael = ends.filter(|item| item["SK"].as_s().unwrap().ends_with(MICHAEL));
        of_michael.count()
    };
    eventually("the end is scheduled", async || scheduled().await == 1).await;
    backends.dynamodb.clear_rules();
    service.erased(&erasure.erasure_id).await;
    assert_eq!(scheduled().await, 1);
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Admin));
    // The log names only the second incarnation.
    for item in backends.table().items().await {
        if item["PK"].as_s().unwrap().starts_with("CHANGELOG#") {
            let item = format!("{item:?}");
            assert!(
                !item.contains(MICHAEL) || !item.contains(&first.uid),
                "{item}"
            );
        }
    }
}
