//! Requests that write users and organizations.

use std::collections::BTreeMap;

use prost_types::FieldMask;
use tonic::Status;

use super::{actor, named, named_under, organization_name, username};
use crate::{
    domain::{Actor, Email, Etag, FreeText, Labels, NameError, OrganizationName, State, Username},
    grpc::status,
    proto::account_v1 as pb,
    service::{
        NewOrganization, NewUser, OrganizationEdit, OrganizationToDelete, OrganizationToEdit,
        UserEdit, UserToDelete, UserToEdit,
    },
};

pub(in crate::grpc) fn new_user(request: &pb::CreateUserRequest) -> Result<NewUser, Status> {
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
pub(in crate::grpc) fn normalize_user(request: &mut pb::UpdateUserRequest) {
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
pub(in crate::grpc) fn normalize_organization(request: &mut pb::UpdateOrganizationRequest) {
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

pub(in crate::grpc) fn user_to_update(
    request: &pb::UpdateUserRequest,
) -> Result<UserToEdit, Status> {
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
pub(in crate::grpc) fn user_in_state(
    name: &str,
    etag: &str,
    state: State,
) -> Result<UserToEdit, Status> {
    Ok(UserToEdit {
        username: username("username", name)?,
        etag: Etag::from_text(etag),
        edit: UserEdit::State(state),
    })
}

pub(in crate::grpc) fn user_to_delete(
    request: &pb::DeleteUserRequest,
) -> Result<UserToDelete, Status> {
    Ok(UserToDelete {
        username: username("username", &request.username)?,
        etag: Etag::from_text(&request.etag),
    })
}

pub(in crate::grpc) fn organization_to_update(
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

pub(in crate::grpc) fn organization_to_delete(
    request: &pb::DeleteOrganizationRequest,
) -> Result<OrganizationToDelete, Status> {
    Ok(OrganizationToDelete {
        organization_name: organization_name("organization_name", &request.organization_name)?,
        actor: actor!(delete_organization_request, request.actor),
        etag: Etag::from_text(&request.etag),
    })
}

/// An organization to suspend or to resume.
pub(in crate::grpc) fn organization_in_state(
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
pub(in crate::grpc) fn wanted_email(text: &str) -> Result<Email, Status> {
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

pub(in crate::grpc) fn new_organization(
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
