//! The statuses of refusals by a rule of the account model.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{DOMAIN, Reason, field, info, invalid_field, plain};
use crate::{
    domain::{OrganizationName, Username},
    service::{NoPageToken, Refusal},
};

/// The status of a refusal.
pub(super) fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::UserExists(user) => exists(Reason::UserAlreadyExists, USER, user.to_string()),
        Refusal::OrganizationExists(name) => exists(
            Reason::OrganizationAlreadyExists,
            ORGANIZATION,
            name.to_string(),
        ),
        Refusal::MembershipExists(organization, member) => {
            let name = membership_name(&organization, &member);
            exists(Reason::MembershipAlreadyExists, MEMBERSHIP, name)
        }
        Refusal::UserNotFound(user) => missing(Reason::UserNotFound, USER, user.to_string()),
        Refusal::OrganizationNotFound(name) => {
            missing(Reason::OrganizationNotFound, ORGANIZATION, name.to_string())
        }
        Refusal::MembershipNotFound(organization, member) => {
            let name = membership_name(&organization, &member);
            missing(Reason::MembershipNotFound, MEMBERSHIP, name)
        }
        Refusal::EmailExists => plain(
            Code::AlreadyExists,
            Reason::EmailAlreadyExists,
            "another user has this e-mail address",
        ),
        Refusal::EmailNotFound => plain(
            Code::NotFound,
            Reason::EmailNotFound,
            "no user has this e-mail address",
        ),
        Refusal::ExternalIdExists => plain(
            Code::AlreadyExists,
            Reason::ExternalIdAlreadyExists,
            "another user or organization has this external id",
        ),
        Refusal::ExternalIdNotFound => plain(
            Code::NotFound,
            Reason::ExternalIdNotFound,
            "no user or organization has this external id",
        ),
        Refusal::UidNotFound => plain(
            Code::NotFound,
            Reason::UidNotFound,
            "no user or organization has this uid",
        ),
        Refusal::ErasureNotFound(id) => missing(Reason::ErasureNotFound, ERASURE, id.to_string()),
        Refusal::CountIncomplete => plain(
            Code::FailedPrecondition,
            Reason::CountIncomplete,
            "not all memberships are counted: an operator has to run `account-service recount`",
        ),
        Refusal::InvalidUser(field, why) => invalid_field(format!("user.{field}"), why),
        Refusal::InvalidOrganization(field, why) => {
            invalid_field(format!("organization.{field}"), why)
        }
        Refusal::InvalidMembership(path, why) => invalid_field(path, why),
        Refusal::OrganizationNotGranted(name) => super::organization_not_granted(&name),
        Refusal::NotPermitted => plain(
            Code::PermissionDenied,
            Reason::NotPermitted,
            "the acting user may not do this in this organization, or there is no such organization",
        ),
        Refusal::LastOwner(organizations) => precondition(
            Reason::LastOwner,
            "organization_name",
            organizations.iter().map(OrganizationName::as_str),
            "an organization must keep at least one Owner whose membership does not expire",
            "an organization would be left without an Owner whose membership does not expire",
        ),
        Refusal::TooManyOrganizations(most) => Status::with_error_details(
            Code::FailedPrecondition,
            format!(
                "the user is an Owner of more than {most} organizations: leave some of them first"
            ),
            info(Reason::TooManyOrganizations, &[]),
        ),
        Refusal::NewOwnerSuspended(username) => precondition(
            Reason::NewOwnerSuspended,
            "username",
            [username.as_str()],
            "an organization must keep at least one Owner who can act",
            "the new Owner is suspended: the organization would be left without an Owner who can act",
        ),
        Refusal::EtagMismatch => plain(
            Code::Aborted,
            Reason::EtagMismatch,
            "the resource has another version than the etag; read the resource again",
        ),
        Refusal::RequestIdReused => {
            let why = "another request has used this id";
            field(Reason::RequestIdReused, "request_id", why.to_owned())
        }
        Refusal::NoPageToken => invalid_field("page_token", NoPageToken.to_string()),
    }
}

/// Types of resources.
const USER: &str = "User";
const ORGANIZATION: &str = "Organization";
const MEMBERSHIP: &str = "Membership";
const ERASURE: &str = "Erasure";

fn exists(reason: Reason, kind: &str, name: String) -> Status {
    resource(Code::AlreadyExists, "exists already", reason, kind, name)
}

fn missing(reason: Reason, kind: &str, name: String) -> Status {
    resource(Code::NotFound, "does not exist", reason, kind, name)
}

fn resource(code: Code, verb: &str, reason: Reason, kind: &str, name: String) -> Status {
    let message = format!("{} {name:?} {verb}", kind.to_lowercase());
    let mut details = info(reason, &[]);
    details.set_resource_info(format!("{DOMAIN}.{kind}"), name, "", message.clone());
    Status::with_error_details(code, message, details)
}

/// The status of a change that a rule forbids in the present state of these resources.
fn precondition<'a>(
    reason: Reason,
    kind: &str,
    subjects: impl IntoIterator<Item = &'a str>,
    rule: &str,
    message: &str,
) -> Status {
    let mut subjects = subjects.into_iter().peekable();
    let first = subjects.peek().map(|subject| (kind, *subject));
    let mut details = info(reason, first.as_slice());
    for subject in subjects {
        details.add_precondition_failure_violation(reason.as_str(), subject, rule);
    }
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// The resource name of a membership: the names of the organization and of the member,
/// separated by `/`. A `/` within the organization's name becomes `%2F`.
fn membership_name(organization: &OrganizationName, member: &Username) -> String {
    let organization = organization.as_str();
    if organization.contains('/') {
        let organization = organization.replace('%', "%25").replace('/', "%2F");
        return format!("{organization}/{member}");
    }
    format!("{organization}/{member}")
}
