//! The templates for AWS and Kubernetes. The role for AWS allows exactly the actions of
//! the service.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use account_service::{background::stream_invalidator::InvalidatorTiming, proto::account_v1 as pb};

use crate::{
    erasure,
    harness::{Backends, Replica},
    leftovers::cleaning,
    streams::eventually,
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
/// The steps of a transaction: their names in DynamoDB's requests, and in IAM.
const STEPS: [(&str, &str); 4] = [
    ("\"ConditionCheck\"", "ConditionCheckItem"),
    ("\"Delete\"", "DeleteItem"),
    ("\"Put\"", "PutItem"),
    ("\"Update\"", "UpdateItem"),
];

/// An action of IAM, and its resource as the template writes it.
type Grant = (String, &'static str);

const TABLE: &str = "!GetAtt Table.Arn";
const INDEX: &str = "!Sub \"${Table.Arn}/index/*\"";
const STREAM: &str = "!GetAtt Table.StreamArn";

fn allowed() -> BTreeSet<Grant> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/cloudformation.yaml");
    let template = fs::read_to_string(path).unwrap();
    let mut allowed = BTreeSet::new();
    for statement in template.split("Effect: Allow") {
        let resource = statement
            .lines()
            .find_map(|line| line.trim().strip_prefix("Resource: "));
        let resource = [TABLE, INDEX, STREAM]
            .into_iter()
            .find(|known| Some(*known) == resource);
        let actions = statement
            .lines()
            .filter_map(|line| line.split_once("dynamodb:"));
        for (_, action) in actions {
            let resource = resource.expect("an unknown resource");
            allowed.insert((action.trim().to_owned(), resource));
        }
    }
    allowed
}

#[test]
fn the_manifest_restarts_hung_processes_and_restricts_access() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes.yaml");
    let manifest = fs::read_to_string(path).unwrap();
    // A TCP probe would succeed: a hung process still accepts connections.
    assert!(!manifest.contains("tcpSocket"));
    for part in [
        "service: liveness",
        "service: account.v1.AccountService",
        "automountServiceAccountToken: false",
        "kind: NetworkPolicy",
        "topologyKey: kubernetes.io/hostname",
        "ephemeral-storage: ",
    ] {
        assert!(manifest.contains(part), "{part}");
    }
}

#[tokio::test]
async fn the_role_of_the_template_allows_exactly_the_actions_of_the_service() {
    let backends = Backends::start().await;
    let mut tuning = cleaning(&backends, 1000);
    tuning.invalidator = Some(InvalidatorTiming::default());
    tuning.erasure = Some(erasure::at_once(Duration::ZERO));
    let service = Replica::start_with(&backends.serve_settings(), tuning).await;
    let mut client = service.client.clone();
    service.found_olivia_org_with_michael().await;
    let request = pb::UpdateUserRequest {
        user: Some(pb::User {
            username: MICHAEL.to_owned(),
            email: "michael@example.com".to_owned(),
            ..pb::User::default()
        }),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..pb::UpdateUserRequest::default()
    };
    client.update_user(request).await.unwrap();
    client
        .list_users(pb::ListUsersRequest::default())
        .await
        .unwrap();
    let request = pb::ListOrganizationMembersRequest {
        organization_name: ORG.to_owned(),
        ..pb::ListOrganizationMembersRequest::default()
    };
    client.list_organization_members(request).await.unwrap();
    eventually("the stream is followed", async || {
        client
            .watch_changes(pb::WatchChangesRequest::default())
            .await
            .is_ok()
    })
    .await;
    service.get_user(OLIVIA).await.unwrap();
    service.delete_user(MICHAEL).await.unwrap();
    service.create_user("newcomer").await.unwrap();
    let erase = pb::EraseUserRequest {
        username: "newcomer".to_owned(),
        ..pb::EraseUserRequest::default()
    };
    client.erase_user(erase).await.unwrap();
    eventually("the table is examined for the erased user", async || {
        !backends.dynamodb.seen("Scan").is_empty()
    })
    .await;
    let left = backends.table();
    eventually("the orphan is removed", async || {
        let (pk, sk) = ("ORGMEMBERS#olivia-org", "MEMBER#membermichael");
        left.count(pk, sk).await == 0
    })
    .await;
    let mut done = BTreeSet::new();
    for (call, about) in backends.dynamodb.all_seen() {
        let resource = match call.as_str() {
            "DescribeStream" | "GetRecords" | "GetShardIterator" => STREAM,
            _ if about.contains("\"IndexName\"") => INDEX,
            _ => TABLE,
        };
        if call != "TransactWriteItems" {
            done.insert((call, resource));
            continue;
        }
        let steps = STEPS.iter().filter(|(step, _)| about.contains(step));
        done.extend(steps.map(|(_, action)| ((*action).to_owned(), resource)));
    }
    assert_eq!(done, allowed());
}
