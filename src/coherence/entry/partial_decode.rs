//! Decodes the check facts of a cache entry without allocating: the hottest code of the
//! service. [`super::Entry::decode`] defines the format.

use std::ops::RangeInclusive;

use super::{Nonce, SCHEMA, state_from_wire};
use crate::{
    domain::{CheckFacts, Incarnation, Key, MembershipFacts, Role, Timestamp, Uid},
    proto::cache_v1 as wire,
};

/// Fields of `account.cache.v1.Entry`.
mod entry {
    pub(super) const SCHEMA: u8 = 1;
    pub(super) const TAG: u8 = 2;
    pub(super) const NONCE: u8 = 3;
    pub(super) const KEY: u8 = 4;
    pub(super) const READ_TIME: u8 = 5;
    pub(super) const USER: u8 = 6;
    pub(super) const ORGANIZATION: u8 = 7;
    pub(super) const MEMBERSHIP: u8 = 8;
}

/// Fields of the uid and of whether it is suspended, of `account.cache.v1.User`.
const OF_USER: [u8; 2] = [4, 8];
/// The same of `account.cache.v1.Organization`.
const OF_ORGANIZATION: [u8; 2] = [3, 7];

/// Decodes the check facts of an entry, and when the table was read. `None` for leases,
/// fences, and bytes that are no entry of this format for this key. Other fields are
/// skipped, and may be invalid.
pub(in crate::coherence) fn decode_facts(
    bytes: &[u8],
    cache_key: &[u8],
    key: &Key,
) -> Option<(Option<CheckFacts>, Timestamp)> {
    read(Fields(bytes), cache_key, key).ok()
}

/// The bytes are not the expected field or entry.
#[derive(Debug, PartialEq, Eq)]
struct Other;

fn read(
    mut fields: Fields<'_>,
    cache_key: &[u8],
    key: &Key,
) -> Result<(Option<CheckFacts>, Timestamp), Other> {
    if fields.number(entry::SCHEMA)? != u64::from(SCHEMA) {
        return Err(Other);
    }
    let tag = fields.number(entry::TAG)?;
    let nonce = fields.bytes(entry::NONCE)?;
    if nonce.is_none_or(|nonce| nonce.len() != size_of::<Nonce>()) {
        return Err(Other);
    }
    if fields.bytes(entry::KEY)? != Some(cache_key) {
        return Err(Other);
    }
    let read_time = fields.number(entry::READ_TIME)?;
    let kind = match key {
        Key::User(_) => entry::USER,
        Key::Organization(_) => entry::ORGANIZATION,
        Key::Membership(..) => entry::MEMBERSHIP,
    };
    let item = fields.bytes(kind)?.map(Fields);
    fields.end(entry::MEMBERSHIP)?;
    let tag = i32::try_from(tag).map_err(|_| Other)?;
    let facts = match (wire::Tag::try_from(tag), item) {
        (Ok(wire::Tag::Present), Some(item)) => Some(match key {
            Key::User(_) => CheckFacts::User(incarnation(item, OF_USER)?),
            Key::Organization(_) => CheckFacts::Organization(incarnation(item, OF_ORGANIZATION)?),
            Key::Membership(..) => CheckFacts::Membership(membership(item)?),
        }),
        (Ok(wire::Tag::Absent), None) => None,
        _ => return Err(Other),
    };
    Ok((facts, Timestamp(read_time.cast_signed())))
}

/// Of an `account.cache.v1.User` or an `Organization`, by their fields of the uid and of
/// whether it is suspended.
#[inline]
fn incarnation(mut fields: Fields<'_>, [uid, suspended]: [u8; 2]) -> Result<Incarnation, Other> {
    fields.skip(1..=uid - 1)?;
    let found_uid = fields.uid(uid)?;
    fields.skip(uid + 1..=suspended - 1)?;
    let state = state_from_wire(fields.number(suspended)? != 0);
    fields.end(suspended)?;
    Ok(Incarnation {
        uid: found_uid,
        state,
    })
}

/// Of an `account.cache.v1.Membership`.
fn membership(mut fields: Fields<'_>) -> Result<MembershipFacts, Other> {
    fields.skip(1..=2)?;
    let role = match fields.bytes(3)? {
        None => None,
        Some(role) => Some(Role::from_bytes(role).ok_or(Other)?),
    };
    fields.skip(4..=4)?;
    let organization_uid = fields.uid(5)?;
    let member_uid = fields.uid(6)?;
    fields.end(6)?;
    Ok(MembershipFacts {
        role,
        organization_uid,
        member_uid,
    })
}

/// The fields of a protobuf message in the order of their numbers, as they are written and
/// as they are read. Fields that are not read are checked at the end, which rejects a field
/// that comes too late.
struct Fields<'a>(&'a [u8]);

/// Wire types: the lowest bits of a field's tag.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

impl<'a> Fields<'a> {
    /// Reads a number. A missing field is zero.
    #[inline]
    fn number(&mut self, field: u8) -> Result<u64, Other> {
        if self.is_next(field, VARINT) {
            if let [number @ ..0x80, rest @ ..] = self.0 {
                self.0 = rest;
                return Ok(u64::from(*number));
            }
            self.varint()
        } else {
            Ok(0)
        }
    }

    /// Reads a text or a message, if the field is present.
    #[inline]
    fn bytes(&mut self, field: u8) -> Result<Option<&'a [u8]>, Other> {
        if self.is_next(field, BYTES) {
            self.delimited().map(Some)
        } else {
            Ok(None)
        }
    }

    #[inline]
    fn uid(&mut self, field: u8) -> Result<Option<Uid>, Other> {
        match self.bytes(field)? {
            Some(text) => Uid::from_utf8(text).map_err(|_| Other),
            None => Ok(None),
        }
    }

    /// Skips texts and messages, repeated ones included.
    #[inline]
    fn skip(&mut self, fields: RangeInclusive<u8>) -> Result<(), Other> {
        while let [head, rest @ ..] = self.0
            && head & 7 == BYTES
            && fields.contains(&(head >> 3))
        {
            self.0 = rest;
            self.delimited()?;
        }
        Ok(())
    }

    /// Checks that the remaining fields have greater numbers than `last`, as later versions
    /// may add.
    #[inline]
    fn end(mut self, last: u8) -> Result<(), Other> {
        let mut next = u64::from(last) + 1;
        while !self.0.is_empty() {
            let head = self.varint()?;
            if head >> 3 < next || head > u64::from(u32::MAX) {
                return Err(Other);
            }
            next = head >> 3;
            match u8::try_from(head & 7) {
                Ok(VARINT) => self.varint().map(drop)?,
                Ok(FIXED64) => self.take(8).map(drop)?,
                Ok(BYTES) => self.delimited().map(drop)?,
                Ok(FIXED32) => self.take(4).map(drop)?,
                _ => return Err(Other),
            }
        }
        Ok(())
    }

    /// Consumes the tag of this field, if it is next.
    #[inline]
    fn is_next(&mut self, field: u8, encoding: u8) -> bool {
        match self.0.split_first() {
            Some((head, rest)) if *head == field << 3 | encoding => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    #[inline]
    fn delimited(&mut self) -> Result<&'a [u8], Other> {
        // Nearly all are short.
        if let [length @ ..0x80, rest @ ..] = self.0
            && let Some((bytes, rest)) = rest.split_at_checked(usize::from(*length))
        {
            self.0 = rest;
            return Ok(bytes);
        }
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| Other)?)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Other> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Other)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Other> {
        let (mut number, mut shift) = (0, 0);
        while let [byte, rest @ ..] = self.0
            && shift < u64::BITS
        {
            self.0 = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && *byte > 1 {
                return Err(Other);
            }
            number |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(number);
            }
            shift += 7;
        }
        Err(Other)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{
        coherence::{Entry, Tag, namespace::Namespace},
        domain::{
            FreeText, Labels, Membership, Organization, OrganizationName, Record, Role, Stamp,
            State, User, Username,
        },
    };

    const UID: &str = "0190b6f0-6e6e-7000-8000-000000000001";

    fn records() -> [Record; 5] {
        let (user, organization) = ("oliviaowner", "olivia-org");
        let user = Username::parse_new(user).unwrap();
        let organization = OrganizationName::parse_new(organization).unwrap();
        let user_record = |state, uid| {
            Record::User(User {
                username: user.clone(),
                first_name: FreeText::parse_new("Olivia").unwrap(),
                last_name: FreeText::default(),
                display_name: FreeText::parse_new(&"long ".repeat(40)).unwrap(),
                email: None,
                labels: Labels::parse([("a", "b")].into_iter(), FreeText::parse_new).unwrap(),
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
                organization_name: organization.clone(),
                member_username: user.clone(),
                role: Some(Role::Admin),
                adding_user: Some("somebody".to_owned()),
                organization_uid: Uid::from_text(UID),
                member_uid: None,
                stamp: Stamp::created(Timestamp(1)),
            }),
            Record::Membership(Membership {
                organization_name: organization,
                member_username: user.clone(),
                role: None,
                adding_user: None,
                organization_uid: None,
                member_uid: Uid::from_text(UID),
                stamp: Stamp::default(),
            }),
        ]
    }

    #[test]
    fn a_glance_sees_what_a_whole_reading_would() {
        let read_time = Timestamp(1_800_000_000_000);
        let namespace = Namespace::new("accounts", "1");
        for record in records() {
            let (key, facts) = (record.key(), CheckFacts::from(&record));
            let name = namespace.key(&key);
            let decode_facts = |bytes: &[u8]| decode_facts(bytes, name.as_bytes(), &key);
            let present = Entry::new(Tag::Present { record, read_time }).encode(&name);
            assert_eq!(decode_facts(&present), Some((Some(facts), read_time)));
            let absent = Entry::new(Tag::Absent { read_time }).encode(&name);
            assert_eq!(decode_facts(&absent), Some((None, read_time)));
        }
    }

    /// Bytes much like these: some are other ones, missing, new, or from elsewhere.
    fn disturbed(bytes: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            match random.u8(..4) {
                0 => bytes[at] = random.u8(..),
                1 => bytes.insert(at, random.u8(..)),
                2 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => {
                    let end = random.usize(at..bytes.len());
                    let part = bytes[at..end].to_vec();
                    let place = random.usize(..bytes.len());
                    bytes.splice(place..place, part);
                }
            }
        }
        bytes
    }

    #[test]
    fn a_glance_never_sees_what_a_whole_reading_would_not() {
        use wire::entry::Item;
        let mut random = fastrand::Rng::with_seed(1);
        let namespace = Namespace::new("accounts", "1");
        let mut seen = 0;
        for record in records().iter().cycle().take(200_000) {
            let (key, read_time) = (record.key(), Timestamp(1_800_000_000_000));
            let name = namespace.key(&key);
            let record = record.clone();
            let bytes = Entry::new(Tag::Present { record, read_time }).encode(&name);
            let bytes = disturbed(&bytes, &mut random);
            let Some((facts, read_time)) = decode_facts(&bytes, name.as_bytes(), &key) else {
                continue;
            };
            let Ok(entry) = wire::Entry::decode(&*bytes) else {
                continue;
            };
            seen += 1;
            assert_eq!(entry.read_time_ms, read_time.0, "{bytes:?}");
            let whole = match entry.item {
                None => None,
                Some(Item::User(user)) => Some(CheckFacts::User(Incarnation {
                    uid: Uid::from_text(&user.uid),
                    state: state_from_wire(user.suspended),
                })),
                Some(Item::Organization(organization)) => {
                    Some(CheckFacts::Organization(Incarnation {
                        uid: Uid::from_text(&organization.uid),
                        state: state_from_wire(organization.suspended),
                    }))
                }
                Some(Item::Membership(membership)) => {
                    Some(CheckFacts::Membership(MembershipFacts {
                        role: match membership.role.as_bytes() {
                            b"" => None,
                            role => Some(Role::from_bytes(role).unwrap()),
                        },
                        organization_uid: Uid::from_text(&membership.organization_uid),
                        member_uid: Uid::from_text(&membership.member_uid),
                    }))
                }
            };
            assert_eq!(facts, whole, "{bytes:?}");
        }
        assert!(seen > 10_000, "{seen}");
    }

    #[test]
    fn what_is_said_in_another_order_is_not_believed() {
        let suspended = [0x22, 0x01, b'u', 0x40, 0x01];
        let (uid, said) = suspended.split_at(3);
        let state = |fields: &[u8]| incarnation(Fields(fields), OF_USER).map(|it| it.state);
        assert_eq!(state(&suspended), Ok(State::Suspended));
        assert_eq!(state(uid), Ok(State::Active));
        assert_eq!(state(&[said, uid].concat()), Err(Other));
        assert_eq!(state(&[uid, uid].concat()), Err(Other));
        let owner = [&[0x1a, 0x05][..], b"Owner"].concat();
        let member = |fields: &[u8]| membership(Fields(fields)).map(|it| it.member_uid);
        assert_eq!(member(&owner), Ok(None));
        assert_eq!(member(&[&owner, &[0x0a, 0x00][..]].concat()), Err(Other));
        assert_eq!(member(&[&owner, &owner[..]].concat()), Err(Other));
        let unknown = [&[0x1a, 0x06][..], b"Viewer"].concat();
        assert_eq!(member(&unknown), Err(Other));
        // Neither suspended nor not.
        let beyond = [&[0x40][..], &[0x80; 9], &[0x02]].concat();
        assert_eq!(state(&beyond), Err(Other));
        let most = [&[0x40][..], &[0x80; 9], &[0x01]].concat();
        assert_eq!(state(&most), Ok(State::Suspended));
    }

    #[test]
    fn what_is_not_to_be_believed_is_not_seen() {
        let [record, _, organization, ..] = records();
        let (key, read_time) = (record.key(), Timestamp(1));
        let [namespace, other] =
            ["1", "2"].map(|generation| Namespace::new("accounts", generation));
        let name = namespace.key(&key);
        let seen = |bytes: &[u8]| decode_facts(bytes, name.as_bytes(), &key);
        for tag in [Tag::Lease, Tag::Fence] {
            assert_eq!(seen(&Entry::new(tag).encode(&name)), None);
        }
        let present = Entry::new(Tag::Present { record, read_time }).encode(&name);
        assert!(seen(&present).is_some());
        assert_eq!(
            decode_facts(&present, other.key(&key).as_bytes(), &key),
            None
        );
        assert_eq!(
            decode_facts(&present, name.as_bytes(), &organization.key()),
            None
        );
        for end in 0..present.len() {
            assert_eq!(seen(&present[..end]), None, "{end}");
        }
        // Twice the item, another schema, a group, a number without end.
        assert_eq!(seen(&present.repeat(2)), None);
        let mut other_schema = present.clone();
        other_schema[1] += 1;
        assert_eq!(seen(&other_schema), None);
        for rest in [&[0x4b][..], &[0x48, 0xff], &[0xff; 11], &[0x4a, 0x05, 0x00]] {
            assert_eq!(seen(&[&present, rest].concat()), None);
        }
        // Fields that come too late, as nobody writes them: what is said of who is let in
        // could be among them.
        for late in [&[0x08, 0x03][..], &[0x32, 0x00], &[0x42, 0x00]] {
            assert_eq!(seen(&[&present, late].concat()), None);
        }
        // Those of a later version.
        for new in [
            &[0x48, 0x01][..],
            &[0x4a, 0x01, 0x00],
            &[0x9a, 0x06, 0x00],
            &[0x4d, 0, 0, 0, 0],
        ] {
            assert!(seen(&[&present, new].concat()).is_some());
        }
        // A key that only begins or ends like this one.
        for of_other in [&name[1..], &name[..name.len() - 1], "", &format!("{name}x")] {
            let entry = Entry::new(Tag::Absent { read_time }).encode(of_other);
            assert_eq!(seen(&entry), None, "{of_other}");
        }
    }
}
