//! The key schema, as pure functions. Frozen: existing tables use it.

use super::{LogId, ProfileKind, ScheduledEnd, ScheduledPurge};
use crate::domain::{
    ErasureId, Etag, ExpireTime, Key, OrganizationName, Orphans, ProfileId, ProfileName, Record,
    Request, UID_MAX_BYTES, Uid, UniqueValue, Username,
};

/// Changes of a log that share a partition key.
pub(super) const LOG_BLOCK: u64 = 1000;
const LOG_DIGITS: usize = 20;
/// Beginning of the keys of a user, of an organization, of an organization's memberships, and of the
/// sort key of a membership. The name follows.
pub(super) const USER: &str = "USER#";
pub(super) const ORGANIZATION: &str = "ORG#";
pub(super) const MEMBERS_OF: &str = "ORGMEMBERS#";
pub(super) const MEMBER: &str = "MEMBER#";
const REQUEST: &str = "REQUEST#";
const LOG: &str = "CHANGELOG#";
const COUNTS: &str = "COUNTS#";
/// Name of the partition key attribute.
pub const PARTITION_KEY: &str = "PK";
/// Name of the sort key attribute.
pub const SORT_KEY: &str = "SK";
/// Name of the global index keyed by sort key, then partition key.
pub const INVERTED_INDEX: &str = "SK-PK-index";

/// The attribute of users and organizations by which all of them are listed.
pub const LIST_KEY: &str = "listKey";
/// Name of the global index keyed by that attribute, then the partition key.
pub const LIST_INDEX: &str = "listKey-PK-index";
/// Partitions of the index of all users, and of all organizations. Each accepts a thousand new
/// records a second.
pub(super) const LIST_SHARDS: u8 = 4;

/// The attribute of Owners' memberships without an end by which the Owners of an organization are
/// found. Its value is the partition key.
pub const OWNER_OF: &str = "ownerOf";
/// Name of the global index keyed by that attribute, then the sort key.
pub const OWNER_INDEX: &str = "ownerOf-SK-index";

/// The index attributes of a record's item. No value: the record is not in that index.
pub(super) fn index_attributes(record: &Record) -> [(&'static str, Option<String>); 2] {
    let owner_of = match record {
        Record::Membership(membership) if membership.is_lasting_owner() => {
            Some(members_of(&membership.organization_name))
        }
        _ => None,
    };
    [(LIST_KEY, list_key(&record.key())), (OWNER_OF, owner_of)]
}

/// The value of [`LIST_KEY`] in a record's item; memberships have none.
pub(super) fn list_key(key: &Key) -> Option<String> {
    let (directory, name) = match key {
        Key::User(username) => (ProfileKind::Users, username.as_str()),
        Key::Organization(name) => (ProfileKind::Organizations, name.as_str()),
        Key::Membership(..) => return None,
    };
    // Frozen: a name must always be in the same shard.
    let hash = name
        .bytes()
        .fold(0_u8, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte));
    Some(list_key_of_shard(directory, hash % LIST_SHARDS))
}

/// The value of [`LIST_KEY`] of all records in a shard.
pub(super) fn list_key_of_shard(kind: ProfileKind, shard: u8) -> String {
    match kind {
        ProfileKind::Users => format!("USERS#{shard}"),
        ProfileKind::Organizations => format!("ORGS#{shard}"),
    }
}

/// Partition key and sort key of a record's item.
pub(super) fn of(key: &Key) -> (String, String) {
    match key {
        Key::User(username) => same(user(username)),
        Key::Organization(name) => same(format!("{ORGANIZATION}{name}")),
        Key::Membership(organization, member) => (members_of(organization), member_sort(member)),
    }
}

/// The key of the record in an item with this partition key and sort key; `None` for items that are
/// not records.
#[must_use]
pub fn key_of_item(pk: &str, sk: &str) -> Option<Key> {
    let key = if let Some(name) = pk.strip_prefix(USER) {
        Key::User(Username::parse_existing(name).ok()?)
    } else if let Some(name) = pk.strip_prefix(ORGANIZATION) {
        Key::Organization(OrganizationName::parse_existing(name).ok()?)
    } else {
        let organization = pk.strip_prefix(MEMBERS_OF)?;
        Key::Membership(
            OrganizationName::parse_existing(organization).ok()?,
            Username::parse_existing(member_of_sort(sk)?).ok()?,
        )
    };
    (of(&key) == (pk.to_owned(), sk.to_owned())).then_some(key)
}

/// Whether the keys of an item have the form of a record's keys, also with an invalid name.
pub(super) fn is_of_record(pk: &str, sk: &str) -> bool {
    let is_of_profile = pk.starts_with(USER) || pk.starts_with(ORGANIZATION);
    let is_of_member = pk.starts_with(MEMBERS_OF) && member_of_sort(sk).is_some();
    is_of_profile && pk == sk || is_of_member
}

/// Partition key and sort key of a register's item.
pub(super) fn of_register(name: &str) -> (String, String) {
    same(format!("SERVICE#{name}"))
}

/// Partition key and sort key of a request's outcome.
pub(super) fn of_request(request: &Request) -> (String, String) {
    let id = request.id.as_str();
    same(match &request.scope {
        Some(scope) => format!("{REQUEST}{id}#{}", scope.as_str()),
        None => format!("{REQUEST}{id}"),
    })
}

/// Partition key and sort key of the claim of a unique value.
pub(super) fn of_unique(value: &UniqueValue) -> (String, String) {
    same(match value {
        UniqueValue::Email(email) => format!("EMAIL#{}", email.canonical()),
        UniqueValue::UserExternalId(id) => format!("USEREXTERNALID#{}", id.as_str()),
        UniqueValue::OrganizationExternalId(id) => format!("ORGEXTERNALID#{}", id.as_str()),
    })
}

/// Partition key and sort key of a uid's item. `None` for long uids of other writers.
pub(super) fn of_uid(uid: &Uid) -> Option<(String, String)> {
    let uid = uid.as_str();
    (uid.len() <= UID_MAX_BYTES).then(|| same(format!("UID#{uid}")))
}

/// Partition key and sort key of the counts of an incarnation. `None` for long uids of other writers.
pub(super) fn of_counts(of: &ProfileId) -> Option<(String, String)> {
    let (profile, _) = self::of(&of.name.key());
    let uid = of.uid.as_ref().map_or("", Uid::as_str);
    // Names have no control characters, so no two keys are equal.
    (uid.len() <= UID_MAX_BYTES).then(|| same(format!("{COUNTS}{profile}\n{uid}")))
}

/// The user or the organization, and the uid, in the partition key of counts.
pub(super) fn of_counted(pk: &str) -> Option<(ProfileName, Option<Uid>)> {
    let (profile, uid) = pk.strip_prefix(COUNTS)?.split_once('\n')?;
    Some((profile_of(profile)?, Uid::from_text(uid)))
}

/// The number of the last change in the block of a change.
pub(super) fn end_of_block(number: u64) -> u64 {
    (number / LOG_BLOCK + 1) * LOG_BLOCK - 1
}

/// Partition key of all clean-up tasks.
pub(super) const LEFTOVERS: &str = "LEFTOVERS";

/// Partition key and sort key of a clean-up task.
pub(super) fn of_orphans(orphans: &Orphans) -> (String, String) {
    let (pk, _) = of(&orphans.gone.key());
    let uid = orphans.uid.as_ref().map_or("", Uid::as_str);
    let is_plain = |found: char| found != '#' && !found.is_control();
    let sk = if uid.len() <= UID_MAX_BYTES && uid.chars().all(is_plain) {
        format!("{pk}#{uid}")
    } else {
        // A uid of another writer. Names have no control characters.
        let start: String = uid.chars().take(UID_MAX_BYTES).collect();
        format!("{pk}\n{start}")
    };
    (LEFTOVERS.to_owned(), sk)
}

/// The deleted record in the sort key of a clean-up task. The uid may be truncated.
pub(super) fn gone(sk: &str) -> Option<(ProfileName, Option<Uid>)> {
    let (pk, uid) = sk.split_once('\n').or_else(|| sk.rsplit_once('#'))?;
    Some((profile_of(pk)?, Uid::from_text(uid)))
}

/// The user or the organization with this partition key.
fn profile_of(pk: &str) -> Option<ProfileName> {
    match key_of_item(pk, pk)? {
        Key::User(username) => Some(ProfileName::User(username)),
        Key::Organization(name) => Some(ProfileName::Organization(name)),
        Key::Membership(..) => None,
    }
}

/// Partition key and sort key of a change in a log.
pub(super) fn of_logged(log: &LogId, number: u64) -> (String, String) {
    (
        log_block(log, number / LOG_BLOCK),
        format!("{number:0LOG_DIGITS$}"),
    )
}

/// Partition key of a block of a log.
pub(super) fn log_block(LogId(log): &LogId, block: u64) -> String {
    format!("{LOG}{log}#{block}")
}

/// The number in a logged change's sort key.
pub(super) fn number_of_logged(sk: &str) -> Option<u64> {
    sk.parse().ok()
}

/// Partition key and sort key of the deletion of this version of a record.
pub(super) fn of_deletion(key: &Key, version: &Etag) -> (String, String) {
    let (pk, sk) = of(key);
    let separator = match key {
        // Names have no control characters, so no two keys are equal.
        Key::Membership(organization, _) if organization.as_str().contains('#') => '\n',
        _ => '#',
    };
    same(format!("DELETED#{pk}{separator}{sk}#{}", version.as_str()))
}

/// Partition key of all scheduled ends of memberships.
pub(super) const SCHEDULED_ENDS: &str = "EXPIRIES";
const SECOND_DIGITS: usize = 20;

/// Partition key and sort key of a scheduled end.
pub(super) fn of_scheduled_end(end: &ScheduledEnd) -> (String, String) {
    let ExpireTime(second) = end.expire_time;
    let (organization, member) = (&end.organization_name, &end.member_username);
    let sk = format!("{second:0SECOND_DIGITS$}#{organization}\n{member}");
    (SCHEDULED_ENDS.to_owned(), sk)
}

/// The scheduled end in a sort key.
pub(super) fn scheduled_end(sk: &str) -> Option<ScheduledEnd> {
    let (second, names) = sk.split_once('#')?;
    let (organization, member) = names.split_once('\n')?;
    Some(ScheduledEnd {
        expire_time: ExpireTime(second.parse().ok()?),
        organization_name: OrganizationName::parse_existing(organization).ok()?,
        member_username: Username::parse_existing(member).ok()?,
    })
}

/// Partition key of all scheduled purges.
pub(super) const SCHEDULED_PURGES: &str = "PURGES";

/// Partition key and sort key of a scheduled purge.
pub(super) fn of_scheduled_purge(purge: &ScheduledPurge) -> (String, String) {
    let (pk, _) = of(&purge.name.key());
    let sk = format!("{}#{pk}", purge_second(purge.second));
    (SCHEDULED_PURGES.to_owned(), sk)
}

/// The beginning of the sort keys of the purges of a second. Those of earlier seconds come before it.
pub(super) fn purge_second(second: i64) -> String {
    format!("{second:0SECOND_DIGITS$}")
}

/// The scheduled purge in a sort key.
pub(super) fn scheduled_purge(sk: &str) -> Option<ScheduledPurge> {
    let (second, pk) = sk.split_once('#')?;
    Some(ScheduledPurge {
        second: second.parse().ok()?,
        name: profile_of(pk)?,
    })
}

/// Partition key of all erasures that are not done.
pub(super) const ERASURES: &str = "ERASURES";

/// Partition key and sort key of an erasure that is not done.
pub(super) fn of_running_erasure(erasure: ErasureId) -> (String, String) {
    (ERASURES.to_owned(), erasure.to_string())
}

/// Partition key and sort key of an erasure that is done.
pub(super) fn of_done_erasure(erasure: ErasureId) -> (String, String) {
    same(format!("ERASURE#{erasure}"))
}

/// Whether the item with this partition key is a change in a log.
pub(super) fn is_of_log(pk: &str) -> bool {
    pk.starts_with(LOG)
}

/// Whether the item with this partition key is the outcome of a request.
pub(super) fn is_of_request(pk: &str) -> bool {
    pk.starts_with(REQUEST)
}

/// Partition key of all memberships of an organization.
pub(super) fn members_of(organization: &OrganizationName) -> String {
    format!("{MEMBERS_OF}{organization}")
}

/// The member's name in a membership's sort key.
pub(super) fn member_of_sort(sort_key: &str) -> Option<&str> {
    sort_key.strip_prefix(MEMBER)
}

fn user(username: &Username) -> String {
    format!("{USER}{username}")
}

/// Sort key of all memberships of a user.
pub(super) fn member_sort(member: &Username) -> String {
    format!("{MEMBER}{member}")
}

fn same(key: String) -> (String, String) {
    (key.clone(), key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_the_tutorial() {
        let user = Username::parse_new("oliviaowner").unwrap();
        let organization = OrganizationName::parse_new("olivia-org").unwrap();
        for (key, pk, sk) in [
            (
                Key::User(user.clone()),
                "USER#oliviaowner",
                "USER#oliviaowner",
            ),
            (
                Key::Organization(organization.clone()),
                "ORG#olivia-org",
                "ORG#olivia-org",
            ),
            (
                Key::Membership(organization, user),
                "ORGMEMBERS#olivia-org",
                "MEMBER#oliviaowner",
            ),
        ] {
            assert_eq!(of(&key), (pk.to_owned(), sk.to_owned()));
            assert_eq!(key_of_item(pk, sk), Some(key));
        }
    }

    #[test]
    fn records_with_separators_in_their_names_have_distinct_keys() {
        let membership = |organization: &str, user: &str| {
            Key::Membership(
                OrganizationName::parse_existing(organization).unwrap(),
                Username::parse_existing(user).unwrap(),
            )
        };
        let keys = [
            membership("a", "b#MEMBER#c"),
            membership("a#MEMBER#b", "c"),
            membership("a#", "b"),
            membership("a", "#b"),
        ];
        let version = Etag::from_text("1").unwrap();
        let mut deletions = std::collections::HashSet::new();
        for key in keys {
            let (pk, sk) = of(&key);
            assert_eq!(key_of_item(&pk, &sk), Some(key.clone()));
            assert!(deletions.insert(of_deletion(&key, &version)), "{key:?}");
        }
        for gone in [
            ProfileName::User(Username::parse_existing("a#b").unwrap()),
            ProfileName::Organization(OrganizationName::parse_existing("a#b").unwrap()),
        ] {
            let foreign = "é#".repeat(500);
            for uid in ["", "u-1", "v#w", "a\nb", &foreign].map(Uid::from_text) {
                let time = crate::domain::Timestamp(0);
                let (gone, uid) = (gone.clone(), uid.clone());
                let orphans = Orphans { gone, uid, time };
                let (_, sk) = of_orphans(&orphans);
                assert!(sk.len() <= 1024);
                let item = crate::store::item::encode_orphans(&orphans);
                let decoded = crate::store::item::decode_orphans(&sk, &item);
                assert_eq!(decoded, Some(orphans));
            }
        }
    }

    #[test]
    fn scheduled_ends_are_sorted_by_time() {
        let of = |second, organization: &str| {
            let end = ScheduledEnd {
                expire_time: ExpireTime(second),
                organization_name: OrganizationName::parse_existing(organization).unwrap(),
                member_username: Username::parse_existing("a#b").unwrap(),
            };
            let (_, sk) = of_scheduled_end(&end);
            (sk, end)
        };
        let sorted = [of(0, "z"), of(9, "z#"), of(10, "a"), of(i64::MAX, "a")];
        assert!(sorted.is_sorted_by_key(|(sk, _)| sk));
        for (sk, end) in sorted {
            assert_eq!(scheduled_end(&sk), Some(end));
        }
    }

    #[test]
    fn scheduled_purges_are_sorted_by_time() {
        let of = |second, name: &str| {
            let name = ProfileName::User(Username::parse_existing(name).unwrap());
            let purge = ScheduledPurge { second, name };
            (of_scheduled_purge(&purge), purge)
        };
        let sorted = [of(0, "z"), of(9, "z#"), of(10, "a"), of(i64::MAX, "a")];
        assert!(sorted.is_sorted_by_key(|((_, sk), _)| sk));
        let ((pk, sk), _) = &sorted[2];
        assert_eq!((&**pk, &**sk), ("PURGES", "00000000000000000010#USER#a"));
        for ((_, sk), purge) in sorted {
            assert!(sk < purge_second(purge.second.saturating_add(1)) || purge.second == i64::MAX);
            assert_eq!(scheduled_purge(&sk), Some(purge));
        }
    }

    #[test]
    fn items_that_are_not_records_have_no_key() {
        for (pk, sk) in [
            ("SERVICE#cache-generation", "SERVICE#cache-generation"),
            ("USER#olivia", "USER#michael"),
            ("ORGMEMBERS#olivia-org", "OTHER#olivia"),
            ("USER#", "USER#"),
            ("", ""),
        ] {
            assert_eq!(key_of_item(pk, sk), None, "{pk} {sk}");
        }
    }
}
