//! Records as items: attribute names and types, free of any SDK. Items of other writers
//! are valid, too.

mod bookkeeping;

use std::{collections::HashMap, fmt};

pub(super) use self::bookkeeping::{
    OPTIONAL_ORIGIN, decode_deletion, decode_erasure, decode_logged, decode_made, decode_orphans,
    decode_request, decode_update_time, encode_deletion, encode_erasure, encode_logged,
    encode_origin, encode_orphans, encode_outcome, encode_request, mentions,
};

use super::StoredClaim;
use crate::domain::{
    Email, ErasureId, ExpireTime, ExternalId, FreeText, Key, Labels, Membership, Organization,
    OrganizationName, ProfileId, ProfileName, Purge, Record, Role, SoftDeletion, Stamp, State,
    Timestamp, Uid, User, Username,
};

pub(super) const VERSION: &str = "ver";
pub(super) const UID: &str = "uid";
pub(super) const ROLE: &str = "role";
pub(super) const ORGANIZATION_UID: &str = "organizationUid";
pub(super) const MEMBER_UID: &str = "memberUid";
pub(super) const WRITE_ID: &str = "writeId";
pub(super) const EXPIRE_TIME: &str = "expireTime";
pub(super) const CREATE_TIME: &str = "createTime";
pub(super) const STATE: &str = "state";
const DELETE_TIME: &str = "deleteTime";
pub(super) const PURGE_TIME: &str = "purgeTime";
/// The erasure that purges the record.
pub(super) const ERASURE: &str = "erasure";
/// The attributes of a deletion beside the state.
const OF_DELETION: [&str; 4] = [DELETE_TIME, PURGE_TIME, ERASURE, STATE_BEFORE];
/// The state beside a deletion that can be undone.
const STATE_BEFORE: &str = "stateBefore";
const EMAIL: &str = "email";
const EXTERNAL_ID: &str = "externalId";
pub(super) const CHANGED_BY: &str = "changedBy";
const CALLED_BY: &str = "calledBy";
const REQUEST_ID: &str = "requestId";
const FINGERPRINT: &str = "fingerprint";
pub(super) const OUTCOME: &str = "outcome";
const RECORD_PK: &str = "recordPK";
pub(super) const RECORD_SK: &str = "recordSK";
const KIND: &str = "kind";
const CREATED: &str = "CREATED";
const UPDATED: &str = "UPDATED";
const DELETED: &str = "DELETED";
/// Marks a logged deletion as an expiry. Versions without expiries deliver it as a deletion.
const EXPIRED: &str = "expired";
pub(super) const BEFORE: &str = "before";
pub(super) const AFTER: &str = "after";
/// Largest image of a record in a log, in bytes. Records of this service have
/// up to 12 kB.
const MAX_LOGGED_IMAGE: usize = 32 * 1024;
const UPDATE_TIME: &str = "updateTime";
pub(super) const USERNAME: &str = "username";
const FIRST_NAME: &str = "firstName";
const LAST_NAME: &str = "lastName";
const ORGANIZATION_NAME: &str = "organizationName";
const FOUNDING_USER: &str = "foundingUser";
const MEMBER_USERNAME: &str = "memberUsername";
const ADDING_USER: &str = "addingUser";
const DISPLAY_NAME: &str = "displayName";
const LABELS: &str = "labels";

/// The state of a tombstone, see [`encode_tombstone`]. Other writers are unlikely to use this
/// word for a state.
pub(super) const TOMBSTONE: &str = "TOMBSTONE";

/// The state of a record whose deletion can be undone. Versions that do not know it treat it as
/// suspended.
pub(super) const SOFT_DELETED: &str = "DELETED";

/// An attribute's value: the types that records use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(String),
    List(Vec<Value>),
    Map(HashMap<String, Value>),
}

/// An item's attributes, without its keys.
pub(crate) type Item = HashMap<String, Value>;

/// The item of a record.
pub(crate) fn encode(record: &Record) -> Item {
    let mut item = Item::new();
    match record {
        Record::User(user) => {
            put_text(&mut item, USERNAME, user.username.as_str());
            put_text(&mut item, FIRST_NAME, user.first_name.as_str());
            put_text(&mut item, LAST_NAME, user.last_name.as_str());
            put_profile(&mut item, &user.display_name, &user.labels);
            put_state(&mut item, user.state, user.deletion);
            if let Some(email) = &user.email {
                put_text(&mut item, EMAIL, email.as_str());
            }
            put_external_id(&mut item, user.external_id.as_ref());
            put_uid(&mut item, UID, user.uid.as_ref());
            put_stamp(&mut item, &user.stamp);
        }
        Record::Organization(organization) => {
            put_text(
                &mut item,
                ORGANIZATION_NAME,
                organization.organization_name.as_str(),
            );
            put_text(&mut item, FOUNDING_USER, &organization.founding_user);
            let Organization {
                display_name,
                labels,
                state,
                deletion,
                ..
            } = organization;
            put_profile(&mut item, display_name, labels);
            put_state(&mut item, *state, *deletion);
            put_external_id(&mut item, organization.external_id.as_ref());
            put_uid(&mut item, UID, organization.uid.as_ref());
            put_stamp(&mut item, &organization.stamp);
        }
        Record::Membership(membership) => {
            put_text(
                &mut item,
                ORGANIZATION_NAME,
                membership.organization_name.as_str(),
            );
            put_text(
                &mut item,
                MEMBER_USERNAME,
                membership.member_username.as_str(),
            );
            if let Some(role) = membership.role {
                put_text(&mut item, ROLE, role.as_str());
            }
            if let Some(adding_user) = &membership.adding_user {
                put_text(&mut item, ADDING_USER, adding_user);
            }
            put_uid(
                &mut item,
                ORGANIZATION_UID,
                membership.organization_uid.as_ref(),
            );
            put_uid(&mut item, MEMBER_UID, membership.member_uid.as_ref());
            if let Some(ExpireTime(seconds)) = membership.expire_time {
                put_number(&mut item, EXPIRE_TIME, seconds);
            }
            put_labels(&mut item, &membership.labels);
            put_stamp(&mut item, &membership.stamp);
        }
    }
    item
}

/// The record of an item under `key`. `None` for a tombstone. The key, not the attributes,
/// names the record. Items of other writers are served: an attribute of another type counts
/// as missing, an unknown role grants nothing, and an unknown state is a suspension.
pub(crate) fn decode(key: &Key, item: &Item) -> Option<Record> {
    if is_tombstone(item) {
        return None;
    }
    let stamp = stamp(item);
    Some(match key {
        Key::User(username) => Record::User(User {
            username: username.clone(),
            first_name: FreeText::from_stored(text(item, FIRST_NAME).unwrap_or_default()),
            last_name: FreeText::from_stored(text(item, LAST_NAME).unwrap_or_default()),
            display_name: display_name(item),
            email: text(item, EMAIL).and_then(|email| Email::parse_existing(email).ok()),
            external_id: external_id(item),
            labels: labels(item),
            state: state(item),
            deletion: deletion(item),
            uid: uid(item, UID),
            stamp,
        }),
        Key::Organization(organization_name) => Record::Organization(Organization {
            organization_name: organization_name.clone(),
            founding_user: text(item, FOUNDING_USER).unwrap_or_default().to_owned(),
            display_name: display_name(item),
            external_id: external_id(item),
            labels: labels(item),
            state: state(item),
            deletion: deletion(item),
            uid: uid(item, UID),
            stamp,
        }),
        Key::Membership(organization_name, member_username) => Record::Membership(Membership {
            organization_name: organization_name.clone(),
            member_username: member_username.clone(),
            role: text(item, ROLE).and_then(|role| Role::from_bytes(role.as_bytes())),
            adding_user: text(item, ADDING_USER).map(str::to_owned),
            organization_uid: uid(item, ORGANIZATION_UID),
            member_uid: uid(item, MEMBER_UID),
            expire_time: number(item, EXPIRE_TIME).map(ExpireTime),
            labels: labels(item),
            stamp,
        }),
    })
}

/// The item that a deleted user or organization leaves under its key. `None` for a membership,
/// which leaves no item. Other writers create a record only under a key without an item. The
/// attributes that the tutorial's code reads are missing, so that it fails and does not treat
/// the record as existing.
pub(super) fn encode_tombstone(record: &Record, now: Timestamp) -> Option<Item> {
    if let Record::Membership(_) = record {
        return None;
    }
    let mut item = Item::new();
    put_uid(&mut item, UID, record.uid());
    put_text(&mut item, STATE, TOMBSTONE);
    put_number(&mut item, UPDATE_TIME, now.0);
    Some(item)
}

/// Whether an item is a tombstone.
pub(super) fn is_tombstone(item: &Item) -> bool {
    text(item, STATE) == Some(TOMBSTONE)
}

/// The attribute that names a user or an organization, and the name.
pub(super) fn holder(name: &ProfileName) -> (&'static str, &str) {
    match name {
        ProfileName::User(username) => (USERNAME, username.as_str()),
        ProfileName::Organization(name) => (ORGANIZATION_NAME, name.as_str()),
    }
}

/// The user or the organization that an item of [`encode_holder`] names.
pub(super) fn decode_holder(item: &Item) -> Option<ProfileName> {
    if let Some(name) = text(item, USERNAME) {
        return Username::parse_existing(name).ok().map(ProfileName::User);
    }
    let name = OrganizationName::parse_existing(text(item, ORGANIZATION_NAME)?);
    name.ok().map(ProfileName::Organization)
}

/// The item of the claim of a unique value.
pub(super) fn encode_claim(claim: &ProfileId) -> Item {
    let mut item = encode_holder(&claim.name);
    put_uid(&mut item, UID, claim.uid.as_ref());
    item
}

/// The claim of an item. `None` if the item is not a claim.
pub(super) fn decode_claim(item: &Item) -> Option<StoredClaim> {
    Some(StoredClaim {
        claim: ProfileId {
            name: decode_holder(item)?,
            uid: uid(item, UID),
        },
        change_id: text(item, WRITE_ID).map(str::to_owned),
    })
}

/// An item that names a user or an organization: that of a uid, and a part of a claim.
pub(super) fn encode_holder(name: &ProfileName) -> Item {
    let (attribute, name) = holder(name);
    let mut item = Item::new();
    put_text(&mut item, attribute, name);
    item
}

/// The attributes to set and to remove, to turn the item of one record into that of
/// another.
pub(super) fn difference(before: &Record, after: &Record) -> (Item, Vec<String>) {
    let is_other_deletion = before.deletion() != after.deletion();
    let (before, mut set) = (encode(before), encode(after));
    let gone = before.keys().filter(|name| !set.contains_key(*name));
    let mut gone: Vec<_> = gone.cloned().collect();
    // Another writer may have removed the state alone.
    let of_deletion = OF_DELETION.iter().map(|name| (*name).to_owned());
    let of_deletion = of_deletion.filter(|name| is_other_deletion && !set.contains_key(name));
    for name in of_deletion {
        if !gone.contains(&name) {
            gone.push(name);
        }
    }
    set.retain(|name, value| before.get(name) != Some(value));
    (set, gone)
}

/// Sets the time after which DynamoDB deletes the item.
pub(super) fn put_expiry(item: &mut Item, expires: Timestamp) {
    put_number(item, EXPIRE_TIME, expires.seconds());
}

/// Empty and default values have no attributes, as in the tutorial's items.
fn put_profile(item: &mut Item, display_name: &FreeText, labels: &Labels) {
    if !display_name.as_str().is_empty() {
        put_text(item, DISPLAY_NAME, display_name.as_str());
    }
    put_labels(item, labels);
}

/// An active state has no attribute.
fn put_state(item: &mut Item, state: State, deletion: Option<SoftDeletion>) {
    let attribute = if let Some(deletion) = deletion {
        put_text(item, STATE, SOFT_DELETED);
        put_number(item, DELETE_TIME, deletion.delete_time.0);
        match deletion.purge {
            Purge::At(Timestamp(millis)) => put_number(item, PURGE_TIME, millis),
            Purge::By(erasure) => put_text(item, ERASURE, &erasure.to_string()),
        }
        STATE_BEFORE
    } else {
        STATE
    };
    if state != State::Active {
        put_text(item, attribute, state.as_str());
    }
}

fn put_external_id(item: &mut Item, id: Option<&ExternalId>) {
    if let Some(id) = id {
        put_text(item, EXTERNAL_ID, id.as_str());
    }
}

fn put_labels(item: &mut Item, labels: &Labels) {
    if !labels.is_empty() {
        let labels = labels.iter();
        let labels = labels.map(|(key, value)| (key.to_owned(), Value::Text(value.to_owned())));
        item.insert(LABELS.to_owned(), Value::Map(labels.collect()));
    }
}

fn put_text(item: &mut Item, name: &str, text: &str) {
    item.insert(name.to_owned(), Value::Text(text.to_owned()));
}

fn put_number(item: &mut Item, name: &str, number: impl fmt::Display) {
    item.insert(name.to_owned(), Value::Number(number.to_string()));
}

fn put_uid(item: &mut Item, name: &str, uid: Option<&Uid>) {
    if let Some(uid) = uid {
        put_text(item, name, uid.as_str());
    }
}

fn put_stamp(item: &mut Item, stamp: &Stamp) {
    put_number(item, VERSION, stamp.version);
    if let Some(Timestamp(millis)) = stamp.create_time {
        put_number(item, CREATE_TIME, millis);
    }
    if let Some(Timestamp(millis)) = stamp.update_time {
        put_number(item, UPDATE_TIME, millis);
    }
}

pub(super) fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    match item.get(name) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

fn uid(item: &Item, name: &str) -> Option<Uid> {
    text(item, name).and_then(Uid::from_text)
}

fn external_id(item: &Item) -> Option<ExternalId> {
    text(item, EXTERNAL_ID).and_then(|id| ExternalId::parse(id).ok())
}

fn display_name(item: &Item) -> FreeText {
    FreeText::from_stored(text(item, DISPLAY_NAME).unwrap_or_default())
}

/// Labels of other types than text are ignored.
fn labels(item: &Item) -> Labels {
    let Some(Value::Map(labels)) = item.get(LABELS) else {
        return Labels::default();
    };
    Labels::from_stored(labels.iter().filter_map(|(key, value)| match value {
        Value::Text(value) => Some((key.as_str(), value.as_str())),
        _ => None,
    }))
}

/// An unknown state is a suspension, because its writer may have meant one.
fn state(item: &Item) -> State {
    let attribute = match deletion(item) {
        Some(_) => STATE_BEFORE,
        None => STATE,
    };
    match item.get(attribute) {
        None => State::Active,
        Some(Value::Text(state)) if state == State::Active.as_str() => State::Active,
        Some(_) => State::Suspended,
    }
}

/// The end of a record that another writer has put into the state of a deletion, without a time.
const NEVER_PURGED: Purge = Purge::At(Timestamp(i64::MAX));

/// The deletion that can be undone. Without a time of another writer's, it is not purged.
fn deletion(item: &Item) -> Option<SoftDeletion> {
    (text(item, STATE) == Some(SOFT_DELETED)).then(|| SoftDeletion {
        delete_time: Timestamp(number(item, DELETE_TIME).unwrap_or_default()),
        purge: match text(item, ERASURE).and_then(ErasureId::parse) {
            Some(erasure) => Purge::By(erasure),
            None => {
                number(item, PURGE_TIME).map_or(NEVER_PURGED, |time| Purge::At(Timestamp(time)))
            }
        },
    })
}

/// Whether the state of a user or an organization is one that this service writes.
pub(super) fn has_known_state(item: &Item) -> bool {
    match item.get(STATE) {
        None => true,
        Some(Value::Text(state)) => {
            [State::Active.as_str(), State::Suspended.as_str()].contains(&state.as_str())
                || deletion(item).is_some_and(|deletion| deletion.purge != NEVER_PURGED)
        }
        Some(_) => false,
    }
}

fn stamp(item: &Item) -> Stamp {
    let version = number(item, VERSION).unwrap_or_default();
    Stamp {
        version: u64::try_from(version).unwrap_or_default(),
        create_time: number(item, CREATE_TIME).map(Timestamp),
        update_time: number(item, UPDATE_TIME).map(Timestamp),
    }
}

/// The number of an attribute, rounded down, within `i64`. Numbers of other writers may have
/// fractions.
pub(super) fn number(item: &Item, name: &str) -> Option<i64> {
    let Some(Value::Number(number)) = item.get(name) else {
        return None;
    };
    number.parse().ok().or_else(|| {
        let number: f64 = number.parse().ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "saturates, like the conditions of writes"
        )]
        let whole = number.floor() as i64;
        Some(whole)
    })
}

#[cfg(test)]
mod tests;
