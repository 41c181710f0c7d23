//! What a check needs of a cache entry, read without allocating: the hottest code
//! there is. [`super::Entry::decode`] says what entries are.

use super::{envelope::SCHEMA, generation::Space};
use crate::{
    domain::{Bond, Gist, Incarnation, Key, State, Timestamp, Uid},
    proto::cache_v1 as wire,
};

/// Fields of `account.cache.v1.Entry`.
const ENTRY_SCHEMA: u32 = 1;
const ENTRY_TAG: u32 = 2;
const ENTRY_KEY: u32 = 4;
const ENTRY_READ_TIME: u32 = 5;
const ENTRY_USER: u32 = 6;
const ENTRY_ORGANIZATION: u32 = 7;
const ENTRY_MEMBERSHIP: u32 = 8;
/// Fields of `account.cache.v1.User`.
const USER_UID: u32 = 4;
const USER_SUSPENDED: u32 = 8;
/// Fields of `account.cache.v1.Organization`.
const ORGANIZATION_UID: u32 = 3;
const ORGANIZATION_SUSPENDED: u32 = 7;
/// Fields of `account.cache.v1.Membership`.
const MEMBERSHIP_ROLE: u32 = 3;
const MEMBERSHIP_ORGANIZATION_UID: u32 = 5;
const MEMBERSHIP_MEMBER_UID: u32 = 6;

/// What the table held when it was read, and when that was. `None` for leases,
/// fences, and bytes that are no entry of this format for this very key.
pub(super) fn glance(bytes: &[u8], space: &Space, key: &Key) -> Option<(Option<Gist>, Timestamp)> {
    let (mut schema, mut tag, mut read_time, mut is_of_key) = (0, 0, 0, false);
    let mut item = None;
    for field in Fields(bytes) {
        match field? {
            (ENTRY_SCHEMA, Value::Number(number)) => schema = number,
            (ENTRY_TAG, Value::Number(number)) => tag = number,
            (ENTRY_READ_TIME, Value::Number(number)) => read_time = number,
            (ENTRY_KEY, Value::Bytes(found)) => is_of_key = space.is_key(found, key),
            (kind @ ENTRY_USER..=ENTRY_MEMBERSHIP, Value::Bytes(bytes)) if item.is_none() => {
                item = Some((kind, bytes));
            }
            (ENTRY_USER..=ENTRY_MEMBERSHIP, Value::Bytes(_)) => return None,
            _ => {}
        }
    }
    if schema != u64::from(SCHEMA) || !is_of_key {
        return None;
    }
    let gist = match (wire::Tag::try_from(i32::try_from(tag).ok()?).ok()?, item) {
        (wire::Tag::Present, Some((kind, bytes))) => Some(gist(kind, bytes, key)?),
        (wire::Tag::Absent, None) => None,
        _ => return None,
    };
    Some((gist, Timestamp(read_time.cast_signed())))
}

fn gist(kind: u32, bytes: &[u8], key: &Key) -> Option<Gist> {
    match (kind, key) {
        (ENTRY_USER, Key::User(_)) => incarnation(bytes, USER_UID, USER_SUSPENDED).map(Gist::User),
        (ENTRY_ORGANIZATION, Key::Organization(_)) => {
            let found = incarnation(bytes, ORGANIZATION_UID, ORGANIZATION_SUSPENDED);
            found.map(Gist::Organization)
        }
        (ENTRY_MEMBERSHIP, Key::Membership(..)) => bond(bytes).map(Gist::Membership),
        _ => None,
    }
}

fn incarnation(bytes: &[u8], uid_field: u32, suspended_field: u32) -> Option<Incarnation> {
    let mut found = Incarnation {
        uid: None,
        state: State::Active,
    };
    for field in Fields(bytes) {
        match field? {
            (field, Value::Bytes(text)) if field == uid_field => {
                found.uid = Uid::from_utf8(text).ok()?;
            }
            (field, Value::Number(0)) if field == suspended_field => found.state = State::Active,
            (field, Value::Number(_)) if field == suspended_field => found.state = State::Suspended,
            _ => {}
        }
    }
    Some(found)
}

fn bond(bytes: &[u8]) -> Option<Bond> {
    let (mut role, mut organization_uid, mut member_uid) = (None, None, None);
    for field in Fields(bytes) {
        match field? {
            (MEMBERSHIP_ROLE, Value::Bytes(text)) => {
                role = Some(str::from_utf8(text).ok()?.parse().ok()?);
            }
            (MEMBERSHIP_ORGANIZATION_UID, Value::Bytes(text)) => {
                organization_uid = Uid::from_utf8(text).ok()?;
            }
            (MEMBERSHIP_MEMBER_UID, Value::Bytes(text)) => {
                member_uid = Uid::from_utf8(text).ok()?;
            }
            _ => {}
        }
    }
    Some(Bond {
        role: role?,
        organization_uid,
        member_uid,
    })
}

/// The fields of a message in the protobuf encoding; the last one is `None` if it
/// is malformed.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a kind that entries do not have.
    Other,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, Value<'a>)>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    #[inline]
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        // As nearly all are: bytes or a number, their field's number in a byte, and
        // so the length or the number itself.
        if let [head, second, rest @ ..] = self.0
            && second & 0x80 == 0
        {
            let field = u32::from(head >> 3);
            if head & 0x87 == 0 {
                self.0 = rest;
                return Some((field, Value::Number(u64::from(*second))));
            }
            if head & 0x87 == 2
                && let Some((bytes, rest)) = rest.split_at_checked(usize::from(*second))
            {
                self.0 = rest;
                return Some((field, Value::Bytes(bytes)));
            }
        }
        self.any_field()
    }

    fn any_field(&mut self) -> Option<(u32, Value<'a>)> {
        let head = self.varint()?;
        let value = match head & 7 {
            0 => Value::Number(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            1 => self.take(8).map(|_| Value::Other)?,
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return None,
        };
        Some((u32::try_from(head >> 3).ok()?, value))
    }

    #[inline]
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let (byte, rest) = self.0.split_first()?;
        if byte & 0x80 == 0 {
            self.0 = rest;
            return Some(u64::from(*byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for place in 0..10 {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        coherence::{Entry, Tag},
        domain::{
            FreeText, Labels, Membership, Organization, OrganizationName, Record, Role, Stamp,
            User, Username,
        },
    };

    const UID: &str = "0190b6f0-6e6e-7000-8000-000000000001";

    fn records() -> [Record; 4] {
        let (user, organization) = ("oliviaowner", "olivia-org");
        let user = Username::parse_new(user).unwrap();
        let organization = OrganizationName::parse_new(organization).unwrap();
        let user_record = |state, uid| {
            Record::User(User {
                username: user.clone(),
                first_name: FreeText::parse("Olivia").unwrap(),
                last_name: FreeText::default(),
                display_name: FreeText::parse(&"long ".repeat(40)).unwrap(),
                email: None,
                labels: Labels::parse([("a", "b")].into_iter()).unwrap(),
                state,
                uid: Uid::from_text(uid),
                stamp: Stamp::created(Timestamp(1_800_000_000_000)),
            })
        };
        [
            user_record(State::Suspended, UID),
            user_record(State::Active, "u-1"),
            Record::Organization(Organization {
                organization_name: organization.clone(),
                founding_user: "somebody".to_owned(),
                display_name: FreeText::default(),
                labels: Labels::default(),
                state: State::Active,
                uid: Uid::from_text(UID),
                stamp: Stamp::default(),
            }),
            Record::Membership(Membership {
                organization_name: organization,
                member_username: user.clone(),
                role: Role::Admin,
                adding_user: Some("somebody".to_owned()),
                organization_uid: Uid::from_text(UID),
                member_uid: None,
                stamp: Stamp::created(Timestamp(1)),
            }),
        ]
    }

    #[test]
    fn a_glance_sees_what_a_whole_reading_would() {
        let read_time = Timestamp(1_800_000_000_000);
        let space = Space::new("accounts", "1");
        for record in records() {
            let (key, gist) = (record.key(), Gist::from(&record));
            let (name, glance) = (space.key(&key), |bytes: &[u8]| glance(bytes, &space, &key));
            let present = Entry::new(Tag::Present { record, read_time }).encode(&name);
            assert_eq!(glance(&present), Some((Some(gist), read_time)));
            let absent = Entry::new(Tag::Absent { read_time }).encode(&name);
            assert_eq!(glance(&absent), Some((None, read_time)));
        }
    }

    #[test]
    fn what_is_not_to_be_believed_is_not_seen() {
        let [record, _, organization, _] = records();
        let (key, read_time) = (record.key(), Timestamp(1));
        let [space, other] = ["1", "2"].map(|generation| Space::new("accounts", generation));
        let (name, seen) = (space.key(&key), |bytes: &[u8]| glance(bytes, &space, &key));
        for tag in [Tag::Lease, Tag::Fence] {
            assert_eq!(seen(&Entry::new(tag).encode(&name)), None);
        }
        let present = Entry::new(Tag::Present { record, read_time }).encode(&name);
        assert!(seen(&present).is_some());
        assert_eq!(glance(&present, &other, &key), None);
        assert_eq!(glance(&present, &space, &organization.key()), None);
        for end in 0..present.len() {
            assert_eq!(seen(&present[..end]), None, "{end}");
        }
        // Twice the item, another schema, a group, a number without end.
        assert_eq!(seen(&present.repeat(2)), None);
        let mut other_schema = present.clone();
        other_schema[1] += 1;
        assert_eq!(seen(&other_schema), None);
        for rest in [&[0x0b][..], &[0x08, 0xff], &[0xff; 11], &[0x1a, 0x05, 0x00]] {
            assert_eq!(seen(&[&present, rest].concat()), None);
        }
        // A key that only begins or ends like this one.
        for of_other in [&name[1..], &name[..name.len() - 1], "", &format!("{name}x")] {
            let entry = Entry::new(Tag::Absent { read_time }).encode(of_other);
            assert_eq!(seen(&entry), None, "{of_other}");
        }
    }
}
