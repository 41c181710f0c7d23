//! Messages to domain types and back. Every request is parsed here, once; a
//! field that breaks its bounds is named by its path.

use prost_types::Timestamp as WireTimestamp;
use tonic::Status;

use super::status;
use crate::{
    domain::{
        Membership, NameError, Organization, OrganizationName, PersonName, Role, Stamp, Timestamp,
        Uid, User, Username,
    },
    proto::account_v1::{self as pb, read_consistency::Requirement},
    service::{
        Check, CheckResult, Freshness, MemberToAdd, MemberToRemove, NewOrganization, NewUser,
        RoleToChange, Source,
    },
};

/// Most checks, or names, of one batch.
const MAX_BATCH: usize = 1000;

pub(super) fn new_user(request: &pb::CreateUserRequest) -> Result<NewUser, Status> {
    Ok(NewUser {
        username: named("username", Username::parse_new(&request.username))?,
        first_name: named("first_name", PersonName::parse(&request.first_name))?,
        last_name: named("last_name", PersonName::parse(&request.last_name))?,
    })
}

pub(super) fn new_organization(
    request: &pb::CreateOrganizationRequest,
) -> Result<NewOrganization, Status> {
    Ok(NewOrganization {
        organization_name: named(
            "organization_name",
            OrganizationName::parse_new(&request.organization_name),
        )?,
        founding_user: username("founding_user", &request.founding_user)?,
    })
}

pub(super) fn member_to_add(
    request: &pb::AddUserToOrganizationRequest,
) -> Result<MemberToAdd, Status> {
    let (organization_name, member_username) =
        membership_names(&request.organization_name, &request.member_username)?;
    Ok(MemberToAdd {
        organization_name,
        member_username,
        role: required_role("role", request.role)?,
        adding_user: username("adding_user", &request.adding_user)?,
    })
}

pub(super) fn role_to_change(
    request: &pb::ChangeMemberRoleRequest,
) -> Result<RoleToChange, Status> {
    let (organization_name, member_username) =
        membership_names(&request.organization_name, &request.member_username)?;
    Ok(RoleToChange {
        organization_name,
        member_username,
        role: required_role("role", request.role)?,
        acting_user: username("acting_user", &request.acting_user)?,
    })
}

pub(super) fn member_to_remove(
    request: &pb::RemoveUserFromOrganizationRequest,
) -> Result<MemberToRemove, Status> {
    let (organization_name, member_username) =
        membership_names(&request.organization_name, &request.member_username)?;
    Ok(MemberToRemove {
        organization_name,
        member_username,
        acting_user: username("acting_user", &request.acting_user)?,
    })
}

pub(super) fn membership_names(
    organization: &str,
    member: &str,
) -> Result<(OrganizationName, Username), Status> {
    Ok((
        organization_name("organization_name", organization)?,
        username("member_username", member)?,
    ))
}

pub(super) fn checks(checks: &[pb::MembershipCheck]) -> Result<Vec<Check>, Status> {
    batch("checks", checks, |path, one| {
        check(
            &format!("{path}."),
            &one.organization_name,
            &one.username,
            one.minimum_role,
        )
    })
}

pub(super) fn usernames(names: &[String]) -> Result<Vec<Username>, Status> {
    batch("usernames", names, |path, name| username(path, name))
}

pub(super) fn organization_names(names: &[String]) -> Result<Vec<OrganizationName>, Status> {
    batch("organization_names", names, |path, name| {
        organization_name(path, name)
    })
}

/// Parses each of a repeated field that has one at least and a bounded number at
/// most; `parse` gets its path.
fn batch<W, T>(
    field: &str,
    all: &[W],
    parse: impl Fn(&str, &W) -> Result<T, Status>,
) -> Result<Vec<T>, Status> {
    if all.is_empty() || all.len() > MAX_BATCH {
        let why = format!("has {} entries; allowed are 1 to {MAX_BATCH}", all.len());
        return Err(status::invalid_field(field, why));
    }
    let all = all.iter().enumerate();
    all.map(|(at, one)| parse(&format!("{field}[{at}]"), one))
        .collect()
}

/// Parses one check; `path` stands before its fields' names.
pub(super) fn check(
    path: &str,
    organization: &str,
    user: &str,
    minimum_role: i32,
) -> Result<Check, Status> {
    Ok(Check {
        organization_name: named_under(
            path,
            "organization_name",
            OrganizationName::parse_existing(organization),
        )?,
        username: named_under(path, "username", Username::parse_existing(user))?,
        minimum_role: role(&format!("{path}minimum_role"), minimum_role)?,
    })
}

pub(super) fn username(field: &str, name: &str) -> Result<Username, Status> {
    named(field, Username::parse_existing(name))
}

pub(super) fn organization_name(field: &str, name: &str) -> Result<OrganizationName, Status> {
    named(field, OrganizationName::parse_existing(name))
}

pub(super) fn freshness(consistency: Option<pb::ReadConsistency>) -> Freshness {
    match consistency.and_then(|consistency| consistency.requirement) {
        Some(Requirement::FullyConsistent(true)) => Freshness::Strong,
        Some(Requirement::FullyConsistent(false)) | None => Freshness::Coherent,
    }
}

fn named<T>(field: &str, parsed: Result<T, NameError>) -> Result<T, Status> {
    named_under("", field, parsed)
}

fn named_under<T>(path: &str, field: &str, parsed: Result<T, NameError>) -> Result<T, Status> {
    parsed.map_err(|error| status::invalid_field(format!("{path}{field}"), error.to_string()))
}

fn required_role(field: &str, value: i32) -> Result<Role, Status> {
    role(field, value)?.ok_or_else(|| status::invalid_field(field, "must be set".to_owned()))
}

fn role(field: &str, value: i32) -> Result<Option<Role>, Status> {
    match pb::Role::try_from(value) {
        Ok(pb::Role::Unspecified) => Ok(None),
        Ok(pb::Role::Owner) => Ok(Some(Role::Owner)),
        Ok(pb::Role::Admin) => Ok(Some(Role::Admin)),
        Ok(pb::Role::Member) => Ok(Some(Role::Member)),
        Err(_) => Err(status::invalid_field(
            field,
            format!("{value} is not a value of the enum Role"),
        )),
    }
}

pub(super) fn user(user: &User) -> pb::User {
    let (create_time, update_time) = times(&user.stamp);
    pb::User {
        username: user.username.to_string(),
        first_name: user.first_name.to_string(),
        last_name: user.last_name.to_string(),
        uid: uid(user.uid.as_ref()),
        create_time,
        update_time,
    }
}

pub(super) fn organization(organization: &Organization) -> pb::Organization {
    let (create_time, update_time) = times(&organization.stamp);
    pb::Organization {
        organization_name: organization.organization_name.to_string(),
        founding_user: organization.founding_user.clone(),
        uid: uid(organization.uid.as_ref()),
        create_time,
        update_time,
    }
}

pub(super) fn membership(membership: &Membership) -> pb::Membership {
    let (create_time, update_time) = times(&membership.stamp);
    pb::Membership {
        organization_name: membership.organization_name.to_string(),
        member_username: membership.member_username.to_string(),
        role: wire_role(Some(membership.role)),
        adding_user: membership.adding_user.clone().unwrap_or_default(),
        create_time,
        update_time,
    }
}

pub(super) fn check_result(result: CheckResult) -> pb::MembershipCheckResult {
    pb::MembershipCheckResult {
        is_member: result.role.is_some(),
        role: wire_role(result.role),
        satisfied: result.is_satisfied,
    }
}

pub(super) fn source(source: Source) -> pb::Source {
    match source {
        Source::Cache => pb::Source::Cache,
        Source::Store => pb::Source::Store,
    }
}

fn wire_role(role: Option<Role>) -> i32 {
    let role = match role {
        None => pb::Role::Unspecified,
        Some(Role::Owner) => pb::Role::Owner,
        Some(Role::Admin) => pb::Role::Admin,
        Some(Role::Member) => pb::Role::Member,
    };
    role.into()
}

fn uid(uid: Option<&Uid>) -> String {
    uid.map_or_else(String::new, |uid| uid.as_str().to_owned())
}

fn times(stamp: &Stamp) -> (Option<WireTimestamp>, Option<WireTimestamp>) {
    (
        stamp.create_time.map(timestamp),
        stamp.update_time.map(timestamp),
    )
}

fn timestamp(Timestamp(millis): Timestamp) -> WireTimestamp {
    let nanos = millis.rem_euclid(1000) * 1_000_000;
    WireTimestamp {
        seconds: millis.div_euclid(1000),
        nanos: i32::try_from(nanos).unwrap_or_default(),
    }
}
