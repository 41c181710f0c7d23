//! The records that decide about a write are conditions of its transaction. If another
//! write changes them between the decision and the commit, the write is decided anew.

use account_service::proto::account_v1::{
    self as pb, Role, delete_organization_request as delete, update_organization_request as update,
};
use tonic::{Code, Status};

use crate::harness::{Backends, Replica, Table, assert_refused, start};

/// People of a case. All but the last two have memberships when it begins.
const OWNER: &str = "owner";
const SECOND: &str = "second";
const ADMIN: &str = "admin";
const MEMBER: &str = "member";
const OUTSIDER: &str = "outsider";
/// A user who does not exist.
const NEWCOMER: &str = "newcomer";

/// A write, or an edit past the service.
#[derive(Debug, Clone, Copy)]
enum Write {
    Add(&'static str, &'static str, Role),
    ChangeRole(&'static str, &'static str, Role),
    Remove(&'static str, &'static str),
    /// By a user, or by the platform.
    Transfer(Option<&'static str>, &'static str),
    UpdateOrganization(&'static str),
    DeleteOrganization(&'static str),
    /// An organization of another name.
    Found(&'static str),
    CreateUser(&'static str),
    DeleteUser(&'static str),
    RecreateUser(&'static str),
    SuspendUser(&'static str),
    SuspendOrganization,
    /// By the outsider.
    RecreateOrganization,
    /// Of a membership: the attribute gets another value.
    Edit(&'static str, &'static str),
}

/// The names of one case.
struct World<'a> {
    service: &'a Replica,
    table: &'a Table,
    organization: String,
}

impl World<'_> {
    fn name(&self, person: &str) -> String {
        format!("{person}.{}", self.organization)
    }

    /// An Owner, a second one, an Admin, a Member, and an outsider.
    async fn found(&self) {
        let owner = self.name(OWNER);
        for person in [OWNER, SECOND, ADMIN, MEMBER, OUTSIDER] {
            self.service.create_user(&self.name(person)).await.unwrap();
        }
        let founded = self.service.create_organization(&self.organization, &owner);
        founded.await.unwrap();
        for (person, role) in [
            (SECOND, Role::Owner),
            (ADMIN, Role::Admin),
            (MEMBER, Role::Member),
        ] {
            self.apply(Write::Add(OWNER, person, role)).await.unwrap();
        }
    }

    async fn apply(&self, write: Write) -> Result<(), Status> {
        let (service, organization) = (self.service, self.organization.as_str());
        let mut client = service.client.clone();
        match write {
            Write::Add(actor, target, role) => {
                let (actor, target) = (self.name(actor), self.name(target));
                service
                    .add(organization, &target, role, &actor)
                    .await
                    .map(drop)
            }
            Write::ChangeRole(actor, target, role) => {
                let (actor, target) = (self.name(actor), self.name(target));
                let changed = service.change_role(organization, &target, role, &actor);
                changed.await.map(drop)
            }
            Write::Remove(actor, target) => {
                let (actor, target) = (self.name(actor), self.name(target));
                service
                    .remove(organization, &target, &actor)
                    .await
                    .map(drop)
            }
            Write::Transfer(actor, target) => {
                let (actor, target) = (actor.map(|actor| self.name(actor)), self.name(target));
                let transferred = service.transfer(organization, &target, actor.as_deref());
                transferred.await.map(drop)
            }
            Write::UpdateOrganization(actor) => {
                let request = pb::UpdateOrganizationRequest {
                    organization: Some(pb::Organization {
                        organization_name: organization.to_owned(),
                        display_name: "Changed".to_owned(),
                        ..pb::Organization::default()
                    }),
                    actor: Some(update::Actor::ActingUser(self.name(actor))),
                    ..pb::UpdateOrganizationRequest::default()
                };
                client.update_organization(request).await.map(drop)
            }
            Write::DeleteOrganization(actor) => {
                let actor = delete::Actor::ActingUser(self.name(actor));
                self.delete_organization(actor).await
            }
            Write::Found(founder) => {
                let (name, founder) = (format!("{organization}-b"), self.name(founder));
                let created = service.create_organization(&name, &founder);
                created.await.map(drop)
            }
            Write::CreateUser(person) => service.create_user(&self.name(person)).await.map(drop),
            Write::DeleteUser(person) => service.delete_user(&self.name(person)).await.map(drop),
            Write::RecreateUser(person) => {
                service.delete_user(&self.name(person)).await?;
                service.create_user(&self.name(person)).await.map(drop)
            }
            Write::SuspendUser(person) => {
                let request = pb::SuspendUserRequest {
                    username: self.name(person),
                    ..pb::SuspendUserRequest::default()
                };
                client.suspend_user(request).await.map(drop)
            }
            Write::SuspendOrganization => {
                let request = pb::SuspendOrganizationRequest {
                    organization_name: organization.to_owned(),
                    ..pb::SuspendOrganizationRequest::default()
                };
                client.suspend_organization(request).await.map(drop)
            }
            Write::RecreateOrganization => {
                self.delete_organization(delete::Actor::AsPlatform(true))
                    .await?;
                let founder = self.name(OUTSIDER);
                let created = service.create_organization(organization, &founder);
                created.await.map(drop)
            }
            Write::Edit(person, attribute) => {
                let pk = format!("ORGMEMBERS#{organization}");
                let sk = format!("MEMBER#{}", self.name(person));
                self.table.set_text(&pk, &sk, attribute, "another").await;
                Ok(())
            }
        }
    }

    async fn delete_organization(&self, actor: delete::Actor) -> Result<(), Status> {
        let request = pb::DeleteOrganizationRequest {
            organization_name: self.organization.clone(),
            actor: Some(actor),
            ..pb::DeleteOrganizationRequest::default()
        };
        let mut client = self.service.client.clone();
        client.delete_organization(request).await.map(drop)
    }
}

type Expected = Result<(), (Code, &'static str)>;

const NOT_PERMITTED: Expected = Err((Code::PermissionDenied, "NOT_PERMITTED"));
const NO_USER: Expected = Err((Code::NotFound, "USER_NOT_FOUND"));
const NO_ORGANIZATION: Expected = Err((Code::NotFound, "ORGANIZATION_NOT_FOUND"));
const NO_MEMBER: Expected = Err((Code::NotFound, "MEMBERSHIP_NOT_FOUND"));
const MEMBER_EXISTS: Expected = Err((Code::AlreadyExists, "MEMBERSHIP_ALREADY_EXISTS"));
const USER_EXISTS: Expected = Err((Code::AlreadyExists, "USER_ALREADY_EXISTS"));
const ORGANIZATION_EXISTS: Expected = Err((Code::AlreadyExists, "ORGANIZATION_ALREADY_EXISTS"));
const LAST_OWNER: Expected = Err((Code::FailedPrecondition, "LAST_OWNER"));
const SUSPENDED: Expected = Err((Code::FailedPrecondition, "NEW_OWNER_SUSPENDED"));

/// Every write on behalf of a user, with its target.
const BY_ADMIN: [Write; 4] = [
    Write::Add(ADMIN, OUTSIDER, Role::Member),
    Write::ChangeRole(ADMIN, MEMBER, Role::Admin),
    Write::Remove(ADMIN, MEMBER),
    Write::UpdateOrganization(ADMIN),
];
const BY_OWNER: [Write; 3] = [
    Write::Transfer(Some(OWNER), MEMBER),
    Write::DeleteOrganization(OWNER),
    Write::Remove(OWNER, OWNER),
];

/// Writes that take a person's role away.
fn depositions(person: &'static str) -> Vec<Write> {
    vec![
        Write::SuspendUser(person),
        Write::DeleteUser(person),
        Write::RecreateUser(person),
        Write::SuspendOrganization,
        Write::RecreateOrganization,
        Write::Remove(SECOND, person),
        Write::ChangeRole(SECOND, person, Role::Member),
        Write::Edit(person, "memberUid"),
        Write::Edit(person, "organizationUid"),
    ]
}

/// A write, another write between its decision and its commit, and the expected result.
fn cases() -> Vec<(Write, Write, Expected)> {
    let mut cases = Vec::new();
    let mut add = |write, expected, meanwhile: &[Write]| {
        cases.extend(meanwhile.iter().map(|&between| (write, between, expected)));
    };
    for write in BY_ADMIN {
        add(write, NOT_PERMITTED, &depositions(ADMIN));
    }
    for write in BY_OWNER {
        // A plain Member may leave, too.
        let mut deposed = depositions(OWNER);
        if matches!(write, Write::Remove(..)) {
            deposed.retain(|it| !matches!(it, Write::ChangeRole(..)));
        }
        add(write, NOT_PERMITTED, &deposed);
    }
    let added = Write::Add(OWNER, OUTSIDER, Role::Member);
    add(added, NO_USER, &[Write::DeleteUser(OUTSIDER)]);
    add(
        added,
        MEMBER_EXISTS,
        &[Write::Add(SECOND, OUTSIDER, Role::Admin)],
    );
    add(added, Ok(()), &[Write::RecreateUser(OUTSIDER)]);
    let gone = [
        Write::Remove(SECOND, MEMBER),
        Write::DeleteUser(MEMBER),
        Write::RecreateUser(MEMBER),
        Write::Edit(MEMBER, "memberUid"),
        Write::Edit(MEMBER, "organizationUid"),
    ];
    for write in [
        Write::ChangeRole(OWNER, MEMBER, Role::Admin),
        Write::Transfer(Some(OWNER), MEMBER),
    ] {
        add(write, NO_MEMBER, &gone);
    }
    // On behalf of the platform, any user becomes an Owner.
    for (new_owner, meanwhile) in [
        (
            MEMBER,
            &[
                Write::Remove(SECOND, MEMBER),
                Write::Edit(MEMBER, "memberUid"),
                Write::Edit(MEMBER, "organizationUid"),
            ][..],
        ),
        (OUTSIDER, &[Write::Add(SECOND, OUTSIDER, Role::Admin)]),
    ] {
        let transferred = Write::Transfer(None, new_owner);
        let deleted = [Write::DeleteOrganization(OWNER)];
        add(transferred, Ok(()), meanwhile);
        add(transferred, Ok(()), &[Write::RecreateUser(new_owner)]);
        add(transferred, Ok(()), &[Write::RecreateOrganization]);
        add(transferred, NO_USER, &[Write::DeleteUser(new_owner)]);
        add(transferred, NO_ORGANIZATION, &deleted);
    }
    // An Admin may remove a Member, and not an Owner.
    let promoted = [Write::ChangeRole(OWNER, MEMBER, Role::Owner)];
    add(Write::Remove(ADMIN, MEMBER), NOT_PERMITTED, &promoted);
    add(
        Write::ChangeRole(ADMIN, MEMBER, Role::Admin),
        NOT_PERMITTED,
        &promoted,
    );
    add(
        Write::Remove(OWNER, MEMBER),
        NO_MEMBER,
        &[Write::Remove(SECOND, MEMBER)],
    );
    // Of two Owners, one remains.
    let no_other = [
        Write::Remove(SECOND, SECOND),
        Write::ChangeRole(SECOND, SECOND, Role::Admin),
        Write::SuspendUser(SECOND),
        Write::DeleteUser(SECOND),
        Write::RecreateUser(SECOND),
        Write::Edit(SECOND, "memberUid"),
        Write::Edit(SECOND, "organizationUid"),
    ];
    add(Write::Remove(OWNER, OWNER), LAST_OWNER, &no_other);
    add(
        Write::ChangeRole(OWNER, OWNER, Role::Member),
        LAST_OWNER,
        &no_other,
    );
    let suspended = [Write::SuspendUser(MEMBER)];
    add(Write::Transfer(Some(OWNER), MEMBER), SUSPENDED, &suspended);
    add(Write::Transfer(None, MEMBER), Ok(()), &suspended);
    let founded = Write::Found(OUTSIDER);
    add(founded, NO_USER, &[Write::DeleteUser(OUTSIDER)]);
    add(founded, NOT_PERMITTED, &[Write::SuspendUser(OUTSIDER)]);
    add(founded, ORGANIZATION_EXISTS, &[Write::Found(MEMBER)]);
    add(founded, Ok(()), &[Write::RecreateUser(OUTSIDER)]);
    let created = Write::CreateUser(NEWCOMER);
    add(created, USER_EXISTS, &[created]);
    add(
        Write::DeleteUser(MEMBER),
        NO_USER,
        &[Write::DeleteUser(MEMBER)],
    );
    cases
}

/// Applies a write, with another one between its decision and its commit.
async fn race(
    backends: &Backends,
    world: &World<'_>,
    write: Write,
    between: Write,
) -> Result<(), Status> {
    let held = backends
        .dynamodb
        .hold("TransactWriteItems", &world.organization, 0);
    let (result, ()) = tokio::join!(world.apply(write), async {
        held.reached().await;
        world.apply(between).await.unwrap();
        held.release();
    });
    result
}

/// The items of an organization in the table.
async fn stored(world: &World<'_>) -> Vec<String> {
    let mut stored = Vec::new();
    for kind in ["ORG", "ORGMEMBERS"] {
        let pk = format!("{kind}#{}", world.organization);
        for (sk, item) in world.table.partition(&pk).await {
            stored.push(format!("{sk} {:?}", item.get("writeId")));
        }
    }
    stored
}

#[tokio::test]
async fn a_write_is_decided_anew_if_a_record_that_it_read_changes_before_its_commit() {
    let (backends, service) = start().await;
    let table = backends.table();
    table.end_stream().await;
    let cases = cases();
    println!("{} races", cases.len());
    for (number, (write, between, expected)) in cases.into_iter().enumerate() {
        let world = World {
            service: &service,
            table: &table,
            organization: format!("case{number:03}"),
        };
        world.found().await;
        let result = race(&backends, &world, write, between).await;
        let what = format!("{write:?}, meanwhile {between:?}");
        println!("{what}");
        match expected {
            Ok(()) => result.unwrap_or_else(|status| panic!("{what}: {status:?}")),
            Err((code, reason)) => {
                assert!(result.is_err(), "{what}: succeeded");
                assert_refused(result, code, reason);
                // A rejected write changes nothing: repeated, it is rejected in the same way.
                let before = stored(&world).await;
                assert_refused(world.apply(write).await, code, reason);
                assert_eq!(stored(&world).await, before, "{what}");
            }
        }
    }
}

async fn update_user(service: &Replica, user: pb::User) -> Result<pb::User, Status> {
    let request = pb::UpdateUserRequest {
        user: Some(user),
        ..pb::UpdateUserRequest::default()
    };
    let reply = service.client.clone().update_user(request).await?;
    Ok(reply.into_inner().user.unwrap())
}

#[tokio::test]
async fn two_concurrent_updates_are_both_kept() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let olivia = |first_name: &str, last_name: &str| pb::User {
        username: "oliviaowner".to_owned(),
        first_name: first_name.to_owned(),
        last_name: last_name.to_owned(),
        ..pb::User::default()
    };
    let held = backends.dynamodb.hold("TransactWriteItems", "Olive", 0);
    let (first, ()) = tokio::join!(update_user(&service, olivia("Olive", "")), async {
        held.reached().await;
        update_user(&service, olivia("", "Miller")).await.unwrap();
        held.release();
    });
    let (first, read) = (
        first.unwrap(),
        service.get_user("oliviaowner").await.unwrap().0,
    );
    for user in [&first, &read] {
        assert_eq!(
            (user.first_name.as_str(), user.last_name.as_str()),
            ("Olive", "Miller")
        );
    }

    let change = |display_name: &str, label: &str| {
        let request = pb::UpdateOrganizationRequest {
            organization: Some(pb::Organization {
                organization_name: "olivia-org".to_owned(),
                display_name: display_name.to_owned(),
                labels: (!label.is_empty())
                    .then(|| ("tier".to_owned(), label.to_owned()))
                    .into_iter()
                    .collect(),
                ..pb::Organization::default()
            }),
            actor: Some(update::Actor::AsPlatform(true)),
            ..pb::UpdateOrganizationRequest::default()
        };
        let mut client = service.client.clone();
        async move { client.update_organization(request).await }
    };
    let held = backends
        .dynamodb
        .hold("TransactWriteItems", "Olivia & Co", 0);
    let (first, ()) = tokio::join!(change("Olivia & Co", ""), async {
        held.reached().await;
        change("", "gold").await.unwrap();
        held.release();
    });
    first.unwrap();
    let read = service.get_organization("olivia-org").await.unwrap().0;
    assert_eq!(read.display_name, "Olivia & Co");
    assert_eq!(read.labels["tier"], "gold");
}

#[tokio::test]
async fn a_change_whose_etag_becomes_outdated_before_the_commit_is_aborted() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let user = service.get_user("oliviaowner").await.unwrap().0;
    let organization = service.get_organization("olivia-org").await.unwrap().0;
    let member = service.get_membership("olivia-org", "membermichael").await;
    let member = member.unwrap().0;
    let mut client = service.client.clone();
    let meanwhile = async |held: crate::harness::script::Held, write: Write| {
        held.reached().await;
        match write {
            Write::UpdateOrganization(_) => {
                let request = pb::UpdateOrganizationRequest {
                    organization: Some(pb::Organization {
                        organization_name: "olivia-org".to_owned(),
                        display_name: "Another".to_owned(),
                        ..pb::Organization::default()
                    }),
                    actor: Some(update::Actor::AsPlatform(true)),
                    ..pb::UpdateOrganizationRequest::default()
                };
                let mut client = service.client.clone();
                client.update_organization(request).await.unwrap();
            }
            Write::ChangeRole(..) => {
                let changed =
                    service.change_role("olivia-org", "membermichael", Role::Admin, "oliviaowner");
                changed.await.unwrap();
            }
            _ => {
                let user = pb::User {
                    username: "oliviaowner".to_owned(),
                    last_name: "Another".to_owned(),
                    ..pb::User::default()
                };
                update_user(&service, user).await.unwrap();
            }
        }
        held.release();
    };

    let held = backends
        .dynamodb
        .hold("TransactWriteItems", "oliviaowner", 0);
    let suspend = client.suspend_user(pb::SuspendUserRequest {
        username: user.username.clone(),
        etag: user.etag.clone(),
        ..pb::SuspendUserRequest::default()
    });
    let (refused, ()) = tokio::join!(suspend, meanwhile(held, Write::SuspendUser(OWNER)));
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");

    let held = backends
        .dynamodb
        .hold("TransactWriteItems", "olivia-org", 0);
    let suspend = client.suspend_organization(pb::SuspendOrganizationRequest {
        organization_name: organization.organization_name.clone(),
        etag: organization.etag.clone(),
        ..pb::SuspendOrganizationRequest::default()
    });
    let (refused, ()) = tokio::join!(suspend, meanwhile(held, Write::UpdateOrganization(OWNER)));
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");

    let held = backends
        .dynamodb
        .hold("TransactWriteItems", "membermichael", 0);
    let remove = client.remove_user_from_organization(pb::RemoveUserFromOrganizationRequest {
        organization_name: "olivia-org".to_owned(),
        member_username: "membermichael".to_owned(),
        acting_user: "oliviaowner".to_owned(),
        etag: member.etag.clone(),
        ..pb::RemoveUserFromOrganizationRequest::default()
    });
    let changed = Write::ChangeRole(OWNER, MEMBER, Role::Admin);
    let (refused, ()) = tokio::join!(remove, meanwhile(held, changed));
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    let role = service.role_of("olivia-org", "membermichael").await;
    assert_eq!(role, Some(Role::Admin));
}
