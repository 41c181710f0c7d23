//! The wire format of cache entries: records as items of the table. An entry in any other form is
//! ignored.

use std::collections::BTreeMap;

use prost::Message as _;
use uuid::Uuid;

use crate::{
    domain::{Key, Record, Timestamp},
    proto::cache_v1 as wire,
    store::item::{self, Item, Value},
};

/// Version of the format. A new attribute needs a new version: replicas of the former version would
/// fill entries without it.
const SCHEMA: u32 = 7;

/// 16 bytes, 122 bits of them random, that make every entry unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// Draws a new nonce.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().into_bytes())
    }

    /// A random byte of the nonce.
    #[must_use]
    pub fn jitter(self) -> u8 {
        self.0[0]
    }
}

/// The content of an entry.
#[expect(clippy::large_enum_variant, reason = "most entries are records")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tag {
    /// The table held this record when it was read.
    Present {
        /// The record.
        record: Record,
        /// When the table was read.
        read_time: Timestamp,
    },
    /// The table held no such record when it was read.
    Absent {
        /// When the table was read.
        read_time: Timestamp,
    },
    /// A reader is about to read the table and may replace exactly this entry.
    Lease,
    /// A writer is changing the record.
    Fence,
}

/// One cache entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its nonce.
    pub nonce: Nonce,
    /// Its content.
    pub tag: Tag,
}

impl Entry {
    /// An entry with a new nonce.
    #[must_use]
    pub fn new(tag: Tag) -> Self {
        Self {
            nonce: Nonce::random(),
            tag,
        }
    }

    /// The bytes to store under `cache_key`.
    #[must_use]
    pub fn encode(&self, cache_key: &str) -> Vec<u8> {
        let (tag, read_time, item) = match &self.tag {
            Tag::Present { record, read_time } => {
                (wire::Tag::Present, read_time.0, item::encode(record))
            }
            Tag::Absent { read_time } => (wire::Tag::Absent, read_time.0, Item::new()),
            Tag::Lease => (wire::Tag::Lease, 0, Item::new()),
            Tag::Fence => (wire::Tag::Fence, 0, Item::new()),
        };
        let entry = wire::Entry {
            schema: SCHEMA,
            tag: tag.into(),
            nonce: self.nonce.0.to_vec(),
            key: cache_key.to_owned(),
            read_time_ms: read_time,
            item: to_wire(item),
        };
        entry.encode_to_vec()
    }

    /// Decodes the entry of `key` that was stored under `cache_key`. `None` if the bytes are not an
    /// entry of this format for this key.
    #[must_use]
    pub fn decode(bytes: &[u8], cache_key: &str, key: &Key) -> Option<Self> {
        let entry = wire::Entry::decode(bytes).ok()?;
        if entry.schema != SCHEMA || entry.key != cache_key {
            return None;
        }
        let nonce = Nonce(entry.nonce.as_slice().try_into().ok()?);
        let read_time = Timestamp(entry.read_time_ms);
        let tag = match wire::Tag::try_from(entry.tag).ok()? {
            wire::Tag::Present => Tag::Present {
                record: item::decode(key, &from_wire(entry.item)?)?,
                read_time,
            },
            wire::Tag::Absent => Tag::Absent { read_time },
            wire::Tag::Lease => Tag::Lease,
            wire::Tag::Fence => Tag::Fence,
            wire::Tag::Unspecified => return None,
        };
        Some(Self { nonce, tag })
    }
}

fn to_wire(item: Item) -> BTreeMap<String, wire::Value> {
    let attributes = item.into_iter();
    attributes
        .map(|(name, value)| (name, value_to_wire(value)))
        .collect()
}

fn value_to_wire(value: Value) -> wire::Value {
    let value = match value {
        Value::Text(text) => wire::value::Value::Text(text),
        Value::Number(number) => wire::value::Value::Number(number),
        Value::List(values) => wire::value::Value::List(wire::value::List {
            values: values.into_iter().map(value_to_wire).collect(),
        }),
        Value::Map(values) => wire::value::Value::Map(wire::value::Map {
            values: to_wire(values),
        }),
    };
    wire::Value { value: Some(value) }
}

fn from_wire(item: BTreeMap<String, wire::Value>) -> Option<Item> {
    let attributes = item.into_iter();
    attributes
        .map(|(name, value)| Some((name, value_from_wire(value)?)))
        .collect()
}

fn value_from_wire(value: wire::Value) -> Option<Value> {
    Some(match value.value? {
        wire::value::Value::Text(text) => Value::Text(text),
        wire::value::Value::Number(number) => Value::Number(number),
        wire::value::Value::List(list) => {
            let values = list.values.into_iter().map(value_from_wire);
            Value::List(values.collect::<Option<_>>()?)
        }
        wire::value::Value::Map(map) => Value::Map(from_wire(map.values)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        Email, ExpireTime, FreeText, Labels, Membership, OrganizationName, Role, Stamp, State, Uid,
        User, Username,
    };

    fn olivia() -> Record {
        Record::User(User {
            username: Username::parse_new("oliviaowner").unwrap(),
            first_name: FreeText::parse_new("Olivia").unwrap(),
            last_name: FreeText::parse_new("Smith").unwrap(),
            display_name: FreeText::parse_new("Olivia S.").unwrap(),
            email: Some(Email::parse_new("Olivia@example.com").unwrap()),
            external_id: None,
            labels: Labels::parse([("a", "b")].into_iter(), FreeText::parse_new).unwrap(),
            state: State::Suspended,
            deletion: None,
            uid: Uid::from_text("u-1"),
            stamp: Stamp::created(Timestamp(5)),
        })
    }

    fn olivia_in_org() -> Record {
        Record::Membership(Membership {
            organization_name: OrganizationName::parse_new("olivia-org").unwrap(),
            member_username: Username::parse_new("oliviaowner").unwrap(),
            role: Some(Role::Owner),
            adding_user: None,
            organization_uid: None,
            member_uid: Uid::from_text("u-1"),
            expire_time: Some(ExpireTime(1_800_000_000)),
            labels: Labels::default(),
            stamp: Stamp::default(),
        })
    }

    fn present(record: Record) -> Entry {
        Entry::new(Tag::Present {
            record,
            read_time: Timestamp(7),
        })
    }

    #[test]
    fn an_encoded_entry_is_decoded() {
        let Record::Membership(with_role) = olivia_in_org() else {
            panic!("a membership")
        };
        let without_role = Record::Membership(Membership {
            role: None,
            ..with_role
        });
        for record in [olivia(), olivia_in_org(), without_role] {
            let key = record.key();
            let read_time = Timestamp(7);
            for entry in [
                present(record),
                Entry::new(Tag::Absent { read_time }),
                Entry::new(Tag::Lease),
                Entry::new(Tag::Fence),
            ] {
                let bytes = entry.encode("k");
                assert_eq!(Entry::decode(&bytes, "k", &key), Some(entry));
            }
        }
    }

    #[test]
    fn entries_of_other_keys_and_formats_are_ignored() {
        let key = olivia().key();
        let bytes = present(olivia()).encode("k");
        assert_eq!(Entry::decode(&bytes, "other", &key), None);
        assert_eq!(Entry::decode(&bytes[..bytes.len() - 1], "k", &key), None);
        assert_eq!(Entry::decode(b"", "k", &key), None);
        assert_eq!(Entry::decode(b"garbage", "k", &key), None);

        let mut other_schema = wire::Entry::decode(bytes.as_slice()).unwrap();
        other_schema.schema = SCHEMA + 1;
        assert_eq!(
            Entry::decode(&other_schema.encode_to_vec(), "k", &key),
            None
        );
    }

    #[test]
    fn every_entry_is_unique() {
        let bytes: std::collections::HashSet<_> = (0..100)
            .map(|_| Entry::new(Tag::Fence).encode("k"))
            .collect();
        assert_eq!(bytes.len(), 100);
    }

    /// Replicas of different versions share a cache: this entry must stay
    /// readable for as long as `SCHEMA` is 7.
    #[test]
    fn the_stored_format_is_frozen() {
        let entry = Entry {
            nonce: Nonce([7; 16]),
            tag: Tag::Present {
                record: olivia(),
                read_time: Timestamp(7),
            },
        };
        let frozen =
            b"\x08\x07\x10\x01\x1a\x10\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
            \x07\x07\x07\"\x01k(\x07J\x11\n\ncreateTime\x12\x03\x12\x015J\x1a\n\x0bdispl\
            ayName\x12\x0b\n\x09Olivia S.J\x1d\n\x05email\x12\x14\n\x12Olivia@example.co\
            mJ\x15\n\x09firstName\x12\x08\n\x06OliviaJ\x16\n\x06labels\x12\x0c\"\n\n\x08\
            \n\x01a\x12\x03\n\x01bJ\x13\n\x08lastName\x12\x07\n\x05SmithJ\x14\n\x05state\
            \x12\x0b\n\x09SUSPENDEDJ\x0c\n\x03uid\x12\x05\n\x03u-1J\x11\n\nupdateTime\
            \x12\x03\x12\x015J\x19\n\x08username\x12\x0d\n\x0boliviaownerJ\n\n\x03ver\
            \x12\x03\x12\x011";
        assert_eq!(entry.encode("k"), frozen);
        assert_eq!(Entry::decode(frozen, "k", &olivia().key()), Some(entry));
    }
}
