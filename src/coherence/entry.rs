//! The wire format of cache entries. An entry in any other form is ignored.

use prost::Message as _;
use uuid::Uuid;

use crate::{
    domain::{
        Email, FreeText, Key, Labels, Membership, Organization, Record, Role, Stamp, State,
        Timestamp, Uid, User,
    },
    proto::cache_v1 as wire,
};

/// Version of the format. A new field needs a new version: replicas of the former version would
/// fill entries without it.
const SCHEMA: u32 = 3;

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
                (wire::Tag::Present, read_time.0, Some(to_wire(record)))
            }
            Tag::Absent { read_time } => (wire::Tag::Absent, read_time.0, None),
            Tag::Lease => (wire::Tag::Lease, 0, None),
            Tag::Fence => (wire::Tag::Fence, 0, None),
        };
        let entry = wire::Entry {
            schema: SCHEMA,
            tag: tag.into(),
            nonce: self.nonce.0.to_vec(),
            key: cache_key.to_owned(),
            read_time_ms: read_time,
            item,
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
        let tag = match (wire::Tag::try_from(entry.tag).ok()?, entry.item) {
            (wire::Tag::Present, Some(item)) => Tag::Present {
                record: from_wire(item, key)?,
                read_time,
            },
            (wire::Tag::Absent, None) => Tag::Absent { read_time },
            (wire::Tag::Lease, None) => Tag::Lease,
            (wire::Tag::Fence, None) => Tag::Fence,
            _ => return None,
        };
        Some(Self { nonce, tag })
    }
}

fn to_wire(record: &Record) -> wire::entry::Item {
    match record {
        Record::User(user) => wire::entry::Item::User(wire::User {
            username: user.username.to_string(),
            first_name: user.first_name.to_string(),
            last_name: user.last_name.to_string(),
            uid: uid_to_wire(user.uid.as_ref()),
            stamp: Some(stamp_to_wire(&user.stamp)),
            display_name: user.display_name.to_string(),
            email: user
                .email
                .as_ref()
                .map_or_else(String::new, |email| email.as_str().to_owned()),
            labels: labels_to_wire(&user.labels),
            suspended: user.state == State::Suspended,
        }),
        Record::Organization(organization) => wire::entry::Item::Organization(wire::Organization {
            organization_name: organization.organization_name.to_string(),
            founding_user: organization.founding_user.clone(),
            uid: uid_to_wire(organization.uid.as_ref()),
            stamp: Some(stamp_to_wire(&organization.stamp)),
            display_name: organization.display_name.to_string(),
            labels: labels_to_wire(&organization.labels),
            suspended: organization.state == State::Suspended,
        }),
        Record::Membership(membership) => wire::entry::Item::Membership(wire::Membership {
            organization_name: membership.organization_name.to_string(),
            member_username: membership.member_username.to_string(),
            role: membership.role.map_or("", Role::as_str).to_owned(),
            adding_user: membership.adding_user.clone().unwrap_or_default(),
            organization_uid: uid_to_wire(membership.organization_uid.as_ref()),
            member_uid: uid_to_wire(membership.member_uid.as_ref()),
            stamp: Some(stamp_to_wire(&membership.stamp)),
        }),
    }
}

/// The record, if its names are those of `key`.
fn from_wire(item: wire::entry::Item, key: &Key) -> Option<Record> {
    match (item, key) {
        (wire::entry::Item::User(user), Key::User(username))
            if user.username == username.as_str() =>
        {
            Some(Record::User(User {
                username: username.clone(),
                first_name: FreeText::from_stored(&user.first_name),
                last_name: FreeText::from_stored(&user.last_name),
                display_name: FreeText::from_stored(&user.display_name),
                email: Email::parse_existing(&user.email).ok(),
                labels: labels_from_wire(&user.labels),
                state: state_from_wire(user.suspended),
                uid: Uid::from_text(&user.uid),
                stamp: stamp_from_wire(user.stamp),
            }))
        }
        (wire::entry::Item::Organization(organization), Key::Organization(name))
            if organization.organization_name == name.as_str() =>
        {
            Some(Record::Organization(Organization {
                organization_name: name.clone(),
                founding_user: organization.founding_user,
                display_name: FreeText::from_stored(&organization.display_name),
                labels: labels_from_wire(&organization.labels),
                state: state_from_wire(organization.suspended),
                uid: Uid::from_text(&organization.uid),
                stamp: stamp_from_wire(organization.stamp),
            }))
        }
        (wire::entry::Item::Membership(membership), Key::Membership(organization, member))
            if membership.organization_name == organization.as_str()
                && membership.member_username == member.as_str() =>
        {
            Some(Record::Membership(Membership {
                organization_name: organization.clone(),
                member_username: member.clone(),
                role: match membership.role.as_bytes() {
                    b"" => None,
                    role => Some(Role::from_bytes(role)?),
                },
                adding_user: Some(membership.adding_user).filter(|name| !name.is_empty()),
                organization_uid: Uid::from_text(&membership.organization_uid),
                member_uid: Uid::from_text(&membership.member_uid),
                stamp: stamp_from_wire(membership.stamp),
            }))
        }
        _ => None,
    }
}

fn uid_to_wire(uid: Option<&Uid>) -> String {
    uid.map(|uid| uid.as_str().to_owned()).unwrap_or_default()
}

fn labels_to_wire(labels: &Labels) -> Vec<wire::Label> {
    let labels = labels.iter().map(|(key, value)| wire::Label {
        key: key.to_owned(),
        value: value.to_owned(),
    });
    labels.collect()
}

fn labels_from_wire(labels: &[wire::Label]) -> Labels {
    let labels = labels.iter();
    Labels::from_stored(labels.map(|label| (label.key.as_str(), label.value.as_str())))
}

fn state_from_wire(is_suspended: bool) -> State {
    if is_suspended {
        State::Suspended
    } else {
        State::Active
    }
}

fn stamp_to_wire(stamp: &Stamp) -> wire::Stamp {
    let millis = |time: Option<Timestamp>| time.map_or(0, |Timestamp(millis)| millis);
    wire::Stamp {
        version: stamp.version,
        create_time_ms: millis(stamp.create_time),
        update_time_ms: millis(stamp.update_time),
    }
}

fn stamp_from_wire(stamp: Option<wire::Stamp>) -> Stamp {
    let time = |millis: i64| (millis != 0).then_some(Timestamp(millis));
    stamp.map_or_else(Stamp::default, |stamp| Stamp {
        version: stamp.version,
        create_time: time(stamp.create_time_ms),
        update_time: time(stamp.update_time_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{OrganizationName, Username};

    fn olivia() -> Record {
        Record::User(User {
            username: Username::parse_new("oliviaowner").unwrap(),
            first_name: FreeText::parse_new("Olivia").unwrap(),
            last_name: FreeText::parse_new("Smith").unwrap(),
            display_name: FreeText::parse_new("Olivia S.").unwrap(),
            email: Some(Email::parse_new("Olivia@example.com").unwrap()),
            labels: Labels::parse([("a", "b")].into_iter(), FreeText::parse_new).unwrap(),
            state: State::Suspended,
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
        assert_eq!(Entry::decode(&bytes, "k", &olivia_in_org().key()), None);
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
    /// readable for as long as `SCHEMA` is 3.
    #[test]
    fn the_stored_format_is_frozen() {
        let entry = Entry {
            nonce: Nonce([7; 16]),
            tag: Tag::Present {
                record: olivia(),
                read_time: Timestamp(7),
            },
        };
        let frozen = b"\x08\x03\x10\x01\x1a\x10\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
            \x07\x07\x07\x07\x07\"\x01k(\x072R\n\x0boliviaowner\x12\x06Olivia\x1a\x05Smith\
            \"\x03u-1*\x06\x08\x01\x10\x05\x18\x052\tOlivia S.:\x06\n\x01a\x12\x01b@\x01J\x12\
            Olivia@example.com";
        assert_eq!(entry.encode("k"), frozen);
        assert_eq!(Entry::decode(frozen, "k", &olivia().key()), Some(entry));
    }
}
