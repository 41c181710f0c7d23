//! Converts messages to domain types and back. Each request is parsed here, once. An error
//! names the path of the invalid field.

mod changes;
mod replies;

use std::{
    collections::BTreeMap,
    fmt::{Arguments, Display},
    time::Duration,
};

use prost::Message;
use prost_types::FieldMask;
use tonic::Status;

pub(super) use self::{
    changes::{changes, watch},
    replies::{check_result, membership, organization, source, user},
};
use super::{MAX_ANSWER_BYTES, status};
use crate::{
    domain::{
        Actor, Email, Etag, FreeText, Labels, NameError, OrganizationName, Role, State, Username,
    },
    proto::account_v1::{self as pb, read_consistency::Requirement},
    service::{
        Check, Freshness, MemberToAdd, MemberToRemove, NewOrganization, NewUser, OrganizationEdit,
        OrganizationToDelete, OrganizationToEdit, OwnershipToTransfer, PageRequest, RoleToChange,
        UserEdit, UserToDelete, UserToEdit,
    },
};

/// Entries of a page if the request has no page size.
const DEFAULT_PAGE: u16 = 50;
/// Most memberships of a page.
pub(super) const MAX_MEMBERSHIPS_PAGE: u16 = 1000;
/// Most users, or organizations, of a page: the largest ones fit the 4 MiB that
/// clients accept by default.
pub(super) const MAX_PROFILES_PAGE: u16 = 250;
/// Most checks, or names, of one batch.
const MAX_BATCH: usize = 1000;

/// The actor of a request: the same `oneof` in several messages, each with a type of its
/// own.
macro_rules! actor {
    ($message:ident, $actor:expr) => {
        match &$actor {
            Some(pb::$message::Actor::ActingUser(user)) => {
                Actor::User(username("acting_user", user)?)
            }
            Some(pb::$message::Actor::AsPlatform(true)) => Actor::Platform,
            Some(pb::$message::Actor::AsPlatform(false)) | None => {
                return Err(status::invalid_field("actor", "must be set".to_owned()));
            }
        }
    };
}

pub(super) fn new_user(request: &pb::CreateUserRequest) -> Result<NewUser, Status> {
    Ok(NewUser {
        username: named("username", Username::parse_new(&request.username))?,
        first_name: named("first_name", FreeText::parse_new(&request.first_name))?,
        last_name: named("last_name", FreeText::parse_new(&request.last_name))?,
        display_name: named("display_name", FreeText::parse_new(&request.display_name))?,
        email: email("email", &request.email, Email::parse_new)?,
        labels: labels("labels", &request.labels, FreeText::parse_new)?,
    })
}

/// The fields of a user that can be changed.
const USER_FIELDS: [&str; 5] = ["first_name", "last_name", "display_name", "email", "labels"];
/// The fields of an organization that can be changed.
const ORGANIZATION_FIELDS: [&str; 2] = ["display_name", "labels"];

/// Whether to change each of [`USER_FIELDS`].
fn masked_user(mask: Option<&FieldMask>, user: &pb::User) -> Result<[bool; 5], Status> {
    let is_given = [
        !user.first_name.is_empty(),
        !user.last_name.is_empty(),
        !user.display_name.is_empty(),
        !user.email.is_empty(),
        !user.labels.is_empty(),
    ];
    masked(mask, USER_FIELDS, is_given)
}

/// Whether to change each of [`ORGANIZATION_FIELDS`].
fn masked_organization(
    mask: Option<&FieldMask>,
    organization: &pb::Organization,
) -> Result<[bool; 2], Status> {
    let is_given = [
        !organization.display_name.is_empty(),
        !organization.labels.is_empty(),
    ];
    masked(mask, ORGANIZATION_FIELDS, is_given)
}

/// Reduces an update to the fields that it changes, and lists them in its mask.
pub(super) fn normalize_user(request: &mut pb::UpdateUserRequest) {
    let Some(user) = &mut request.user else {
        return;
    };
    let Ok(fields) = masked_user(request.update_mask.as_ref(), user) else {
        return;
    };
    let [first_name, last_name, display_name, email, labels] = fields;
    let given = std::mem::take(user);
    *user = pb::User {
        username: given.username,
        etag: given.etag,
        first_name: kept(first_name, given.first_name),
        last_name: kept(last_name, given.last_name),
        display_name: kept(display_name, given.display_name),
        email: kept(email, given.email),
        labels: kept(labels, given.labels),
        ..pb::User::default()
    };
    request.update_mask = Some(mask_of(USER_FIELDS, fields));
}

/// Like [`normalize_user`], for an organization.
pub(super) fn normalize_organization(request: &mut pb::UpdateOrganizationRequest) {
    let Some(organization) = &mut request.organization else {
        return;
    };
    let Ok(fields) = masked_organization(request.update_mask.as_ref(), organization) else {
        return;
    };
    let [display_name, labels] = fields;
    let given = std::mem::take(organization);
    *organization = pb::Organization {
        organization_name: given.organization_name,
        etag: given.etag,
        display_name: kept(display_name, given.display_name),
        labels: kept(labels, given.labels),
        ..pb::Organization::default()
    };
    request.update_mask = Some(mask_of(ORGANIZATION_FIELDS, fields));
}

fn kept<T: Default>(is_kept: bool, value: T) -> T {
    if is_kept { value } else { T::default() }
}

fn mask_of<const N: usize>(fields: [&str; N], is_masked: [bool; N]) -> FieldMask {
    let fields = fields.into_iter().zip(is_masked);
    let masked = fields.filter(|(_, is_masked)| *is_masked);
    FieldMask {
        paths: masked.map(|(field, _)| field.to_owned()).collect(),
    }
}

pub(super) fn user_to_update(request: &pb::UpdateUserRequest) -> Result<UserToEdit, Status> {
    let no_user = || status::invalid_field("user", "must be set".to_owned());
    let user = request.user.as_ref().ok_or_else(no_user)?;
    let [first_name, last_name, display_name, has_email, has_labels] =
        masked_user(request.update_mask.as_ref(), user)?;
    let text = |is_wanted: bool, field: &str, text: &str| {
        let parsed = is_wanted.then(|| named_under("user.", field, FreeText::parse_existing(text)));
        parsed.transpose()
    };
    Ok(UserToEdit {
        username: named_under(
            "user.",
            "username",
            Username::parse_existing(&user.username),
        )?,
        etag: Etag::from_text(&user.etag),
        edit: UserEdit::Profile {
            first_name: text(first_name, "first_name", &user.first_name)?,
            last_name: text(last_name, "last_name", &user.last_name)?,
            display_name: text(display_name, "display_name", &user.display_name)?,
            email: has_email
                // The user may have the address already.
                .then(|| email("user.email", &user.email, Email::parse_existing))
                .transpose()?,
            labels: has_labels
                .then(|| labels("user.labels", &user.labels, FreeText::parse_existing))
                .transpose()?,
        },
    })
}

/// A user to suspend or to resume.
pub(super) fn user_in_state(name: &str, etag: &str, state: State) -> Result<UserToEdit, Status> {
    Ok(UserToEdit {
        username: username("username", name)?,
        etag: Etag::from_text(etag),
        edit: UserEdit::State(state),
    })
}

pub(super) fn user_to_delete(request: &pb::DeleteUserRequest) -> Result<UserToDelete, Status> {
    Ok(UserToDelete {
        username: username("username", &request.username)?,
        etag: Etag::from_text(&request.etag),
    })
}

pub(super) fn organization_to_update(
    request: &pb::UpdateOrganizationRequest,
) -> Result<OrganizationToEdit, Status> {
    let missing = |field| status::invalid_field(field, "must be set".to_owned());
    let organization = request.organization.as_ref();
    let organization = organization.ok_or_else(|| missing("organization"))?;
    let [display_name, has_labels] =
        masked_organization(request.update_mask.as_ref(), organization)?;
    let path = "organization.";
    let name = OrganizationName::parse_existing(&organization.organization_name);
    Ok(OrganizationToEdit {
        organization_name: named_under(path, "organization_name", name)?,
        actor: actor!(update_organization_request, request.actor),
        etag: Etag::from_text(&organization.etag),
        edit: OrganizationEdit::Profile {
            display_name: display_name
                .then(|| {
                    let text = FreeText::parse_existing(&organization.display_name);
                    named_under(path, "display_name", text)
                })
                .transpose()?,
            labels: has_labels
                .then(|| {
                    labels(
                        "organization.labels",
                        &organization.labels,
                        FreeText::parse_existing,
                    )
                })
                .transpose()?,
        },
    })
}

pub(super) fn ownership_to_transfer(
    request: &pb::TransferOwnershipRequest,
) -> Result<OwnershipToTransfer, Status> {
    Ok(OwnershipToTransfer {
        organization_name: organization_name("organization_name", &request.organization_name)?,
        new_owner: username("new_owner", &request.new_owner)?,
        actor: actor!(transfer_ownership_request, request.actor),
    })
}

pub(super) fn organization_to_delete(
    request: &pb::DeleteOrganizationRequest,
) -> Result<OrganizationToDelete, Status> {
    Ok(OrganizationToDelete {
        organization_name: organization_name("organization_name", &request.organization_name)?,
        actor: actor!(delete_organization_request, request.actor),
        etag: Etag::from_text(&request.etag),
    })
}

/// An organization to suspend or to resume.
pub(super) fn organization_in_state(
    name: &str,
    etag: &str,
    state: State,
) -> Result<OrganizationToEdit, Status> {
    Ok(OrganizationToEdit {
        organization_name: organization_name("organization_name", name)?,
        actor: Actor::Platform,
        etag: Etag::from_text(etag),
        edit: OrganizationEdit::State(state),
    })
}

/// Whether to change each field: the fields in the mask or, without a mask, those with a
/// value.
fn masked<const N: usize>(
    mask: Option<&FieldMask>,
    fields: [&str; N],
    is_given: [bool; N],
) -> Result<[bool; N], Status> {
    let paths = mask.map_or(&[][..], |mask| &mask.paths);
    if paths.is_empty() {
        return Ok(is_given);
    }
    let is_known = |path: &str| path == "*" || fields.contains(&path);
    if let Some(at) = paths.iter().position(|path| !is_known(path)) {
        let why = format!("must be one of *, {}", fields.join(", "));
        return Err(status::invalid_field(
            format!("update_mask.paths[{at}]"),
            why,
        ));
    }
    Ok(fields.map(|field| paths.iter().any(|path| path == "*" || path == field)))
}

/// An e-mail address; `None` if empty.
fn email(
    field: &str,
    text: &str,
    parse: fn(&str) -> Result<Email, NameError>,
) -> Result<Option<Email>, Status> {
    let given = (!text.is_empty()).then(|| named(field, parse(text)));
    given.transpose()
}

/// An e-mail address to look up.
pub(super) fn wanted_email(text: &str) -> Result<Email, Status> {
    named("email", Email::parse_existing(text))
}

fn labels(
    field: &str,
    labels: &BTreeMap<String, String>,
    parse_value: fn(&str) -> Result<FreeText, NameError>,
) -> Result<Labels, Status> {
    let labels = labels.iter();
    let labels = labels.map(|(key, value)| (key.as_str(), value.as_str()));
    Labels::parse(labels, parse_value)
        .map_err(|error| status::invalid_field(field, error.to_string()))
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
        display_name: named("display_name", FreeText::parse_new(&request.display_name))?,
        labels: labels("labels", &request.labels, FreeText::parse_new)?,
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
        etag: Etag::from_text(&request.etag),
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
        etag: Etag::from_text(&request.etag),
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
            format_args!("{path}."),
            &one.organization_name,
            &one.username,
            one.minimum_role,
        )
    })
}

pub(super) fn usernames(names: &[String]) -> Result<Vec<Username>, Status> {
    batch("usernames", names, |path, name| {
        named_under(path, "", Username::parse_existing(name))
    })
}

pub(super) fn organization_names(names: &[String]) -> Result<Vec<OrganizationName>, Status> {
    batch("organization_names", names, |path, name| {
        named_under(path, "", OrganizationName::parse_existing(name))
    })
}

/// The records of a response.
///
/// # Errors
/// RESPONSE_TOO_LARGE: clients would not accept the response.
pub(super) fn answer<M: Message>(records: impl Iterator<Item = M>) -> Result<Vec<M>, Status> {
    let mut size = 0;
    let mut answer = Vec::new();
    for record in records {
        size += record.encoded_len();
        if size > MAX_ANSWER_BYTES {
            return Err(status::response_too_large());
        }
        answer.push(record);
    }
    Ok(answer)
}

/// A page of at most `max` entries.
pub(super) fn page(size: i32, token: String, max: u16) -> Result<PageRequest, Status> {
    let size = match u32::try_from(size) {
        Ok(0) => DEFAULT_PAGE,
        Ok(size) => u16::try_from(size).map_or(max, |size| size.min(max)),
        Err(_) => {
            let why = format!("is {size}; must not be negative");
            return Err(status::invalid_field("page_size", why));
        }
    };
    Ok(PageRequest { size, token })
}

/// Parses each entry of a repeated field: at least one, and at most [`MAX_BATCH`]. `parse`
/// gets the path of the entry, which is formatted only for an error.
fn batch<W, T>(
    field: &str,
    all: &[W],
    parse: impl Fn(Arguments<'_>, &W) -> Result<T, Status>,
) -> Result<Vec<T>, Status> {
    if all.is_empty() || all.len() > MAX_BATCH {
        let why = format!("has {} entries; must have 1 to {MAX_BATCH}", all.len());
        return Err(status::invalid_field(field, why));
    }
    let all = all.iter().enumerate();
    all.map(|(at, one)| parse(format_args!("{field}[{at}]"), one))
        .collect()
}

/// Parses one check. `path` is the prefix of its fields' names.
pub(super) fn check(
    path: impl Display + Copy,
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
        minimum_role: role(path, "minimum_role", minimum_role)?,
    })
}

pub(super) fn username(field: &str, name: &str) -> Result<Username, Status> {
    named(field, Username::parse_existing(name))
}

pub(super) fn organization_name(field: &str, name: &str) -> Result<OrganizationName, Status> {
    named(field, OrganizationName::parse_existing(name))
}

pub(super) fn freshness(consistency: Option<pb::ReadConsistency>) -> Result<Freshness, Status> {
    match consistency.and_then(|consistency| consistency.requirement) {
        Some(Requirement::FullyConsistent(true)) => Ok(Freshness::Strong),
        Some(Requirement::FullyConsistent(false)) | None => Ok(Freshness::Coherent),
        Some(Requirement::MaxStaleness(staleness)) => Duration::try_from(staleness)
            .map(Freshness::Within)
            .map_err(|_| {
                let field = "consistency.max_staleness";
                status::invalid_field(field, "must be a duration that is not negative".to_owned())
            }),
    }
}

fn named<T>(field: &str, parsed: Result<T, NameError>) -> Result<T, Status> {
    named_under("", field, parsed)
}

fn named_under<T>(
    path: impl Display,
    field: &str,
    parsed: Result<T, NameError>,
) -> Result<T, Status> {
    parsed.map_err(|error| status::invalid_field(format!("{path}{field}"), error.to_string()))
}

fn required_role(field: &str, value: i32) -> Result<Role, Status> {
    role("", field, value)?.ok_or_else(|| status::invalid_field(field, "must be set".to_owned()))
}

fn role(path: impl Display, field: &str, value: i32) -> Result<Option<Role>, Status> {
    match pb::Role::try_from(value) {
        Ok(pb::Role::Unspecified) => Ok(None),
        Ok(pb::Role::Owner) => Ok(Some(Role::Owner)),
        Ok(pb::Role::Admin) => Ok(Some(Role::Admin)),
        Ok(pb::Role::Member) => Ok(Some(Role::Member)),
        Err(_) => Err(status::invalid_field(
            format!("{path}{field}"),
            format!("{value} is not a value of the enum Role"),
        )),
    }
}
