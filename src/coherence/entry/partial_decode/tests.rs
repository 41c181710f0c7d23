//! Tests of the partial decode.

use prost::Message as _;

use super::*;
use crate::{
    coherence::{Entry, Tag, namespace::Namespace},
    domain::{
        FreeText, Labels, Membership, Organization, OrganizationName, Record, Role, Stamp, State,
        User, Username,
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
fn the_partial_decode_returns_the_facts_of_every_record() {
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

/// A variation of these bytes: some are replaced, inserted, removed, or copied from another
/// position.
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
                let target = random.usize(..bytes.len());
                bytes.splice(target..target, part);
            }
        }
    }
    bytes
}

#[test]
fn the_partial_decode_never_contradicts_the_full_decode() {
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
            Some(Item::Organization(organization)) => Some(CheckFacts::Organization(Incarnation {
                uid: Uid::from_text(&organization.uid),
                state: state_from_wire(organization.suspended),
            })),
            Some(Item::Membership(membership)) => Some(CheckFacts::Membership(MembershipFacts {
                role: match membership.role.as_bytes() {
                    b"" => None,
                    role => Some(Role::from_bytes(role).unwrap()),
                },
                organization_uid: Uid::from_text(&membership.organization_uid),
                member_uid: Uid::from_text(&membership.member_uid),
            })),
        };
        assert_eq!(facts, whole, "{bytes:?}");
    }
    assert!(seen > 10_000, "{seen}");
}

#[test]
fn fields_out_of_order_are_rejected() {
    let suspended = [0x22, 0x01, b'u', 0x40, 0x01];
    let (uid, suspended_field) = suspended.split_at(3);
    let state = |fields: &[u8]| incarnation(Fields(fields), OF_USER).map(|it| it.state);
    assert_eq!(state(&suspended), Ok(State::Suspended));
    assert_eq!(state(uid), Ok(State::Active));
    assert_eq!(state(&[suspended_field, uid].concat()), Err(Other));
    assert_eq!(state(&[uid, uid].concat()), Err(Other));
    let owner = [&[0x1a, 0x05][..], b"Owner"].concat();
    let member = |fields: &[u8]| membership(Fields(fields)).map(|it| it.member_uid);
    assert_eq!(member(&owner), Ok(None));
    assert_eq!(member(&[&owner, &[0x0a, 0x00][..]].concat()), Err(Other));
    assert_eq!(member(&[&owner, &owner[..]].concat()), Err(Other));
    let unknown = [&[0x1a, 0x06][..], b"Viewer"].concat();
    assert_eq!(member(&unknown), Err(Other));
    // The number of `suspended` exceeds 64 bits.
    let beyond = [&[0x40][..], &[0x80; 9], &[0x02]].concat();
    assert_eq!(state(&beyond), Err(Other));
    let most = [&[0x40][..], &[0x80; 9], &[0x01]].concat();
    assert_eq!(state(&most), Ok(State::Suspended));
}

#[test]
fn unusable_entries_have_no_facts() {
    let [record, _, organization, ..] = records();
    let (key, read_time) = (record.key(), Timestamp(1));
    let [namespace, other] = ["1", "2"].map(|generation| Namespace::new("accounts", generation));
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
    // The entry twice, another schema, a group, an endless number, a truncated field.
    assert_eq!(seen(&present.repeat(2)), None);
    let mut other_schema = present.clone();
    other_schema[1] += 1;
    assert_eq!(seen(&other_schema), None);
    for rest in [&[0x4b][..], &[0x48, 0xff], &[0xff; 11], &[0x4a, 0x05, 0x00]] {
        assert_eq!(seen(&[&present, rest].concat()), None);
    }
    // Fields out of order, which no writer produces. They could affect the check.
    for late in [&[0x08, 0x03][..], &[0x32, 0x00], &[0x42, 0x00]] {
        assert_eq!(seen(&[&present, late].concat()), None);
    }
    // New fields of a later version.
    for new in [
        &[0x48, 0x01][..],
        &[0x4a, 0x01, 0x00],
        &[0x9a, 0x06, 0x00],
        &[0x4d, 0, 0, 0, 0],
    ] {
        assert!(seen(&[&present, new].concat()).is_some());
    }
    // Keys that are a part of this one, or contain it.
    for of_other in [&name[1..], &name[..name.len() - 1], "", &format!("{name}x")] {
        let entry = Entry::new(Tag::Absent { read_time }).encode(of_other);
        assert_eq!(seen(&entry), None, "{of_other}");
    }
}
