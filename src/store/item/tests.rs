//! Tests of items.

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
        expire_time: Some(ExpireTime(1_800_000_000)),
        labels: Labels::parse([("job", "nurse")].into_iter(), FreeText::parse_new).unwrap(),
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
        external_id: None,
        labels: Labels::parse(labels.into_iter(), FreeText::parse_new).unwrap(),
        state: State::Suspended,
        deletion: None,
        uid: Uid::from_text("u"),
        stamp: Stamp::created(Timestamp(1)),
    });
    assert_eq!(decode(&record.key(), &encode(&record)), Some(record));
}

#[test]
fn a_deletion_keeps_the_state_before_it() {
    let deletion = Some(SoftDeletion {
        delete_time: Timestamp(1),
        purge: Purge::At(Timestamp(2)),
    });
    let key = Key::User(Username::parse_new("oliviaowner").unwrap());
    for state in [State::Active, State::Suspended] {
        let user = decode(&key, &Item::new()).and_then(Record::into_user);
        let active = user.unwrap();
        let user = User {
            state,
            deletion,
            ..active.clone()
        };
        let record = Record::User(user.clone());
        let item = encode(&record);
        assert_eq!(text(&item, STATE), Some("DELETED"));
        assert!(has_known_state(&item));
        assert_eq!(decode(&key, &item), Some(record.clone()));
        let undeleted = Record::User(user.undeleted());
        let (set, gone) = difference(&record, &undeleted);
        assert_eq!(text(&set, STATE).is_some(), state == State::Suspended);
        assert_eq!(gone.contains(&STATE.to_owned()), state == State::Active);
        assert!(gone.contains(&PURGE_TIME.to_owned()));
    }
    // Without times, by another writer, it is not purged.
    let mut item = Item::new();
    put_text(&mut item, STATE, "DELETED");
    let user = decode(&key, &item).and_then(Record::into_user).unwrap();
    let deletion = user.deletion.unwrap();
    assert!(!deletion.is_due(Timestamp(i64::MAX - 1)));
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
        external_id: None,
        labels: Labels::default(),
        state: State::Active,
        deletion: None,
        uid: None,
        stamp: Stamp::default(),
    }));
    for name in [DISPLAY_NAME, EMAIL, LABELS, STATE] {
        assert_eq!(item.get(name), None, "{name}");
    }
}
