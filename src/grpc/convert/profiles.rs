//! Requests that write users and organizations.

use std::{collections::BTreeMap, time::Duration};

use tonic::Status;

use super::{actor, named, named_under, organization_name, update_mask::Masked, username};
use crate::{
    domain::{
        Actor, Email, ErasureId, Etag, ExternalId, FreeText, Labels, MAX_UNDELETE_WINDOW,
        NameError, OrganizationName, State, Uid, UndeleteWindow, Username,
    },
    grpc::status,
    proto::account_v1 as pb,
    service::{
        NewOrganization, NewUser, OrganizationEdit, OrganizationIdentity, OrganizationToDelete,
        OrganizationToEdit, OrganizationToUndelete, UserEdit, UserIdentity, UserToDelete,
        UserToEdit, UserToErase, UserToUndelete,
    },
};

pub(in crate::grpc) fn new_user(request: &pb::CreateUserRequest) -> Result<NewUser, Status> {
    Ok(NewUser {
        username: named("username", Username::parse_new(&request.username))?,
        first_name: named("first_name", FreeText::parse_new(&request.first_name))?,
        last_name: named("last_name", FreeText::parse_new(&request.last_name))?,
        display_name: named("display_name", FreeText::parse_new(&request.display_name))?,
        email: email("email", &request.email, Email::parse_new)?,
        external_id: external_id("external_id", &request.external_id)?,
        labels: labels("labels", &request.labels, FreeText::parse_new)?,
    })
}

pub(in crate::grpc) fn user_to_update(
    request: &pb::UpdateUserRequest,
) -> Result<UserToEdit, Status> {
    let no_user = || status::invalid_field("user", "must be set".to_owned());
    let user = request.user.as_ref().ok_or_else(no_user)?;
    let masked = Masked::of_user(request.update_mask.as_ref(), user)?;
    let text = |field: &str, text: &str| {
        let parse = || named_under("user.", field, FreeText::parse_existing(text));
        masked.select(field, parse)
    };
    Ok(UserToEdit {
        username: named_under(
            "user.",
            "username",
            Username::parse_existing(&user.username),
        )?,
        etag: Etag::from_text(&user.etag),
        unless_last_owner: false,
        edit: UserEdit::Profile {
            first_name: text("first_name", &user.first_name)?,
            last_name: text("last_name", &user.last_name)?,
            display_name: text("display_name", &user.display_name)?,
            email: masked.select("email", || {
                // The user may have the address already.
                email("user.email", &user.email, Email::parse_existing)
            })?,
            external_id: masked.select("external_id", || {
                external_id("user.external_id", &user.external_id)
            })?,
            labels: masked.select("labels", || {
                labels("user.labels", &user.labels, FreeText::parse_existing)
            })?,
        },
    })
}

/// A user to suspend or to resume.
pub(in crate::grpc) fn user_in_state(
    name: &str,
    etag: &str,
    state: State,
    unless_last_owner: bool,
) -> Result<UserToEdit, Status> {
    Ok(UserToEdit {
        username: username("username", name)?,
        etag: Etag::from_text(etag),
        edit: UserEdit::State(state),
        unless_last_owner,
    })
}

pub(in crate::grpc) fn user_to_delete(
    request: &pb::DeleteUserRequest,
) -> Result<UserToDelete, Status> {
    Ok(UserToDelete {
        username: username("username", &request.username)?,
        etag: Etag::from_text(&request.etag),
        unless_last_owner: request.unless_last_owner,
        undelete_window: undelete_window(request.undelete_window)?,
    })
}

pub(in crate::grpc) fn user_to_undelete(
    request: &pb::UndeleteUserRequest,
) -> Result<UserToUndelete, Status> {
    Ok(UserToUndelete {
        username: username("username", &request.username)?,
        etag: Etag::from_text(&request.etag),
    })
}

pub(in crate::grpc) fn user_to_erase(
    request: &pb::EraseUserRequest,
) -> Result<UserToErase, Status> {
    Ok(UserToErase {
        username: username("username", &request.username)?,
        etag: Etag::from_text(&request.etag),
        unless_last_owner: request.unless_last_owner,
    })
}

pub(in crate::grpc) fn erasure_id(text: &str) -> Result<ErasureId, Status> {
    let invalid = || status::invalid_field("erasure_id", "must be a UUID".to_owned());
    ErasureId::parse(text).ok_or_else(invalid)
}

fn undelete_window(
    window: Option<prost_types::Duration>,
) -> Result<Option<UndeleteWindow>, Status> {
    let Some(window) = window else {
        return Ok(None);
    };
    let window = Duration::try_from(window)
        .ok()
        .and_then(UndeleteWindow::new);
    let invalid = || {
        let days = MAX_UNDELETE_WINDOW.as_secs() / (24 * 3600);
        let why = format!("must be more than 0 and at most {days} days");
        status::invalid_field("undelete_window", why)
    };
    window.map(Some).ok_or_else(invalid)
}

pub(in crate::grpc) fn organization_to_update(
    request: &pb::UpdateOrganizationRequest,
) -> Result<OrganizationToEdit, Status> {
    let missing = |field| status::invalid_field(field, "must be set".to_owned());
    let organization = request.organization.as_ref();
    let organization = organization.ok_or_else(|| missing("organization"))?;
    let masked = Masked::of_organization(request.update_mask.as_ref(), organization)?;
    let path = "organization.";
    let name = OrganizationName::parse_existing(&organization.organization_name);
    Ok(OrganizationToEdit {
        organization_name: named_under(path, "organization_name", name)?,
        actor: actor!(update_organization_request, request.actor),
        etag: Etag::from_text(&organization.etag),
        edit: OrganizationEdit::Profile {
            display_name: masked.select("display_name", || {
                let text = FreeText::parse_existing(&organization.display_name);
                named_under(path, "display_name", text)
            })?,
            external_id: masked.select("external_id", || {
                external_id("organization.external_id", &organization.external_id)
            })?,
            labels: masked.select("labels", || {
                let given = &organization.labels;
                labels("organization.labels", given, FreeText::parse_existing)
            })?,
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
        undelete_window: undelete_window(request.undelete_window)?,
    })
}

pub(in crate::grpc) fn organization_to_undelete(
    request: &pb::UndeleteOrganizationRequest,
) -> Result<OrganizationToUndelete, Status> {
    Ok(OrganizationToUndelete {
        organization_name: organization_name("organization_name", &request.organization_name)?,
        actor: actor!(undelete_organization_request, request.actor),
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

/// An e-mail address; `None` if empty.
fn email(
    field: &str,
    text: &str,
    parse: fn(&str) -> Result<Email, NameError>,
) -> Result<Option<Email>, Status> {
    let given = (!text.is_empty()).then(|| named(field, parse(text)));
    given.transpose()
}

/// An external id; `None` if empty.
fn external_id(field: &str, text: &str) -> Result<Option<ExternalId>, Status> {
    let given = (!text.is_empty()).then(|| named(field, ExternalId::parse(text)));
    given.transpose()
}

/// The identity of a user to look up.
pub(in crate::grpc) fn user_identity(
    request: &pb::LookupUserRequest,
) -> Result<UserIdentity, Status> {
    let email = || named("email", Email::parse_existing(&request.email)).map(UserIdentity::Email);
    match (&*request.email, &*request.uid, &*request.external_id) {
        (_, "", "") => email(),
        ("", uid, "") => wanted_uid(uid).map(UserIdentity::Uid),
        ("", "", id) => named("external_id", ExternalId::parse(id)).map(UserIdentity::ExternalId),
        _ => Err(status::invalid_field(
            "email",
            "exactly one of email, uid and external_id must be set".to_owned(),
        )),
    }
}

/// The identity of an organization to look up.
pub(in crate::grpc) fn organization_identity(
    request: &pb::LookupOrganizationRequest,
) -> Result<OrganizationIdentity, Status> {
    match (&*request.uid, &*request.external_id) {
        (uid, "") => wanted_uid(uid).map(OrganizationIdentity::Uid),
        ("", id) => {
            named("external_id", ExternalId::parse(id)).map(OrganizationIdentity::ExternalId)
        }
        _ => Err(status::invalid_field(
            "uid",
            "exactly one of uid and external_id must be set".to_owned(),
        )),
    }
}

/// A uid to look up.
fn wanted_uid(text: &str) -> Result<Uid, Status> {
    named("uid", Uid::parse(text))
}

pub(super) fn labels(
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
        external_id: external_id("external_id", &request.external_id)?,
        labels: labels("labels", &request.labels, FreeText::parse_new)?,
    })
}
