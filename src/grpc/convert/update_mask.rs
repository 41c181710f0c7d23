//! Update masks: one table for each message, with a row for each field that an update can
//! change.

use prost_types::FieldMask;
use tonic::Status;

use crate::{grpc::status, proto::account_v1 as pb};

/// A field that an update can change.
struct Field<M> {
    name: &'static str,
    is_given: fn(&M) -> bool,
    /// Whether `*` stands for the field, too. Not for fields that clients of earlier contracts do not send.
    is_in_wildcard: bool,
    /// Moves the value of the field from one message to another.
    take: fn(&mut M, &mut M),
}

macro_rules! fields {
    ($message:path: $($name:ident),+ $(; $named:ident)?) => {
        &[$(fields!(@ $message, $name, true),)+ $(fields!(@ $message, $named, false),)?]
    };
    (@ $message:path, $name:ident, $is_in_wildcard:literal) => {
        Field {
            name: stringify!($name),
            is_given: |message| message.$name != <$message>::default().$name,
            is_in_wildcard: $is_in_wildcard,
            take: |to, from| to.$name = std::mem::take(&mut from.$name),
        }
    };
}

const USER: &[Field<pb::User>] =
    fields![pb::User: first_name, last_name, display_name, email, labels; external_id];
const ORGANIZATION: &[Field<pb::Organization>] =
    fields![pb::Organization: display_name, labels; external_id];
const MEMBERSHIP: &[Field<pb::Membership>] = fields![pb::Membership: expire_time, labels];

/// The names of the fields to change.
pub(super) struct Masked(Vec<&'static str>);

impl Masked {
    /// The fields of a user to change.
    ///
    /// # Errors
    /// The mask names another field.
    pub(super) fn of_user(mask: Option<&FieldMask>, user: &pb::User) -> Result<Self, Status> {
        Self::of(mask, user, USER)
    }

    /// The fields of an organization to change.
    ///
    /// # Errors
    /// The mask names another field.
    pub(super) fn of_organization(
        mask: Option<&FieldMask>,
        organization: &pb::Organization,
    ) -> Result<Self, Status> {
        Self::of(mask, organization, ORGANIZATION)
    }

    /// The fields of a membership to change.
    ///
    /// # Errors
    /// The mask names another field.
    pub(super) fn of_membership(
        mask: Option<&FieldMask>,
        membership: &pb::Membership,
    ) -> Result<Self, Status> {
        Self::of(mask, membership, MEMBERSHIP)
    }

    /// `Some(value)` if the field is to be changed.
    pub(super) fn select<T>(
        &self,
        field: &str,
        value: impl FnOnce() -> Result<T, Status>,
    ) -> Result<Option<T>, Status> {
        self.0.contains(&field).then(value).transpose()
    }

    /// The fields in the mask or, without a mask, the fields with a value.
    fn of<M>(mask: Option<&FieldMask>, message: &M, fields: &[Field<M>]) -> Result<Self, Status> {
        let paths = mask.map_or(&[][..], |mask| &mask.paths);
        let names = fields.iter().map(|field| field.name);
        let is_known = |path: &str| path == "*" || names.clone().any(|name| name == path);
        if let Some(at) = paths.iter().position(|path| !is_known(path)) {
            let names: Vec<_> = names.collect();
            return Err(status::invalid_field(
                format!("update_mask.paths[{at}]"),
                format!("must be one of *, {}", names.join(", ")),
            ));
        }
        let is_masked = |field: &&Field<M>| {
            if paths.is_empty() {
                return (field.is_given)(message);
            }
            let is_all = |path: &str| path == "*" && field.is_in_wildcard;
            paths.iter().any(|path| is_all(path) || path == field.name)
        };
        let masked = fields.iter().filter(is_masked);
        Ok(Self(masked.map(|field| field.name).collect()))
    }
}

/// Reduces an update to the fields that it changes, and lists them in its mask.
pub(in crate::grpc) fn normalize_user(request: &mut pb::UpdateUserRequest) {
    if let Some(user) = &mut request.user {
        let reduced = pb::User {
            username: user.username.clone(),
            etag: user.etag.clone(),
            ..pb::User::default()
        };
        normalize(user, reduced, &mut request.update_mask, USER);
    }
}

/// Like [`normalize_user`], for an organization.
pub(in crate::grpc) fn normalize_organization(request: &mut pb::UpdateOrganizationRequest) {
    if let Some(organization) = &mut request.organization {
        let reduced = pb::Organization {
            organization_name: organization.organization_name.clone(),
            etag: organization.etag.clone(),
            ..pb::Organization::default()
        };
        normalize(
            organization,
            reduced,
            &mut request.update_mask,
            ORGANIZATION,
        );
    }
}

/// Like [`normalize_user`], for a membership.
pub(in crate::grpc) fn normalize_membership(request: &mut pb::UpdateMembershipRequest) {
    if let Some(membership) = &mut request.membership {
        let reduced = pb::Membership {
            organization_name: membership.organization_name.clone(),
            member_username: membership.member_username.clone(),
            etag: membership.etag.clone(),
            ..pb::Membership::default()
        };
        normalize(membership, reduced, &mut request.update_mask, MEMBERSHIP);
    }
}

/// Replaces `message` by `reduced` with the fields to change. An invalid mask stays.
fn normalize<M>(
    message: &mut M,
    mut reduced: M,
    mask: &mut Option<FieldMask>,
    fields: &[Field<M>],
) {
    let Ok(Masked(masked)) = Masked::of(mask.as_ref(), message, fields) else {
        return;
    };
    for field in fields.iter().filter(|field| masked.contains(&field.name)) {
        (field.take)(&mut reduced, message);
    }
    *message = reduced;
    *mask = Some(FieldMask {
        paths: masked.into_iter().map(str::to_owned).collect(),
    });
}
