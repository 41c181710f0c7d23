//! Requests that write memberships.

use std::ops::RangeInclusive;

use tonic::Status;

use super::{
    actor, named_under, organization_name, profiles::labels, required_role, update_mask::Masked,
    username,
};
use crate::{
    domain::{Actor, Etag, ExpireTime, FreeText, OrganizationName, Username},
    grpc::status,
    proto::account_v1 as pb,
    service::{MemberToAdd, MemberToRemove, MembershipToUpdate, OwnershipToTransfer, RoleToChange},
};

/// Seconds of valid timestamps: from 0001-01-01 to 9999-12-31.
pub(super) const VALID_SECONDS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

pub(in crate::grpc) fn ownership_to_transfer(
    request: &pb::TransferOwnershipRequest,
) -> Result<OwnershipToTransfer, Status> {
    Ok(OwnershipToTransfer {
        organization_name: organization_name("organization_name", &request.organization_name)?,
        new_owner: username("new_owner", &request.new_owner)?,
        actor: actor!(transfer_ownership_request, request.actor),
    })
}

pub(in crate::grpc) fn member_to_add(
    request: &pb::AddUserToOrganizationRequest,
) -> Result<MemberToAdd, Status> {
    let (organization_name, member_username) =
        membership_names(&request.organization_name, &request.member_username)?;
    Ok(MemberToAdd {
        organization_name,
        member_username,
        role: required_role("role", request.role)?,
        expire_time: expire_time("expire_time", request.expire_time.as_ref())?,
        labels: labels("labels", &request.labels, FreeText::parse_new)?,
        adding_user: username("adding_user", &request.adding_user)?,
    })
}

pub(in crate::grpc) fn membership_to_update(
    request: &pb::UpdateMembershipRequest,
) -> Result<MembershipToUpdate, Status> {
    let no_membership = || status::invalid_field("membership", "must be set".to_owned());
    let membership = request.membership.as_ref().ok_or_else(no_membership)?;
    let masked = Masked::of_membership(request.update_mask.as_ref(), membership)?;
    let path = "membership.";
    let organization = OrganizationName::parse_existing(&membership.organization_name);
    let member = Username::parse_existing(&membership.member_username);
    Ok(MembershipToUpdate {
        organization_name: named_under(path, "organization_name", organization)?,
        member_username: named_under(path, "member_username", member)?,
        expire_time: masked.select("expire_time", || {
            expire_time("membership.expire_time", membership.expire_time.as_ref())
        })?,
        labels: masked.select("labels", || {
            labels(
                "membership.labels",
                &membership.labels,
                FreeText::parse_existing,
            )
        })?,
        role: super::role(path, "role", membership.role)?,
        acting_user: username("acting_user", &request.acting_user)?,
        etag: Etag::from_text(&membership.etag),
    })
}

pub(in crate::grpc) fn role_to_change(
    request: &pb::ChangeMemberRoleRequest,
) -> Result<RoleToChange, Status> {
    let (organization_name, member_username) =
        membership_names(&request.organization_name, &request.member_username)?;
    Ok(RoleToChange {
        organization_name,
        member_username,
        role: required_role("role", request.role)?,
        acting_user: username("acting_user", &request.acting_user)?,
        etag: Etag::from_text(&request.etag),
    })
}

pub(in crate::grpc) fn member_to_remove(
    request: &pb::RemoveUserFromOrganizationRequest,
) -> Result<MemberToRemove, Status> {
    let (organization_name, member_username) =
        membership_names(&request.organization_name, &request.member_username)?;
    Ok(MemberToRemove {
        organization_name,
        member_username,
        acting_user: username("acting_user", &request.acting_user)?,
        etag: Etag::from_text(&request.etag),
    })
}

pub(in crate::grpc) fn membership_names(
    organization: &str,
    member: &str,
) -> Result<(OrganizationName, Username), Status> {
    Ok((
        organization_name("organization_name", organization)?,
        username("member_username", member)?,
    ))
}

/// The time of expiry, rounded down to whole seconds.
fn expire_time(
    field: &str,
    time: Option<&prost_types::Timestamp>,
) -> Result<Option<ExpireTime>, Status> {
    let Some(time) = time else { return Ok(None) };
    if !VALID_SECONDS.contains(&time.seconds) || !(0..1_000_000_000).contains(&time.nanos) {
        let why = "must be a time between the years 1 and 9999";
        return Err(status::invalid_field(field, why.to_owned()));
    }
    Ok(Some(ExpireTime(time.seconds)))
}
