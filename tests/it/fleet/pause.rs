//! A replica that the operating system pauses for seconds.

use std::{process::Command, time::Duration};

use tonic::{Request, transport::Channel};

use account_service::proto::account_v1::{self as pb, Source};

use super::{Fleet, endpoint};
use crate::{harness::Client, streams::eventually};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

/// Rounds: the membership is removed while the replica is paused, and added again.
const ROUNDS: usize = 3;
/// A write waits for the paused replica until it has left.
const WRITE_TIME: Duration = Duration::from_secs(20);

/// Sends a signal to a replica.
fn signal(fleet: &Fleet, place: usize, name: &str) {
    let pid = fleet.pid(place).unwrap().to_string();
    let sent = Command::new("kill").args([name, &pid]).status();
    assert!(sent.unwrap().success());
}

async fn client(fleet: &Fleet, place: usize) -> Client {
    let channel: Channel = endpoint(&fleet.places[place].addr).connect().await.unwrap();
    Client::new(channel)
}

async fn check(client: &mut Client) -> pb::CheckMembershipResponse {
    let request = pb::CheckMembershipRequest {
        organization_name: ORG.to_owned(),
        username: MICHAEL.to_owned(),
        ..pb::CheckMembershipRequest::default()
    };
    client.check_membership(request).await.unwrap().into_inner()
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(WRITE_TIME);
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_paused_serves_no_stale_record() {
    let fleet = Fleet::start_with_near_caches(2).await;
    let mut writer = client(&fleet, 0).await;
    let mut paused = client(&fleet, 1).await;
    for username in [OLIVIA, MICHAEL] {
        let user = pb::CreateUserRequest {
            username: username.to_owned(),
            first_name: "Olivia".to_owned(),
            last_name: "Smith".to_owned(),
            ..pb::CreateUserRequest::default()
        };
        writer.create_user(within(user)).await.unwrap();
    }
    let organization = pb::CreateOrganizationRequest {
        organization_name: ORG.to_owned(),
        founding_user: OLIVIA.to_owned(),
        ..pb::CreateOrganizationRequest::default()
    };
    writer
        .create_organization(within(organization))
        .await
        .unwrap();
    for _ in 0..ROUNDS {
        let membership = pb::AddUserToOrganizationRequest {
            organization_name: ORG.to_owned(),
            member_username: MICHAEL.to_owned(),
            role: pb::Role::Member.into(),
            adding_user: OLIVIA.to_owned(),
            ..pb::AddUserToOrganizationRequest::default()
        };
        writer
            .add_user_to_organization(within(membership))
            .await
            .unwrap();
        // Also after it was evicted in the round before.
        eventually("the membership is in memory", async || {
            let found = check(&mut paused.clone()).await;
            found.is_member && found.source() == Source::Memory
        })
        .await;
        signal(&fleet, 1, "-STOP");
        let removal = pb::RemoveUserFromOrganizationRequest {
            organization_name: ORG.to_owned(),
            member_username: MICHAEL.to_owned(),
            acting_user: OLIVIA.to_owned(),
            ..pb::RemoveUserFromOrganizationRequest::default()
        };
        let removed = writer.remove_user_from_organization(within(removal)).await;
        signal(&fleet, 1, "-CONT");
        removed.unwrap();
        for _ in 0..100 {
            assert!(!check(&mut paused).await.is_member);
        }
    }
}
