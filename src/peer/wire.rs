//! Keys in calls between replicas.

use crate::{
    domain::{Key, OrganizationName, Username},
    proto::peer_v1 as wire,
};

/// Most keys of a call.
pub const MAX_KEYS: usize = 300;

/// A call has too many keys, or an invalid one.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidKeys;

pub(super) fn keys_to_wire(keys: &[Key]) -> Vec<wire::Key> {
    let keys = keys.iter().map(|key| {
        use wire::key::Record;
        let record = match key {
            Key::User(username) => Record::User(username.to_string()),
            Key::Organization(name) => Record::Organization(name.to_string()),
            Key::Membership(organization, member) => Record::Membership(wire::MembershipKey {
                organization: organization.to_string(),
                member: member.to_string(),
            }),
        };
        wire::Key {
            record: Some(record),
        }
    });
    keys.collect()
}

/// The keys of a call.
///
/// # Errors
/// [`InvalidKeys`]. A key is not ignored, because its fence would be acknowledged.
pub fn keys_from_wire(keys: Vec<wire::Key>) -> Result<Vec<Key>, InvalidKeys> {
    if keys.len() > MAX_KEYS {
        return Err(InvalidKeys);
    }
    let keys = keys
        .into_iter()
        .map(|key| key_from_wire(key).ok_or(InvalidKeys));
    keys.collect()
}

fn key_from_wire(key: wire::Key) -> Option<Key> {
    use wire::key::Record;
    Some(match key.record? {
        Record::User(username) => Key::User(Username::parse_existing(&username).ok()?),
        Record::Organization(name) => {
            Key::Organization(OrganizationName::parse_existing(&name).ok()?)
        }
        Record::Membership(membership) => Key::Membership(
            OrganizationName::parse_existing(&membership.organization).ok()?,
            Username::parse_existing(&membership.member).ok()?,
        ),
    })
}
