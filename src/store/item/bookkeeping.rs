//! Items beside the records: the origin of a change, requests, deletions and the change log.

use super::{
    ADDING_USER, AFTER, BEFORE, CALLED_BY, CHANGED_BY, CREATE_TIME, CREATED, DELETED, EXPIRE_TIME,
    EXPIRED, FINGERPRINT, FOUNDING_USER, Item, KIND, MAX_LOGGED_IMAGE, OUTCOME, RECORD_PK,
    RECORD_SK, REQUEST_ID, UID, UPDATE_TIME, UPDATED, USERNAME, Value, WRITE_ID, decode, encode,
    number, put_expiry, put_number, put_text, put_uid, stamp, text, uid,
};
use crate::{
    domain::{
        Actor, ChangeKind, Digest, ErasedUser, Erasure, ErasureId, ErasurePhase, Made, Origin,
        Orphans, Record, RecordChange, Request, RequestId, ServiceName, Timestamp, Username,
    },
    store::{Deletion, StoredOutcome, keys},
};

/// The attributes of an erasure.
const PHASE: &str = "phase";
const EXAMINED: &str = "examined";
const CHANGED: &str = "changed";

/// The optional attributes of [`encode_origin`].
pub(in crate::store) const OPTIONAL_ORIGIN: [&str; 3] = [CHANGED_BY, CALLED_BY, REQUEST_ID];

/// The attributes of the change that wrote an item. The platform has no attribute.
pub(in crate::store) fn encode_origin(origin: &Origin, write_id: &str) -> Item {
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
pub(in crate::store) fn encode_request(
    request: &Request,
    outcome: &[Record],
    expires: Timestamp,
) -> Item {
    let mut item = Item::new();
    put_text(&mut item, FINGERPRINT, request.fingerprint.as_str());
    item.extend([encode_outcome(outcome)]);
    put_expiry(&mut item, expires);
    item
}

/// The attribute of a request's item with the records of its outcome.
pub(in crate::store) fn encode_outcome(outcome: &[Record]) -> (String, Value) {
    let outcome = outcome.iter().map(|record| {
        let mut image = encode(record);
        let (pk, sk) = keys::of(&record.key());
        put_text(&mut image, keys::PARTITION_KEY, &pk);
        put_text(&mut image, keys::SORT_KEY, &sk);
        Value::Map(image)
    });
    (OUTCOME.to_owned(), Value::List(outcome.collect()))
}

/// The outcome in the item of a request. `None` if the item is not of a request.
pub(in crate::store) fn decode_request(item: &Item) -> Option<StoredOutcome> {
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
    Some(StoredOutcome {
        fingerprint: Digest::from_text(text(item, FINGERPRINT)?.to_owned()),
        outcome: outcome.collect::<Option<_>>()?,
    })
}

/// The item of the deletion of a version of a record.
pub(in crate::store) fn encode_deletion(now: Timestamp, expires: Timestamp) -> Item {
    let mut item = Item::new();
    put_number(&mut item, UPDATE_TIME, now.0);
    put_expiry(&mut item, expires);
    item
}

/// The item of a clean-up task.
pub(in crate::store) fn encode_orphans(orphans: &Orphans) -> Item {
    let mut item = Item::new();
    put_uid(&mut item, UID, orphans.uid.as_ref());
    put_number(&mut item, UPDATE_TIME, orphans.time.0);
    item
}

/// The clean-up task of an item and its sort key.
pub(in crate::store) fn decode_orphans(sk: &str, item: &Item) -> Option<Orphans> {
    let (gone, uid_in_key) = keys::gone(sk)?;
    let time = stamp(item).update_time?;
    let uid = uid(item, UID).or(uid_in_key);
    Some(Orphans { gone, uid, time })
}

/// The item of an erasure.
pub(in crate::store) fn encode_erasure(erasure: &Erasure) -> Item {
    let mut item = Item::new();
    if let Some(ErasedUser { username, uid }) = &erasure.user {
        put_text(&mut item, USERNAME, username.as_str());
        put_uid(&mut item, UID, uid.as_ref());
    }
    let mut phases = ErasurePhase::NAMES.iter();
    if let Some((_, name)) = phases.find(|(phase, _)| *phase == erasure.phase) {
        put_text(&mut item, PHASE, name);
    }
    put_number(&mut item, CREATE_TIME, erasure.create_time.0);
    put_number(&mut item, UPDATE_TIME, erasure.phase_time.0);
    put_number(&mut item, EXAMINED, erasure.examined);
    put_number(&mut item, CHANGED, erasure.changed);
    item
}

/// The erasure in an item of [`encode_erasure`].
pub(in crate::store) fn decode_erasure(id: ErasureId, item: &Item) -> Option<Erasure> {
    let count = |name| u64::try_from(number(item, name)?).ok();
    let phase = text(item, PHASE)?;
    let mut phases = ErasurePhase::NAMES.iter();
    let (phase, _) = phases.find(|(_, name)| *name == phase)?;
    let username = text(item, USERNAME).and_then(|name| Username::parse_existing(name).ok());
    let stamp = stamp(item);
    Some(Erasure {
        id,
        user: username.map(|username| ErasedUser {
            username,
            uid: uid(item, UID),
        }),
        create_time: stamp.create_time?,
        phase: *phase,
        phase_time: stamp.update_time?,
        examined: count(EXAMINED)?,
        changed: count(CHANGED)?,
    })
}

/// Whether the item of a record names a user other than by its key.
pub(in crate::store) fn mentions(item: &Item, username: &Username) -> bool {
    let attributes = [FOUNDING_USER, ADDING_USER, CHANGED_BY];
    let mut named = attributes.iter().filter_map(|name| text(item, name));
    named.any(|name| name == username.as_str())
}

/// The time of this service's last write of an item.
pub(in crate::store) fn decode_update_time(item: &Item) -> Option<Timestamp> {
    stamp(item).update_time
}

/// The deletion in an item of [`encode_deletion`].
pub(in crate::store) fn decode_deletion(item: &Item) -> Option<Deletion> {
    Some(Deletion {
        time: stamp(item).update_time,
        made: decode_made(item)?,
    })
}

/// The change of this service that wrote an item. `None` if another writer did.
pub(in crate::store) fn decode_made(item: &Item) -> Option<Made> {
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
pub(in crate::store) fn encode_logged(change: &RecordChange, expires: Timestamp) -> Item {
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
        ChangeKind::Deleted | ChangeKind::Expired => DELETED,
    };
    put_text(&mut item, KIND, kind);
    if change.kind == ChangeKind::Expired {
        put_text(&mut item, EXPIRED, "true");
    }
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
pub(in crate::store) fn decode_logged(item: &Item, now: Timestamp) -> Option<RecordChange> {
    let expires = number(item, EXPIRE_TIME)?;
    let key = keys::key_of_item(text(item, RECORD_PK)?, text(item, RECORD_SK)?)?;
    let kind = match text(item, KIND)? {
        CREATED => ChangeKind::Created,
        UPDATED => ChangeKind::Updated,
        DELETED if text(item, EXPIRED).is_some() => ChangeKind::Expired,
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
