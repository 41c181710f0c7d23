//! Records as items: attribute names and types, free of any SDK. Items of other writers
//! are valid, too.

use std::{collections::HashMap, fmt};

use super::{Deletion, Remembered, StoredClaim, keys};
use crate::domain::{
    Actor, ChangeKind, Digest, Email, EmailClaim, FreeText, Key, Labels, Made, Membership,
    Organization, Origin, Orphans, Record, RecordChange, Request, RequestId, Role, ServiceName,
    Stamp, State, Timestamp, Uid, User, Username,
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
const EMAIL: &str = "email";
const CHANGED_BY: &str = "changedBy";
const CALLED_BY: &str = "calledBy";
const REQUEST_ID: &str = "requestId";
const FINGERPRINT: &str = "fingerprint";
const OUTCOME: &str = "outcome";
const RECORD_PK: &str = "recordPK";
const RECORD_SK: &str = "recordSK";
const KIND: &str = "kind";
const CREATED: &str = "CREATED";
const UPDATED: &str = "UPDATED";
const DELETED: &str = "DELETED";
const BEFORE: &str = "before";
const AFTER: &str = "after";
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

/// An attribute's value: the types that records use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Number(String),
    List(Vec<Value>),
    Map(HashMap<String, Value>),
}

/// An item's attributes, without its keys.
pub(super) type Item = HashMap<String, Value>;

/// The item of a record.
pub(super) fn encode(record: &Record) -> Item {
    let mut item = Item::new();
    match record {
        Record::User(user) => {
            put_text(&mut item, USERNAME, user.username.as_str());
            put_text(&mut item, FIRST_NAME, user.first_name.as_str());
            put_text(&mut item, LAST_NAME, user.last_name.as_str());
            put_profile(&mut item, &user.display_name, &user.labels, user.state);
            if let Some(email) = &user.email {
                put_text(&mut item, EMAIL, email.as_str());
            }
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
                ..
            } = organization;
            put_profile(&mut item, display_name, labels, *state);
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
            put_stamp(&mut item, &membership.stamp);
        }
    }
    item
}

/// The record of an item under `key`. `None` for a tombstone. The key, not the attributes,
/// names the record. Items of other writers are served: an attribute of another type counts
/// as missing, an unknown role grants nothing, and an unknown state is a suspension.
pub(super) fn decode(key: &Key, item: &Item) -> Option<Record> {
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
            labels: labels(item),
            state: state(item),
            uid: uid(item, UID),
            stamp,
        }),
        Key::Organization(organization_name) => Record::Organization(Organization {
            organization_name: organization_name.clone(),
            founding_user: text(item, FOUNDING_USER).unwrap_or_default().to_owned(),
            display_name: display_name(item),
            labels: labels(item),
            state: state(item),
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

/// The item of an e-mail claim.
pub(super) fn encode_claim(claim: &EmailClaim) -> Item {
    let mut item = Item::new();
    put_text(&mut item, USERNAME, claim.username.as_str());
    put_uid(&mut item, UID, claim.uid.as_ref());
    item
}

/// The e-mail claim of an item. `None` if the item is not a claim.
pub(super) fn decode_claim(item: &Item) -> Option<StoredClaim> {
    Some(StoredClaim {
        claim: EmailClaim {
            username: Username::parse_existing(text(item, USERNAME)?).ok()?,
            uid: uid(item, UID),
        },
        change_id: text(item, WRITE_ID).map(str::to_owned),
    })
}

/// The attributes to set and to remove, to turn the item of one record into that of
/// another.
pub(super) fn difference(before: &Record, after: &Record) -> (Item, Vec<String>) {
    let (before, mut set) = (encode(before), encode(after));
    let gone = before.keys().filter(|name| !set.contains_key(*name));
    let gone = gone.cloned().collect();
    set.retain(|name, value| before.get(name) != Some(value));
    (set, gone)
}

/// The optional attributes of [`encode_origin`].
pub(super) const OPTIONAL_ORIGIN: [&str; 3] = [CHANGED_BY, CALLED_BY, REQUEST_ID];

/// The attributes of the change that wrote an item. The platform has no attribute.
pub(super) fn encode_origin(origin: &Origin, write_id: &str) -> Item {
    let mut item = Item::new();
    put_text(&mut item, WRITE_ID, write_id);
    if let Actor::User(username) = &origin.actor {
        put_text(&mut item, CHANGED_BY, username.as_str());
    }
    if let Some(caller) = &origin.caller {
        // With the id of the write, because other writers leave an unknown attribute unchanged.
        let called_by = format!("{write_id} {}", caller.as_str());
        put_text(&mut item, CALLED_BY, &called_by);
    }
    if let Some(request_id) = &origin.request_id {
        put_text(&mut item, REQUEST_ID, request_id.as_str());
    }
    item
}

/// The item of a request's outcome.
pub(super) fn encode_request(request: &Request, outcome: &[Record], expires: Timestamp) -> Item {
    let mut item = Item::new();
    put_text(&mut item, FINGERPRINT, request.fingerprint.as_str());
    let outcome = outcome.iter().map(|record| {
        let mut image = encode(record);
        let (pk, sk) = keys::of(&record.key());
        put_text(&mut image, keys::PARTITION_KEY, &pk);
        put_text(&mut image, keys::SORT_KEY, &sk);
        Value::Map(image)
    });
    item.insert(OUTCOME.to_owned(), Value::List(outcome.collect()));
    put_expiry(&mut item, expires);
    item
}

/// The outcome in the item of a request. `None` if the item is not of a request.
pub(super) fn decode_request(item: &Item) -> Option<Remembered> {
    let Some(Value::List(outcome)) = item.get(OUTCOME) else {
        return None;
    };
    let outcome = outcome.iter().map(|image| {
        let Value::Map(image) = image else {
            return None;
        };
        let [pk, sk] = [keys::PARTITION_KEY, keys::SORT_KEY].map(|name| text(image, name));
        decode(&keys::key_of_item(pk?, sk?)?, image)
    });
    Some(Remembered {
        fingerprint: Digest::from_text(text(item, FINGERPRINT)?.to_owned()),
        outcome: outcome.collect::<Option<_>>()?,
    })
}

/// The item of the deletion of a version of a record.
pub(super) fn encode_deletion(now: Timestamp, expires: Timestamp) -> Item {
    let mut item = Item::new();
    put_number(&mut item, UPDATE_TIME, now.0);
    put_expiry(&mut item, expires);
    item
}

/// The item of a clean-up task.
pub(super) fn encode_orphans(orphans: &Orphans) -> Item {
    let mut item = Item::new();
    put_uid(&mut item, UID, orphans.uid.as_ref());
    put_number(&mut item, UPDATE_TIME, orphans.time.0);
    item
}

/// The clean-up task of an item and its sort key.
pub(super) fn decode_orphans(sk: &str, item: &Item) -> Option<Orphans> {
    let (gone, uid_in_key) = keys::gone(sk)?;
    let time = stamp(item).update_time?;
    let uid = uid(item, UID).or(uid_in_key);
    Some(Orphans { gone, uid, time })
}

/// The time of this service's last write of an item.
pub(super) fn decode_update_time(item: &Item) -> Option<Timestamp> {
    stamp(item).update_time
}

/// The deletion in an item of [`encode_deletion`].
pub(super) fn decode_deletion(item: &Item) -> Option<Deletion> {
    Some(Deletion {
        time: stamp(item).update_time,
        made: decode_made(item)?,
    })
}

/// The change of this service that wrote an item. `None` if another writer did.
pub(super) fn decode_made(item: &Item) -> Option<Made> {
    let actor = text(item, CHANGED_BY).map_or(Some(Actor::Platform), |name| {
        Username::parse_existing(name).ok().map(Actor::User)
    });
    let change_id = text(item, WRITE_ID)?;
    let called_by = text(item, CALLED_BY).and_then(|text| text.split_once(' '));
    let called_by = called_by.filter(|(of_change, _)| *of_change == change_id);
    Some(Made {
        change_id: change_id.to_owned(),
        origin: Origin {
            actor: actor?,
            caller: called_by.map(|(_, name)| ServiceName::new(name)),
            request_id: text(item, REQUEST_ID).and_then(|id| RequestId::parse(id).ok()),
        },
    })
}

/// The item of a change in the log. Images over [`MAX_LOGGED_IMAGE`] are omitted.
pub(super) fn encode_logged(change: &RecordChange, expires: Timestamp) -> Item {
    let mut item = Item::new();
    if let Some(made) = &change.made {
        item.extend(encode_origin(&made.origin, &made.change_id));
    }
    let (pk, sk) = keys::of(&change.key);
    put_text(&mut item, RECORD_PK, &pk);
    put_text(&mut item, RECORD_SK, &sk);
    let kind = match change.kind {
        ChangeKind::Created => CREATED,
        ChangeKind::Updated => UPDATED,
        ChangeKind::Deleted => DELETED,
    };
    put_text(&mut item, KIND, kind);
    if let Some(Timestamp(millis)) = change.time {
        put_number(&mut item, UPDATE_TIME, millis);
    }
    for (name, image) in [(BEFORE, &change.before), (AFTER, &change.after)] {
        let image = image.as_ref().map(encode);
        if let Some(image) = image.filter(|image| size(image) <= MAX_LOGGED_IMAGE) {
            item.insert(name.to_owned(), Value::Map(image));
        }
    }
    put_expiry(&mut item, expires);
    item
}

/// The change in an item of the log, if it has not expired.
pub(super) fn decode_logged(item: &Item, now: Timestamp) -> Option<RecordChange> {
    let expires = number(item, EXPIRE_TIME)?;
    let key = keys::key_of_item(text(item, RECORD_PK)?, text(item, RECORD_SK)?)?;
    let kind = match text(item, KIND)? {
        CREATED => ChangeKind::Created,
        UPDATED => ChangeKind::Updated,
        DELETED => ChangeKind::Deleted,
        _ => return None,
    };
    let image = |name| match item.get(name) {
        Some(Value::Map(image)) => decode(&key, image),
        _ => None,
    };
    let change = RecordChange {
        kind,
        before: image(BEFORE),
        after: image(AFTER),
        time: stamp(item).update_time,
        made: decode_made(item),
        key,
    };
    (expires > now.0.div_euclid(1000)).then_some(change)
}

/// Bytes of all texts: about the size of the item.
fn size(item: &Item) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::Text(text) | Value::Number(text) => text.len(),
            Value::List(list) => list.iter().map(of).sum(),
            Value::Map(map) => size(map),
        }
    }
    let item = item.iter();
    item.map(|(name, value)| name.len() + of(value)).sum()
}

/// DynamoDB deletes the item some time after this.
pub(super) fn put_expiry(item: &mut Item, expires: Timestamp) {
    put_number(item, EXPIRE_TIME, expires.0.div_euclid(1000));
}

/// Empty and default values have no attributes, as in the tutorial's items.
fn put_profile(item: &mut Item, display_name: &FreeText, labels: &Labels, state: State) {
    if !display_name.as_str().is_empty() {
        put_text(item, DISPLAY_NAME, display_name.as_str());
    }
    if !labels.is_empty() {
        let labels = labels.iter();
        let labels = labels.map(|(key, value)| (key.to_owned(), Value::Text(value.to_owned())));
        item.insert(LABELS.to_owned(), Value::Map(labels.collect()));
    }
    if state != State::Active {
        put_text(item, STATE, state.as_str());
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
    match item.get(STATE) {
        None => State::Active,
        Some(Value::Text(state)) if state == State::Active.as_str() => State::Active,
        Some(_) => State::Suspended,
    }
}

/// Whether the state of a user or an organization is one that this service writes.
pub(super) fn has_known_state(item: &Item) -> bool {
    match item.get(STATE) {
        None => true,
        Some(Value::Text(state)) => [State::Active, State::Suspended]
            .map(State::as_str)
            .contains(&state.as_str()),
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
fn number(item: &Item, name: &str) -> Option<i64> {
    let Some(Value::Number(number)) = item.get(name) else {
        return None;
    };
    number.parse().ok().or_else(|| {
        let number: f64 = number.parse().ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "saturates, and the conditions of writes do, too"
        )]
        let whole = number.floor() as i64;
        Some(whole)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{OrganizationName, Username};

    fn membership_key() -> Key {
        Key::Membership(
            OrganizationName::parse_new("olivia-org").unwrap(),
            Username::parse_new("membermichael").unwrap(),
        )
    }

    #[test]
    fn an_item_of_the_tutorial_is_a_record() {
        let mut item = Item::new();
        put_text(&mut item, ORGANIZATION_NAME, "olivia-org");
        put_text(&mut item, MEMBER_USERNAME, "membermichael");
        put_text(&mut item, ROLE, "Admin");
        let record = decode(&membership_key(), &item).unwrap();
        let membership = record.into_membership().unwrap();
        assert_eq!(membership.role, Some(Role::Admin));
        assert_eq!(membership.member_uid, None);
        assert_eq!(membership.stamp, Stamp::default());
    }

    #[test]
    fn an_encoded_membership_is_decoded() {
        let record = Record::Membership(Membership {
            organization_name: OrganizationName::parse_new("olivia-org").unwrap(),
            member_username: Username::parse_new("membermichael").unwrap(),
            role: Some(Role::Owner),
            adding_user: Some("oliviaowner".to_owned()),
            organization_uid: Uid::from_text("o"),
            member_uid: Uid::from_text("m"),
            stamp: Stamp::created(Timestamp(1)).changed(Timestamp(2)),
        });
        assert_eq!(
            decode(&record.key(), &encode(&record)).unwrap(),
            record.clone()
        );
    }

    #[test]
    fn a_user_with_all_attributes_is_decoded() {
        let labels = [("team", "accounts"), ("tier", "")];
        let record = Record::User(User {
            username: Username::parse_new("oliviaowner").unwrap(),
            first_name: FreeText::parse_new("Olivia").unwrap(),
            last_name: FreeText::default(),
            display_name: FreeText::parse_new("Olivia #1").unwrap(),
            email: Some(Email::parse_new("Olivia@example.com").unwrap()),
            labels: Labels::parse(labels.into_iter(), FreeText::parse_new).unwrap(),
            state: State::Suspended,
            uid: Uid::from_text("u"),
            stamp: Stamp::created(Timestamp(1)),
        });
        assert_eq!(decode(&record.key(), &encode(&record)), Some(record));
    }

    #[test]
    fn attributes_of_other_types_count_as_missing_and_an_unknown_state_as_a_suspension() {
        let key = Key::User(Username::parse_new("oliviaowner").unwrap());
        let odd = Value::Map(Item::new());
        let mut item = Item::new();
        for name in [VERSION, CREATE_TIME, UPDATE_TIME, UID, FIRST_NAME, LABELS] {
            item.insert(name.to_owned(), odd.clone());
        }
        let user = decode(&key, &item).and_then(Record::into_user).unwrap();
        assert_eq!((user.stamp, user.uid), (Stamp::default(), None));
        assert_eq!(user.state, State::Active);
        for state in [Value::Text("BANNED".to_owned()), odd] {
            item.insert(STATE.to_owned(), state);
            let user = decode(&key, &item).and_then(Record::into_user).unwrap();
            assert_eq!(user.state, State::Suspended);
        }
    }

    #[test]
    fn a_membership_without_a_known_role_has_none() {
        let mut item = Item::new();
        for role in [None, Some("Emperor"), Some("owner"), Some("")] {
            if let Some(role) = role {
                put_text(&mut item, ROLE, role);
            }
            let membership = decode(&membership_key(), &item);
            let membership = membership.and_then(Record::into_membership).unwrap();
            assert_eq!(membership.role, None);
            assert_eq!(encode(&Record::Membership(membership)).get(ROLE), None);
        }
    }

    #[test]
    fn attributes_with_default_values_are_left_out() {
        let item = encode(&Record::User(User {
            username: Username::parse_new("oliviaowner").unwrap(),
            first_name: FreeText::default(),
            last_name: FreeText::default(),
            display_name: FreeText::default(),
            email: None,
            labels: Labels::default(),
            state: State::Active,
            uid: None,
            stamp: Stamp::default(),
        }));
        for name in [DISPLAY_NAME, EMAIL, LABELS, STATE] {
            assert_eq!(item.get(name), None, "{name}");
        }
    }
}
