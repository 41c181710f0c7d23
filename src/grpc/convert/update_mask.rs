//! Update masks: one table for each message, with a row for each field that an update can
//! change. Masks may name other fields of the message, which are output only: they are ignored, so that
//! a resource can be read, edited and sent back as a whole.

use std::borrow::Cow;

use prost_types::FieldMask;
use tonic::Status;

use crate::{grpc::status, proto::account_v1 as pb};

/// The path of a mask for all fields that an update can change.
const EVERY_FIELD: &str = "*";

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

/// The fields of a message.
struct Fields<M: 'static> {
    /// The fields that an update can change.
    changeable: &'static [Field<M>],
    output_only: &'static [&'static str],
}

const USER: Fields<pb::User> = Fields {
    changeable: fields![pb::User: first_name, last_name, display_name, email, labels; external_id],
    output_only: &[
        "username",
        "uid",
        "create_time",
        "update_time",
        "state",
        "etag",
        "delete_time",
        "purge_time",
    ],
};
const ORGANIZATION: Fields<pb::Organization> = Fields {
    changeable: fields![pb::Organization: display_name, labels; external_id],
    output_only: &[
        "organization_name",
        "founding_user",
        "uid",
        "create_time",
        "update_time",
        "state",
        "etag",
        "delete_time",
        "purge_time",
    ],
};
const MEMBERSHIP: Fields<pb::Membership> = Fields {
    changeable: fields![pb::Membership: expire_time, labels],
    output_only: &[
        "organization_name",
        "member_username",
        // Compared with the member's role, see `normalize_membership`.
        "role",
        "adding_user",
        "create_time",
        "update_time",
        "state",
        "etag",
    ],
};

/// The names of the fields to change.
pub(super) struct Masked(Vec<&'static str>);

impl Masked {
    /// The fields of a user to change.
    ///
    /// # Errors
    /// The mask names another field.
    pub(super) fn of_user(mask: Option<&FieldMask>, user: &pb::User) -> Result<Self, Status> {
        Self::of(mask, user, &USER)
    }

    /// The fields of an organization to change.
    ///
    /// # Errors
    /// The mask names another field.
    pub(super) fn of_organization(
        mask: Option<&FieldMask>,
        organization: &pb::Organization,
    ) -> Result<Self, Status> {
        Self::of(mask, organization, &ORGANIZATION)
    }

    /// The fields of a membership to change.
    ///
    /// # Errors
    /// The mask names another field.
    pub(super) fn of_membership(
        mask: Option<&FieldMask>,
        membership: &pb::Membership,
    ) -> Result<Self, Status> {
        Self::of(mask, membership, &MEMBERSHIP)
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
    fn of<M>(mask: Option<&FieldMask>, message: &M, fields: &Fields<M>) -> Result<Self, Status> {
        let paths = paths(mask);
        let names = fields.changeable.iter().map(|field| field.name);
        let is_known = |path: &str| {
            let is_changeable = names.clone().any(|name| name == path);
            path == EVERY_FIELD || is_changeable || fields.output_only.contains(&path)
        };
        if let Some(at) = paths.iter().position(|path| !is_known(path)) {
            let names: Vec<_> = names.collect();
            return Err(status::invalid_field(
                format!("update_mask.paths[{at}]"),
                format!("must be one of {EVERY_FIELD}, {}", names.join(", ")),
            ));
        }
        let is_masked = |field: &&Field<M>| {
            if paths.is_empty() {
                return (field.is_given)(message);
            }
            let is_all = |path: &str| path == EVERY_FIELD && field.is_in_wildcard;
            paths.iter().any(|path| is_all(path) || path == field.name)
        };
        let masked = fields.changeable.iter().filter(is_masked);
        Ok(Self(masked.map(|field| field.name).collect()))
    }
}

/// The paths of a mask, with the names of fields as in the contract. The JSON names of fields, such as
/// `displayName`, are accepted, too.
fn paths(mask: Option<&FieldMask>) -> Vec<Cow<'_, str>> {
    let paths = mask.into_iter().flat_map(|mask| &mask.paths);
    paths.map(|path| contract_name(path)).collect()
}

fn contract_name(path: &str) -> Cow<'_, str> {
    if !path.contains(|found: char| found.is_ascii_uppercase()) {
        return path.into();
    }
    let mut name = String::with_capacity(path.len() + 4);
    for found in path.chars() {
        if found.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(found.to_ascii_lowercase());
    }
    name.into()
}

/// Reduces an update to the fields that it changes, and lists them in its mask.
pub(in crate::grpc) fn normalize_user(request: &mut pb::UpdateUserRequest) {
    if let Some(user) = &mut request.user {
        let reduced = pb::User {
            username: user.username.clone(),
            etag: user.etag.clone(),
            ..pb::User::default()
        };
        normalize(user, reduced, &mut request.update_mask, &USER);
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
            &ORGANIZATION,
        );
    }
}

/// Like [`normalize_user`], for a membership. A role that is sent back stays: a changed one is rejected,
/// because ChangeMemberRole changes roles.
pub(in crate::grpc) fn normalize_membership(request: &mut pb::UpdateMembershipRequest) {
    if let Some(membership) = &mut request.membership {
        let paths = paths(request.update_mask.as_ref());
        let has_role = paths.is_empty()
            || paths
                .iter()
                .any(|path| path == "role" || path == EVERY_FIELD);
        let reduced = pb::Membership {
            organization_name: membership.organization_name.clone(),
            member_username: membership.member_username.clone(),
            etag: membership.etag.clone(),
            role: if has_role { membership.role } else { 0 },
            ..pb::Membership::default()
        };
        normalize(membership, reduced, &mut request.update_mask, &MEMBERSHIP);
    }
}

/// Replaces `message` by `reduced` with the fields to change. An invalid mask stays.
fn normalize<M>(message: &mut M, mut reduced: M, mask: &mut Option<FieldMask>, fields: &Fields<M>) {
    let Ok(Masked(masked)) = Masked::of(mask.as_ref(), message, fields) else {
        return;
    };
    let changeable = fields.changeable.iter();
    for field in changeable.filter(|field| masked.contains(&field.name)) {
        (field.take)(&mut reduced, message);
    }
    *message = reduced;
    *mask = Some(FieldMask {
        paths: masked.into_iter().map(str::to_owned).collect(),
    });
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::{FieldDescriptorProto, FileDescriptorSet};

    use super::*;

    fn names<M>(fields: &Fields<M>) -> Vec<&'static str> {
        let changeable = fields.changeable.iter().map(|field| field.name);
        let mut names: Vec<_> = changeable
            .chain(fields.output_only.iter().copied())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn each_field_of_a_resource_is_changeable_or_output_only() {
        let set = FileDescriptorSet::decode(pb::DESCRIPTOR_SET).unwrap();
        for (message, names) in [
            ("User", names(&USER)),
            ("Organization", names(&ORGANIZATION)),
            ("Membership", names(&MEMBERSHIP)),
        ] {
            let messages = set.file.iter().flat_map(|file| &file.message_type);
            let mut messages = messages.filter(|it| it.name() == message);
            let described = messages.next().unwrap();
            let mut fields: Vec<_> = described
                .field
                .iter()
                .map(FieldDescriptorProto::name)
                .collect();
            fields.sort_unstable();
            assert_eq!(names, fields, "{message}");
        }
    }

    #[test]
    fn a_mask_may_have_json_names_and_output_only_fields() {
        let masked = |paths: &[&str]| {
            let paths = paths.iter().map(ToString::to_string).collect();
            let masked = Masked::of_user(Some(&FieldMask { paths }), &pb::User::default());
            masked.map(|masked| masked.0)
        };
        let changed = masked(&["displayName", "uid", "createTime", "labels", "etag"]).unwrap();
        assert_eq!(changed, ["display_name", "labels"]);
        assert_eq!(masked(&["state"]).unwrap(), [""; 0]);
        for unknown in ["DisplayName", "display-name", "labels.tier", "nickname", ""] {
            assert!(masked(&[unknown]).is_err(), "{unknown}");
        }
    }
}
