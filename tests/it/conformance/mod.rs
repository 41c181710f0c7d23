//! Permissions: every operation, by every kind of actor, on every kind of target, in
//! every state, through services with every kind of grant.

mod rules;
mod services;
mod world;

use std::{sync::Arc, time::Duration};

use account_service::proto::account_v1::{
    self as pb, Role, State, delete_organization_request, transfer_ownership_request,
    undelete_organization_request, update_organization_request,
};
use futures_util::future::join_all;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use self::{
    rules::{
        GRANTS, Grant, ORGANIZATIONS, Operation, Organization, Outcome, Person, ROLES, Target,
        people,
    },
    services::Services,
    world::{Part, Stored, UNDELETE_WINDOW, World, until_expired},
};
use crate::harness::{Replica, Table, from_now, start};

/// A life that no test outlives.
const LONG: Duration = Duration::from_secs(7200);

/// One call.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// The grant of the calling service.
    grant: Grant,
    /// `None` for the platform.
    actor: Option<Person>,
    operation: Operation,
    target: Target,
}

/// The number of states of the organization to test: all, or fewer on a slow server.
fn tested_organizations() -> usize {
    let tested = std::env::var("CONFORMANCE_ORGANIZATIONS");
    tested.map_or(ORGANIZATIONS.len(), |tested| tested.parse().unwrap())
}

/// Whether every call is made by services with every kind of grant. Otherwise, the kinds whose grant
/// includes the organization take turns.
fn tests_every_grant() -> bool {
    std::env::var("CONFORMANCE").is_ok_and(|what| what == "full")
}

/// The calls to test in a world.
fn tested_cases(world: &World) -> Vec<Case> {
    let (granted, others): (Vec<_>, Vec<_>) = GRANTS
        .into_iter()
        .partition(|grant| *grant != Grant::Others);
    let of_others = others.into_iter().flat_map(|grant| cases(world, grant));
    let kinds = granted.len();
    let of_granted = granted.into_iter().enumerate().flat_map(|(turn, grant)| {
        let cases = cases(world, grant).into_iter().enumerate();
        cases.filter_map(move |(number, case)| {
            (tests_every_grant() || number % kinds == turn).then_some(case)
        })
    });
    of_granted.chain(of_others).collect()
}

/// Every possible call of a service with this grant in a world.
fn cases(world: &World, grant: Grant) -> Vec<Case> {
    let by_role = |of: fn(Role) -> Operation| ROLES.map(of).into_iter();
    let with_target: Vec<_> = by_role(Operation::Add)
        .chain(by_role(Operation::ChangeRole))
        .chain([
            Operation::Remove,
            Operation::Transfer,
            Operation::Label,
            Operation::SetEnd,
            Operation::RemoveEnd,
        ])
        .collect();
    let mut cases = Vec::new();
    for actor in people().map(Some).chain([None]) {
        let mut targets: Vec<_> = world.others().map(Target::Other).collect();
        targets.extend(actor.map(|_| Target::Oneself));
        for &operation in &with_target {
            // The platform cannot request the other operations.
            if actor.is_none() && operation != Operation::Transfer {
                continue;
            }
            cases.extend(targets.iter().map(|&target| Case {
                grant,
                actor,
                operation,
                target,
            }));
        }
        // These operations have no target.
        cases.extend(
            [Operation::Update, Operation::Delete, Operation::Undelete].map(|operation| Case {
                grant,
                actor,
                operation,
                target: targets[0],
            }),
        );
    }
    cases
}

async fn call(service: &Replica, world: &World, case: Case) -> Result<(), Status> {
    let mut client = service.client.clone();
    let organization_name = world.organization.clone();
    let organization = organization_name.as_str();
    let target = world.target_name(case.actor, case.target);
    let actor = case.actor.map(|actor| world.name(Part::Actor, actor));
    let acting = actor.clone().unwrap_or_default();
    match case.operation {
        Operation::Add(role) => service
            .add(organization, &target, role, &acting)
            .await
            .map(drop),
        Operation::ChangeRole(role) => service
            .change_role(organization, &target, role, &acting)
            .await
            .map(drop),
        Operation::Remove => service
            .remove(organization, &target, &acting)
            .await
            .map(drop),
        Operation::Label => {
            let labels = [("job".to_owned(), "nurse".to_owned())].into();
            let update = pb::Membership {
                labels,
                ..pb::Membership::default()
            };
            service
                .update_membership(organization, &target, update, &["labels"], &acting)
                .await
                .map(drop)
        }
        Operation::SetEnd | Operation::RemoveEnd => {
            let end = (case.operation == Operation::SetEnd).then(|| from_now(LONG));
            let update = pb::Membership {
                expire_time: end,
                ..pb::Membership::default()
            };
            service
                .update_membership(organization, &target, update, &["expire_time"], &acting)
                .await
                .map(drop)
        }
        Operation::Transfer => {
            use transfer_ownership_request::Actor;
            let request = pb::TransferOwnershipRequest {
                organization_name,
                new_owner: target,
                actor: Some(actor.map_or(Actor::AsPlatform(true), Actor::ActingUser)),
                ..pb::TransferOwnershipRequest::default()
            };
            client.transfer_ownership(request).await.map(drop)
        }
        Operation::Update => {
            use update_organization_request::Actor;
            let request = pb::UpdateOrganizationRequest {
                organization: Some(pb::Organization {
                    organization_name,
                    display_name: "Changed".to_owned(),
                    ..pb::Organization::default()
                }),
                actor: Some(actor.map_or(Actor::AsPlatform(true), Actor::ActingUser)),
                ..pb::UpdateOrganizationRequest::default()
            };
            client.update_organization(request).await.map(drop)
        }
        Operation::Delete => {
            use delete_organization_request::Actor;
            let request = pb::DeleteOrganizationRequest {
                organization_name,
                actor: Some(actor.map_or(Actor::AsPlatform(true), Actor::ActingUser)),
                ..pb::DeleteOrganizationRequest::default()
            };
            client.delete_organization(request).await.map(drop)
        }
        Operation::Undelete => {
            use undelete_organization_request::Actor;
            let request = pb::UndeleteOrganizationRequest {
                organization_name,
                actor: Some(actor.map_or(Actor::AsPlatform(true), Actor::ActingUser)),
                ..pb::UndeleteOrganizationRequest::default()
            };
            client.undelete_organization(request).await.map(drop)
        }
    }
}

fn outcome(result: Result<(), Status>) -> Outcome {
    let Err(status) = result else {
        return Outcome::Done;
    };
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    match (status.code(), reason) {
        (Code::PermissionDenied, Some("ORGANIZATION_NOT_GRANTED")) => Outcome::NotGranted,
        (Code::PermissionDenied, Some("NOT_PERMITTED")) => Outcome::NotPermitted,
        (Code::NotFound, Some("USER_NOT_FOUND")) => Outcome::UserNotFound,
        (Code::NotFound, Some("MEMBERSHIP_NOT_FOUND")) => Outcome::MembershipNotFound,
        (Code::NotFound, Some("ORGANIZATION_NOT_FOUND")) => Outcome::OrganizationNotFound,
        (Code::AlreadyExists, Some("MEMBERSHIP_ALREADY_EXISTS")) => Outcome::MembershipExists,
        (Code::AlreadyExists, Some("ORGANIZATION_ALREADY_EXISTS")) => Outcome::OrganizationExists,
        (Code::AlreadyExists, Some("USER_ALREADY_EXISTS")) => Outcome::UserExists,
        (Code::FailedPrecondition, Some("LAST_OWNER")) => Outcome::LastOwner,
        (Code::FailedPrecondition, Some("NEW_OWNER_SUSPENDED")) => Outcome::NewOwnerSuspended,
        _ => panic!("unexpected status: {status:?}"),
    }
}

/// Asserts that a successful call has changed the table as the rules require, and
/// nothing else.
fn assert_done(world: &World, case: Case, before: &Stored, after: &Stored) {
    let what = format!("{:?} {case:?}", world.state);
    let Case {
        grant: _,
        actor,
        operation,
        target,
    } = case;
    match operation {
        Operation::Update => {
            let item = after.organization.values().next().unwrap();
            assert_eq!(item["displayName"].as_s().unwrap(), "Changed", "{what}");
            assert_eq!(after.members, before.members, "{what}");
        }
        Operation::Delete => {
            let item = after.organization.values().next().unwrap();
            assert_eq!(item["state"].as_s().unwrap(), "TOMBSTONE", "{what}");
            assert_eq!(after.members, before.members, "{what}");
        }
        Operation::Undelete => {
            let item = after.organization.values().next().unwrap();
            assert_eq!(item.get("state"), None, "{what}");
            assert_eq!(item.get("purgeTime"), None, "{what}");
            assert_eq!(after.members, before.members, "{what}");
        }
        Operation::Add(_)
        | Operation::ChangeRole(_)
        | Operation::Remove
        | Operation::Transfer
        | Operation::Label
        | Operation::SetEnd
        | Operation::RemoveEnd => {
            let target_name = world.target_name(actor, target);
            let actor_name = actor.map(|actor| world.name(Part::Actor, actor));
            let actor_name = actor_name.unwrap_or_default();
            let (of_target, of_actor) = rules::afterwards(world.state, actor, operation, target);
            let text = |role: Option<Role>| role.map(|role| format!("{role:?}"));
            assert_eq!(
                after.role(&target_name),
                text(of_target).as_deref(),
                "{what}"
            );
            if actor.is_some() {
                assert_eq!(after.role(&actor_name), text(of_actor).as_deref(), "{what}");
            }
            if matches!(operation, Operation::Transfer | Operation::RemoveEnd) {
                assert!(!after.has_end(&target_name), "{what}");
            }
            let both = [target_name.as_str(), actor_name.as_str()];
            assert_eq!(after.without(&both), before.without(&both), "{what}");
        }
    }
}

async fn run(state: Organization, services: Arc<Services>, table: Arc<Table>) -> usize {
    let world = World::make(state, services.with(Grant::Every)).await;
    until_expired().await;
    let before = world.stored(&table).await;
    let cases = tested_cases(&world);
    // Whether rejected calls have been made since the table was last compared.
    let mut is_unchecked = false;
    for &case in &cases {
        let Case {
            grant,
            actor,
            operation,
            target,
        } = case;
        let expected = rules::outcome(grant, state, actor, operation, target);
        if expected == Outcome::Done && is_unchecked {
            let stored = world.stored(&table).await;
            assert_eq!(
                stored, before,
                "a rejected call before {case:?} changed the table"
            );
        }
        let actual = outcome(call(services.with(grant), &world, case).await);
        assert_eq!(actual, expected, "{state:?} {case:?}");
        if actual == Outcome::Done {
            let after = world.stored(&table).await;
            assert_done(&world, case, &before, &after);
            world.restore(&table, &before, &after).await;
        }
        is_unchecked = actual != Outcome::Done;
    }
    let stored = world.stored(&table).await;
    assert_eq!(
        stored, before,
        "{state:?}: a rejected call changed the table"
    );
    cases.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_by_every_actor_on_every_target_follows_the_rules() {
    let services = Arc::new(Services::start().await);
    let table = Arc::new(services.backends.table());
    let worlds = ORGANIZATIONS.into_iter().take(tested_organizations());
    let worlds = worlds.map(|state| {
        let run = run(state, services.clone(), table.clone());
        tokio::spawn(run)
    });
    let cases: usize = join_all(worlds).await.into_iter().map(Result::unwrap).sum();
    println!("{cases} calls follow the rules");
}

fn state_of(organization: Organization, person: Person) -> State {
    if person.is_suspended || organization == Organization::Suspended {
        State::Suspended
    } else {
        State::Active
    }
}

/// Asserts the responses of all reads about a person, by a service whose grant includes the
/// organization.
async fn assert_reads(service: &Replica, world: &World, person: Person) {
    let what = format!("{:?} {person:?}", world.state);
    let organization = &world.organization;
    let name = world.name(Part::Actor, person);
    let counts = rules::role(world.state, person);
    let stored = rules::stored_role(world.state, person);
    let mut client = service.client.clone();
    for minimum in ROLES.map(Some).into_iter().chain([None]) {
        let check = pb::MembershipCheck {
            organization_name: organization.clone(),
            username: name.clone(),
            minimum_role: minimum.unwrap_or(Role::Unspecified).into(),
        };
        // A higher role has a lower number.
        let suffices = |role: Role| minimum.is_none_or(|least| role as i32 <= least as i32);
        let one = pb::CheckMembershipRequest {
            organization_name: check.organization_name.clone(),
            username: check.username.clone(),
            minimum_role: check.minimum_role,
            consistency: None,
            ..pb::CheckMembershipRequest::default()
        };
        let one = client.check_membership(one).await.unwrap().into_inner();
        assert_eq!(one.is_member.then(|| one.role()), counts, "{what}");
        assert_eq!(
            one.satisfied,
            counts.is_some_and(suffices),
            "{what} {minimum:?}"
        );
        let many = pb::BatchCheckMembershipsRequest {
            checks: vec![check],
            consistency: None,
        };
        let many = client.batch_check_memberships(many).await.unwrap();
        let [of_many] = many.into_inner().results.try_into().unwrap();
        assert_eq!(
            (of_many.is_member, of_many.role, of_many.satisfied),
            (one.is_member, one.role, one.satisfied),
            "{what}"
        );
    }
    match service.get_membership(organization, &name).await {
        Ok((membership, _)) => {
            assert_eq!(Some(membership.role()), stored, "{what}");
            assert_eq!(membership.state(), state_of(world.state, person), "{what}");
        }
        Err(status) => {
            assert_eq!(outcome(Err(status)), Outcome::MembershipNotFound, "{what}");
            assert_eq!(stored, None, "{what}");
        }
    }
    let organizations = pb::ListUserOrganizationsRequest {
        username: name.clone(),
        ..pb::ListUserOrganizationsRequest::default()
    };
    match client.list_user_organizations(organizations).await {
        Ok(page) => {
            let listed = page.into_inner().memberships;
            assert_eq!(listed.first().map(pb::Membership::role), stored, "{what}");
            assert!(rules::is_user(person), "{what}");
        }
        Err(status) => {
            assert_eq!(outcome(Err(status)), Outcome::UserNotFound, "{what}");
            assert!(!rules::is_user(person), "{what}");
        }
    }
}

/// Asserts that a service whose grant does not include the organization reads nothing of it.
async fn assert_no_reads(service: &Replica, world: &World, person: Person) {
    let what = format!("{:?} {person:?}", world.state);
    let organization_name = world.organization.clone();
    let username = world.name(Part::Actor, person);
    let mut client = service.client.clone();
    let check = pb::CheckMembershipRequest {
        organization_name: organization_name.clone(),
        username: username.clone(),
        ..pb::CheckMembershipRequest::default()
    };
    let many = pb::BatchCheckMembershipsRequest {
        checks: vec![pb::MembershipCheck {
            organization_name: organization_name.clone(),
            username: username.clone(),
            ..pb::MembershipCheck::default()
        }],
        consistency: None,
    };
    let members = pb::ListOrganizationMembersRequest {
        organization_name: organization_name.clone(),
        ..pb::ListOrganizationMembersRequest::default()
    };
    let got = service.get_membership(&organization_name, &username).await;
    for rejected in [
        client.check_membership(check).await.map(drop),
        client.batch_check_memberships(many).await.map(drop),
        client.list_organization_members(members).await.map(drop),
        got.map(drop),
    ] {
        assert_eq!(outcome(rejected), Outcome::NotGranted, "{what}");
    }
    let organizations = pb::ListUserOrganizationsRequest {
        username,
        ..pb::ListUserOrganizationsRequest::default()
    };
    match client.list_user_organizations(organizations).await {
        Ok(page) => {
            assert_eq!(page.into_inner().memberships, [], "{what}");
            assert!(rules::is_user(person), "{what}");
        }
        Err(status) => assert_eq!(outcome(Err(status)), Outcome::UserNotFound, "{what}"),
    }
}

async fn assert_members_listed(service: &Replica, world: &World) {
    let request = pb::ListOrganizationMembersRequest {
        organization_name: world.organization.clone(),
        ..pb::ListOrganizationMembersRequest::default()
    };
    let mut client = service.client.clone();
    let page = match client.list_organization_members(request).await {
        Ok(page) => page.into_inner(),
        Err(status) => {
            assert_eq!(outcome(Err(status)), Outcome::OrganizationNotFound);
            assert!(!rules::exists(world.state));
            return;
        }
    };
    let members = page.memberships.iter().map(|membership| {
        let role = membership.role();
        (membership.member_username.clone(), role, membership.state())
    });
    let mut expected = Vec::new();
    for (part, persons) in [
        (Part::Actor, people().collect::<Vec<_>>()),
        (Part::Target, world.others().collect()),
    ] {
        for person in persons {
            if let Some(role) = rules::stored_role(world.state, person) {
                let name = world.name(part, person);
                expected.push((name, role, state_of(world.state, person)));
            }
        }
    }
    if world.state == Organization::TakenAgain {
        let name = format!("{}.somebody-else", world.organization);
        expected.push((name, Role::Owner, State::Active));
    }
    expected.sort();
    assert_eq!(members.collect::<Vec<_>>(), expected, "{:?}", world.state);
}

#[tokio::test]
async fn every_read_about_every_person_reflects_memberships_that_count() {
    let services = Services::start().await;
    for state in ORGANIZATIONS {
        let world = World::make(state, services.with(Grant::Every)).await;
        until_expired().await;
        for grant in GRANTS {
            let service = services.with(grant);
            let is_granted = rules::is_granted(grant, state);
            for person in people() {
                if is_granted {
                    assert_reads(service, &world, person).await;
                } else {
                    assert_no_reads(service, &world, person).await;
                }
            }
            if is_granted {
                assert_members_listed(service, &world).await;
            }
        }
    }
}

/// Tries to found the world's organization.
async fn found(service: &Replica, world: &World, founder: Person) -> Outcome {
    let founder = world.name(Part::Actor, founder);
    let organization = &world.organization;
    outcome(
        service
            .create_organization(organization, &founder)
            .await
            .map(drop),
    )
}

#[tokio::test]
async fn every_active_user_can_found_an_organization_that_does_not_exist() {
    let (backends, service) = start().await;
    let table = backends.table();
    for state in ORGANIZATIONS {
        let world = World::make(state, &service).await;
        until_expired().await;
        let before = world.stored(&table).await;
        for founder in people() {
            let expected = match founder {
                _ if !rules::is_user(founder) => Outcome::UserNotFound,
                _ if founder.is_suspended => Outcome::NotPermitted,
                _ if rules::is_taken(state) => Outcome::OrganizationExists,
                _ => Outcome::Done,
            };
            let actual = found(&service, &world, founder).await;
            assert_eq!(actual, expected, "{state:?} {founder:?}");
            let after = world.stored(&table).await;
            let name = world.name(Part::Actor, founder);
            if actual == Outcome::Done {
                assert_eq!(after.role(&name), Some("Owner"));
                assert_eq!(after.organization.len(), 1);
                let others = |stored: &Stored| stored.without(&[&name]).members;
                assert_eq!(others(&after), others(&before));
            } else {
                assert_eq!(after, before, "{state:?} {founder:?}");
            }
            world.restore(&table, &before, &after).await;
        }
    }
}

/// The platform's operations on users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnUser {
    Create,
    Update,
    Suspend,
    Resume,
    Delete,
    /// A deletion that can be undone.
    DeleteSoftly,
    Undelete,
    Erase,
}

async fn call_on_user(service: &Replica, operation: OnUser, username: &str) -> Result<(), Status> {
    let mut client = service.client.clone();
    let username = username.to_owned();
    match operation {
        OnUser::Create => service.create_user(&username).await.map(drop),
        OnUser::Delete => service.delete_user(&username).await.map(drop),
        OnUser::Update => {
            let user = pb::User {
                username,
                display_name: "Changed".to_owned(),
                ..pb::User::default()
            };
            let request = pb::UpdateUserRequest {
                user: Some(user),
                ..pb::UpdateUserRequest::default()
            };
            client.update_user(request).await.map(drop)
        }
        OnUser::Suspend => {
            let request = pb::SuspendUserRequest {
                username,
                ..pb::SuspendUserRequest::default()
            };
            client.suspend_user(request).await.map(drop)
        }
        OnUser::Resume => {
            let request = pb::ResumeUserRequest {
                username,
                ..pb::ResumeUserRequest::default()
            };
            client.resume_user(request).await.map(drop)
        }
        OnUser::DeleteSoftly => {
            let request = pb::DeleteUserRequest {
                username,
                undelete_window: Some(UNDELETE_WINDOW),
                ..pb::DeleteUserRequest::default()
            };
            client.delete_user(request).await.map(drop)
        }
        OnUser::Erase => {
            let request = pb::EraseUserRequest {
                username,
                ..pb::EraseUserRequest::default()
            };
            client.erase_user(request).await.map(drop)
        }
        OnUser::Undelete => {
            let request = pb::UndeleteUserRequest {
                username,
                ..pb::UndeleteUserRequest::default()
            };
            client.undelete_user(request).await.map(drop)
        }
    }
}

#[tokio::test]
async fn the_platform_changes_users_as_their_state_allows() {
    let (_backends, service) = start().await;
    // `None`: the user does not exist.
    let states = [
        None,
        Some(State::Active),
        Some(State::Suspended),
        Some(State::Deleted),
    ];
    let operations = [
        OnUser::Create,
        OnUser::Update,
        OnUser::Suspend,
        OnUser::Resume,
        OnUser::Delete,
        OnUser::DeleteSoftly,
        OnUser::Undelete,
        OnUser::Erase,
    ];
    for state in states {
        for operation in operations {
            let what = format!("{state:?} {operation:?}");
            let name = format!(
                "{}-{operation:?}",
                state.map_or("nobody", |it| it.as_str_name())
            );
            let name = name.to_lowercase();
            if state.is_some() {
                service.create_user(&name).await.unwrap();
            }
            let into_state = match state {
                Some(State::Suspended) => Some(OnUser::Suspend),
                Some(State::Deleted) => Some(OnUser::DeleteSoftly),
                _ => None,
            };
            if let Some(into_state) = into_state {
                let called = call_on_user(&service, into_state, &name).await;
                called.unwrap();
            }
            let is_deleted = state == Some(State::Deleted);
            let expected = match (state, operation) {
                (None, OnUser::Create) => Outcome::Done,
                (None, _) => Outcome::UserNotFound,
                (Some(_), OnUser::Create) => Outcome::UserExists,
                (Some(_), OnUser::Undelete) if !is_deleted => Outcome::UserExists,
                (Some(_), OnUser::Delete | OnUser::Undelete | OnUser::Erase) => Outcome::Done,
                (Some(_), _) if is_deleted => Outcome::UserNotFound,
                (Some(_), _) => Outcome::Done,
            };
            let actual = outcome(call_on_user(&service, operation, &name).await);
            assert_eq!(actual, expected, "{what}");
            let state_after = match (expected, operation) {
                (Outcome::Done, OnUser::Delete) => None,
                (Outcome::Done, OnUser::Create | OnUser::Resume | OnUser::Undelete) => {
                    Some(State::Active)
                }
                (Outcome::Done, OnUser::Suspend) => Some(State::Suspended),
                (Outcome::Done, OnUser::DeleteSoftly | OnUser::Erase) => Some(State::Deleted),
                _ => state,
            };
            let found = service.get_user(&name).await.ok().map(|(user, _)| user);
            assert_eq!(found.as_ref().map(pb::User::state), state_after, "{what}");
            let is_changed = expected == Outcome::Done && operation == OnUser::Update;
            let display_name = found.map(|user| user.display_name).unwrap_or_default();
            assert_eq!(display_name == "Changed", is_changed, "{what}");
        }
    }
}

#[tokio::test]
async fn the_platform_suspends_and_resumes_every_existing_organization() {
    let (_backends, service) = start().await;
    for state in ORGANIZATIONS {
        let world = World::make(state, &service).await;
        let mut client = service.client.clone();
        let organization_name = world.organization.clone();
        let expected = if rules::exists(state) {
            Outcome::Done
        } else {
            Outcome::OrganizationNotFound
        };
        for wanted in [
            State::Suspended,
            State::Suspended,
            State::Active,
            State::Active,
        ] {
            let organization_name = organization_name.clone();
            let called = if wanted == State::Suspended {
                let request = pb::SuspendOrganizationRequest {
                    organization_name,
                    ..pb::SuspendOrganizationRequest::default()
                };
                client.suspend_organization(request).await.map(drop)
            } else {
                let request = pb::ResumeOrganizationRequest {
                    organization_name,
                    ..pb::ResumeOrganizationRequest::default()
                };
                client.resume_organization(request).await.map(drop)
            };
            assert_eq!(outcome(called), expected, "{state:?} {wanted:?}");
            let found = service.get_organization(&world.organization).await;
            let found = found.ok().map(|(organization, _)| organization.state());
            let expected = match state {
                Organization::Deleted => None,
                Organization::Undeletable => Some(State::Deleted),
                _ => Some(wanted),
            };
            assert_eq!(found, expected, "{state:?}");
        }
    }
}
