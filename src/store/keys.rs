//! The key schema, as pure functions. Frozen: tables are filled with it.

use crate::domain::{Key, OrganizationName, Username};

/// Name of the partition key attribute.
pub const PARTITION_KEY: &str = "PK";
/// Name of the sort key attribute.
pub const SORT_KEY: &str = "SK";
/// Name of the global index keyed sort key, then partition key.
pub const INVERTED_INDEX: &str = "SK-PK-index";

/// Partition key and sort key of a record's item.
pub(super) fn of(key: &Key) -> (String, String) {
    match key {
        Key::User(username) => same(user(username)),
        Key::Organization(name) => same(format!("ORG#{name}")),
        Key::Membership(organization, member) => (members_of(organization), member_sort(member)),
    }
}

/// Partition key and sort key of a register's item.
pub(super) fn of_register(name: &str) -> (String, String) {
    same(format!("SERVICE#{name}"))
}

/// Partition key of all memberships of an organization.
pub(super) fn members_of(organization: &OrganizationName) -> String {
    format!("ORGMEMBERS#{organization}")
}

/// The member's name in a membership's sort key.
pub(super) fn member_of_sort(sort_key: &str) -> Option<&str> {
    sort_key.strip_prefix("MEMBER#")
}

fn user(username: &Username) -> String {
    format!("USER#{username}")
}

fn member_sort(member: &Username) -> String {
    format!("MEMBER#{member}")
}

fn same(key: String) -> (String, String) {
    (key.clone(), key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_tutorial() {
        let user = Username::parse_new("oliviaowner").unwrap();
        let organization = OrganizationName::parse_new("olivia-org").unwrap();
        let pair = |pk: &str, sk: &str| (pk.to_owned(), sk.to_owned());
        assert_eq!(
            of(&Key::User(user.clone())),
            pair("USER#oliviaowner", "USER#oliviaowner")
        );
        assert_eq!(
            of(&Key::Organization(organization.clone())),
            pair("ORG#olivia-org", "ORG#olivia-org")
        );
        assert_eq!(
            of(&Key::Membership(organization, user)),
            pair("ORGMEMBERS#olivia-org", "MEMBER#oliviaowner")
        );
    }
}
