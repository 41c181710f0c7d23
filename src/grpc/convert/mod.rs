//! Converts messages to domain types and back. Each request is parsed here, once. An error
//! names the path of the invalid field.

mod changes;
mod filter;
mod memberships;
mod profiles;
mod replies;
mod update_mask;

use std::{
    fmt::{Arguments, Display},
    time::Duration,
};

use prost::Message;
use tonic::Status;

pub(super) use self::{
    changes::{changes, watch},
    filter::{is_ordered, membership_filter, name_filter},
    memberships::{
        member_to_add, member_to_remove, membership_names, membership_to_update,
        ownership_to_transfer, role_to_change,
    },
    profiles::{
        erasure_id, new_organization, new_user, organization_identity, organization_in_state,
        organization_to_delete, organization_to_undelete, organization_to_update, user_identity,
        user_in_state, user_to_delete, user_to_erase, user_to_undelete, user_to_update,
    },
    replies::{
        check_response, check_result, erasure, membership, organization, source, user, wire_role,
    },
    update_mask::{normalize_membership, normalize_organization, normalize_user},
};
use super::{MAX_RESPONSE_BYTES, status};
use crate::{
    domain::{NameError, OrganizationName, Role, Username},
    proto::account_v1::{self as pb, read_consistency::Requirement},
    service::{Check, Freshness, PageRequest},
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
use actor;

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
pub(super) fn bounded<M: Message>(records: impl Iterator<Item = M>) -> Result<Vec<M>, Status> {
    let mut size = 0;
    let mut bounded = Vec::new();
    for record in records {
        size += record.encoded_len();
        if size > MAX_RESPONSE_BYTES {
            return Err(status::response_too_large());
        }
        bounded.push(record);
    }
    Ok(bounded)
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
        with_labels: false,
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
