//! The costs of each RPC at the table: read units as the table reports them, and the
//! items of transactions.

use std::time::Duration;

use account_service::proto::account_v1::{self as pb, Role};
use tonic::Status;

use crate::harness::{Backends, Replica, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const ADDRESS: &str = "michael@example.com";

/// Runs calls and measures their costs.
struct Meter {
    backends: Backends,
    service: Replica,
}

impl Meter {
    async fn start() -> Self {
        let (backends, service) = start().await;
        Self { backends, service }
    }

    /// The read units of a call.
    async fn units<T>(&self, call: impl Future<Output = Result<T, Status>>) -> f64 {
        self.service.settle().await;
        self.backends.dynamodb.meter();
        assert!(call.await.is_ok());
        self.service.settle().await;
        self.backends.dynamodb.charged()
    }

    /// The items of a call's transaction.
    async fn items<T>(&self, call: impl Future<Output = Result<T, Status>>) -> usize {
        self.backends.forget_calls();
        assert!(call.await.is_ok());
        let sent = self.backends.dynamodb.seen("TransactWriteItems");
        let transaction: serde_json::Value = serde_json::from_str(&sent[0]).unwrap();
        assert_eq!(sent.len(), 1);
        transaction["TransactItems"].as_array().unwrap().len()
    }
}

fn michael() -> pb::User {
    pb::User {
        username: MICHAEL.to_owned(),
        ..pb::User::default()
    }
}

fn update(user: pb::User, request_id: &str) -> pb::UpdateUserRequest {
    pb::UpdateUserRequest {
        user: Some(user),
        request_id: request_id.to_owned(),
        ..pb::UpdateUserRequest::default()
    }
}

fn address() -> pb::UpdateUserRequest {
    let user = pb::User {
        email: ADDRESS.to_owned(),
        ..michael()
    };
    update(user, "")
}

#[tokio::test]
#[expect(clippy::float_cmp, reason = "units come in halves")]
async fn reads_cost_the_documented_read_units() {
    let meter = Meter::start().await;
    let service = &meter.service;
    service.found_olivia_org_with_michael().await;
    let mut client = service.client.clone();
    client.update_user(address()).await.unwrap();
    let look_up = pb::LookupUserRequest {
        email: ADDRESS.to_owned(),
        ..pb::LookupUserRequest::default()
    };
    let members = pb::ListOrganizationMembersRequest {
        organization_name: ORG.to_owned(),
        ..pb::ListOrganizationMembersRequest::default()
    };
    let organizations = pb::ListUserOrganizationsRequest {
        username: MICHAEL.to_owned(),
        ..pb::ListUserOrganizationsRequest::default()
    };
    let uid = service.get_organization(ORG).await.unwrap().0.uid;
    for is_hit in [true, false] {
        let unless_hit = |units: f64| if is_hit { 0.0 } else { units };
        let cool = async || {
            if !is_hit {
                meter.backends.flush_cache().await;
            }
        };
        cool().await;
        let units = meter.units(service.get_user(OLIVIA)).await;
        assert_eq!(units, unless_hit(1.0), "GetUser");
        cool().await;
        let units = meter.units(service.get_organization(ORG)).await;
        assert_eq!(units, unless_hit(1.0), "GetOrganization");
        cool().await;
        let units = meter.units(service.get_membership(ORG, MICHAEL)).await;
        assert_eq!(units, unless_hit(3.0), "GetMembership");
        cool().await;
        let units = meter.units(service.check(ORG, MICHAEL)).await;
        assert_eq!(units, unless_hit(3.0), "CheckMembership");
        cool().await;
        let units = meter.units(client.lookup_user(look_up.clone())).await;
        assert_eq!(units, 1.0 + unless_hit(1.0), "LookupUser");
        cool().await;
        let by_uid = pb::LookupOrganizationRequest {
            uid: uid.clone(),
            ..pb::LookupOrganizationRequest::default()
        };
        let units = meter.units(client.lookup_organization(by_uid)).await;
        assert_eq!(units, 1.0 + unless_hit(1.0), "LookupOrganization");
        cool().await;
        let page = client.list_organization_members(members.clone());
        let units = meter.units(page).await;
        assert_eq!(units, 1.0 + unless_hit(3.0), "ListOrganizationMembers");
        cool().await;
        let page = client.list_user_organizations(organizations.clone());
        let units = meter.units(page).await;
        assert_eq!(units, 0.5 + unless_hit(3.0), "ListUserOrganizations");
    }
}

#[tokio::test]
async fn writes_have_the_documented_transaction_items() {
    let meter = Meter::start().await;
    let service = &meter.service;
    let mut client = service.client.clone();
    assert_eq!(meter.items(service.create_user(OLIVIA)).await, 2);
    service.create_user(MICHAEL).await.unwrap();
    let create = service.create_organization(ORG, OLIVIA);
    assert_eq!(meter.items(create).await, 4);
    let add = service.add(ORG, MICHAEL, Role::Member, OLIVIA);
    assert_eq!(meter.items(add).await, 5);
    let change = service.change_role(ORG, MICHAEL, Role::Admin, OLIVIA);
    assert_eq!(meter.items(change).await, 5);
    let labels = pb::Membership {
        labels: [("job".to_owned(), "nurse".to_owned())].into(),
        ..pb::Membership::default()
    };
    let change = service.update_membership(ORG, MICHAEL, labels, &["labels"], OLIVIA);
    assert_eq!(meter.items(change).await, 5);

    let user = pb::User {
        display_name: "Michael".to_owned(),
        ..michael()
    };
    let named = uuid::Uuid::new_v4().to_string();
    let named = update(user, &named);
    assert_eq!(meter.items(client.update_user(named)).await, 2);
    assert_eq!(meter.items(client.update_user(address())).await, 2);
    let suspend = pb::SuspendUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    assert_eq!(meter.items(client.suspend_user(suspend)).await, 1);
    let resume = pb::ResumeUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::ResumeUserRequest::default()
    };
    assert_eq!(meter.items(client.resume_user(resume)).await, 1);
    let described = pb::UpdateOrganizationRequest {
        organization: Some(pb::Organization {
            organization_name: ORG.to_owned(),
            display_name: "Olivia & Co".to_owned(),
            ..pb::Organization::default()
        }),
        actor: Some(pb::update_organization_request::Actor::ActingUser(
            OLIVIA.to_owned(),
        )),
        ..pb::UpdateOrganizationRequest::default()
    };
    let described = client.update_organization(described);
    assert_eq!(meter.items(described).await, 3);
    let transfer = pb::TransferOwnershipRequest {
        organization_name: ORG.to_owned(),
        new_owner: MICHAEL.to_owned(),
        actor: Some(pb::transfer_ownership_request::Actor::ActingUser(
            OLIVIA.to_owned(),
        )),
        ..pb::TransferOwnershipRequest::default()
    };
    assert_eq!(meter.items(client.transfer_ownership(transfer)).await, 5);
    let remove = service.remove(ORG, OLIVIA, MICHAEL);
    assert_eq!(meter.items(remove).await, 5);
    let delete = pb::DeleteOrganizationRequest {
        organization_name: ORG.to_owned(),
        actor: Some(pb::delete_organization_request::Actor::ActingUser(
            MICHAEL.to_owned(),
        )),
        ..pb::DeleteOrganizationRequest::default()
    };
    assert_eq!(meter.items(client.delete_organization(delete)).await, 5);
    assert_eq!(meter.items(service.delete_user(OLIVIA)).await, 3);
    // The address is deleted, too.
    assert_eq!(meter.items(service.delete_user(MICHAEL)).await, 4);
}

#[tokio::test]
async fn deletions_that_keep_the_record_have_the_documented_transaction_items() {
    let meter = Meter::start().await;
    let service = &meter.service;
    let mut client = service.client.clone();
    for username in [OLIVIA, MICHAEL] {
        service.create_user(username).await.unwrap();
    }
    service.create_organization(ORG, OLIVIA).await.unwrap();
    let window = Some(Duration::from_secs(3600).try_into().unwrap());
    let delete = pb::DeleteUserRequest {
        username: MICHAEL.to_owned(),
        undelete_window: window,
        ..pb::DeleteUserRequest::default()
    };
    assert_eq!(meter.items(client.delete_user(delete)).await, 2);
    let undelete = pb::UndeleteUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::UndeleteUserRequest::default()
    };
    assert_eq!(meter.items(client.undelete_user(undelete)).await, 2);
    service.create_user("newcomer").await.unwrap();
    let erase = pb::EraseUserRequest {
        username: "newcomer".to_owned(),
        ..pb::EraseUserRequest::default()
    };
    assert_eq!(meter.items(client.erase_user(erase)).await, 2);
    let delete = pb::DeleteOrganizationRequest {
        organization_name: ORG.to_owned(),
        actor: Some(pb::delete_organization_request::Actor::ActingUser(
            OLIVIA.to_owned(),
        )),
        undelete_window: window,
        ..pb::DeleteOrganizationRequest::default()
    };
    assert_eq!(meter.items(client.delete_organization(delete)).await, 4);
    let undelete = pb::UndeleteOrganizationRequest {
        organization_name: ORG.to_owned(),
        actor: Some(pb::undelete_organization_request::Actor::ActingUser(
            OLIVIA.to_owned(),
        )),
        ..pb::UndeleteOrganizationRequest::default()
    };
    assert_eq!(meter.items(client.undelete_organization(undelete)).await, 4);
}
