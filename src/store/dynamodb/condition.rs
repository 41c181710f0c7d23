//! Conditions of a transaction: a step applies only to the records that were read.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::to_attribute;
use crate::{
    domain::{ExpireTime, Record, Role, SoftDeletion, State, Timestamp, Uid},
    store::{
        StoredClaim,
        item::{self, Item, Value},
    },
};

/// A condition expression with its placeholders.
#[derive(Default)]
pub(super) struct Condition {
    pub(super) expression: String,
    pub(super) names: Option<HashMap<String, String>>,
    pub(super) values: Option<HashMap<String, AttributeValue>>,
}

impl Condition {
    /// There is no item under the key.
    pub(super) fn no_item() -> Self {
        let mut condition = Self::default();
        condition.and("attribute_not_exists(PK)");
        condition
    }

    /// The facts of decisions: existence, incarnation, state, role and time of expiry.
    pub(super) fn facts(found: Option<&Record>) -> Self {
        let mut condition = Self::default();
        match found {
            None => {
                let [state, tombstone] = condition.name_and_value(
                    item::STATE,
                    "tombstone",
                    Value::Text(item::TOMBSTONE.to_owned()),
                );
                condition.and(&format!(
                    "(attribute_not_exists(PK) OR {state} = {tombstone})"
                ));
            }
            Some(record) => {
                condition.and("attribute_exists(PK)");
                condition.and_facts(record);
            }
        }
        condition
    }

    /// The facts, the version and the creation time. The versions of a record that was
    /// deleted and created again start anew.
    pub(super) fn exactly(found: Option<&Record>) -> Self {
        let mut condition = Self::facts(found);
        if let Some(record) = found {
            let stamp = record.stamp();
            condition.and_version(stamp.version);
            let create_time = stamp.create_time.map(|Timestamp(millis)| millis);
            condition.and_time(item::CREATE_TIME, create_time);
        }
        condition
    }

    /// The expression. `None`: there is no condition.
    pub(super) fn given(&self) -> Option<String> {
        (!self.expression.is_empty()).then(|| self.expression.clone())
    }

    /// The item exists, and has the values of this one in these attributes.
    pub(super) fn same(item: &Item, attributes: &[&str]) -> Self {
        let mut condition = Self::default();
        condition.and("attribute_exists(PK)");
        for attribute in attributes {
            condition.and_equal(attribute, item.get(*attribute).cloned());
        }
        condition
    }

    /// The value has exactly this claim. `None`: it has none.
    pub(super) fn claim(found: Option<&StoredClaim>) -> Self {
        let Some(StoredClaim { claim, change_id }) = found else {
            return Self::no_item();
        };
        let mut condition = Self::default();
        let text = |text: &str| Value::Text(text.to_owned());
        // The holder does not suffice: it may have released the value and claimed it again.
        condition.and_equal(item::WRITE_ID, change_id.as_deref().map(text));
        if change_id.is_none() {
            let uid = claim.uid.as_ref().map(|uid| text(uid.as_str()));
            let (attribute, name) = item::holder(&claim.name);
            condition.and_equal(attribute, Some(text(name)));
            condition.and_equal(item::UID, uid);
        }
        condition
    }

    /// The update expression. It shares the placeholders of the condition.
    pub(super) fn update(&mut self, set: Item, gone: Vec<String>) -> String {
        let names = self.names.get_or_insert_default();
        let values = self.values.get_or_insert_default();
        let mut placeholder = |name: String| {
            let placeholder = format!("#{name}");
            names.insert(placeholder.clone(), name);
            placeholder
        };
        let mut clauses = Vec::new();
        for (name, value) in set {
            let new = format!(":new_{name}");
            clauses.push(format!("{} = {new}", placeholder(name)));
            values.insert(new, to_attribute(value));
        }
        let gone: Vec<_> = gone.into_iter().map(placeholder).collect();
        let remove = (!gone.is_empty()).then(|| format!(" REMOVE {}", gone.join(", ")));
        format!("SET {}{}", clauses.join(", "), remove.unwrap_or_default())
    }

    fn and_facts(&mut self, record: &Record) {
        match record {
            Record::User(user) => {
                self.and_uid(item::UID, user.uid.as_ref());
                self.and_state(user.state, user.deletion);
            }
            Record::Organization(organization) => {
                self.and_uid(item::UID, organization.uid.as_ref());
                self.and_state(organization.state, organization.deletion);
            }
            Record::Membership(membership) => {
                self.and_role(membership.role);
                let organization_uid = membership.organization_uid.as_ref();
                self.and_uid(item::ORGANIZATION_UID, organization_uid);
                self.and_uid(item::MEMBER_UID, membership.member_uid.as_ref());
                let expire_time = membership.expire_time.map(|ExpireTime(seconds)| seconds);
                self.and_time(item::EXPIRE_TIME, expire_time);
            }
        }
    }

    /// The attribute has this value. `None`: it is missing.
    fn and_equal(&mut self, attribute: &str, value: Option<Value>) {
        if let Some(value) = value {
            let [name, value] = self.name_and_value(attribute, attribute, value);
            self.and(&format!("{name} = {value}"));
            return;
        }
        let name = format!("#{attribute}");
        self.and(&format!("attribute_not_exists({name})"));
        let names = self.names.get_or_insert_default();
        names.insert(name, attribute.to_owned());
    }

    /// The uid is this one. `None`: the attribute is missing, empty, or not a text.
    fn and_uid(&mut self, attribute: &str, uid: Option<&Uid>) {
        if let Some(uid) = uid {
            self.and_equal(attribute, Some(Value::Text(uid.as_str().to_owned())));
            return;
        }
        let empty = Value::Text(String::new());
        let [name, empty] = self.name_and_value(attribute, attribute, empty);
        self.and(&format!("NOT ({name} > {empty})"));
    }

    /// The version is this one. 0: the attribute is missing, not a number, or below 1.
    fn and_version(&mut self, version: u64) {
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        if version > 0 {
            self.and_whole(item::VERSION, version);
            return;
        }
        let [name, one] = self.name_and_value(item::VERSION, "first", Value::Number("1".into()));
        self.and(&format!("NOT ({name} >= {one})"));
    }

    /// The time is this one. `None`: the attribute is missing or not a number.
    fn and_time(&mut self, attribute: &str, time: Option<i64>) {
        if let Some(time) = time {
            self.and_whole(attribute, time);
            return;
        }
        let number = Value::Text("N".to_owned());
        let [name, number] = self.name_and_value(attribute, "number", number);
        self.and(&format!("NOT attribute_type({name}, {number})"));
    }

    /// The attribute, rounded down within `i64`, is `whole`. Reads round numbers in the same way.
    fn and_whole(&mut self, attribute: &str, whole: i64) {
        let number = |number: i64| Value::Number(number.to_string());
        if whole > i64::MIN {
            let [name, least] = self.name_and_value(attribute, attribute, number(whole));
            self.and(&format!("{name} >= {least}"));
        }
        if whole < i64::MAX {
            let next = format!("{attribute}_next");
            let [name, next] = self.name_and_value(attribute, &next, number(whole + 1));
            self.and(&format!("{name} < {next}"));
        }
    }

    /// The state is this one. As in reads, any state other than these is a suspension.
    fn and_state(&mut self, state: State, deletion: Option<SoftDeletion>) {
        let deleted = Value::Text(item::SOFT_DELETED.to_owned());
        if deletion.is_some() {
            self.and_equal(item::STATE, Some(deleted));
            return;
        }
        let active = Value::Text(State::Active.as_str().to_owned());
        let [name, active] = self.name_and_value(item::STATE, "active", active);
        match state {
            State::Active => {
                self.and(&format!(
                    "(attribute_not_exists({name}) OR {name} = {active})"
                ));
            }
            State::Suspended => {
                let tombstone = Value::Text(item::TOMBSTONE.to_owned());
                let [_, tombstone] = self.name_and_value(item::STATE, "tombstone", tombstone);
                let [_, deleted] = self.name_and_value(item::STATE, "deleted", deleted);
                self.and(&format!(
                    "attribute_exists({name}) AND NOT {name} IN ({active}, {tombstone}, {deleted})"
                ));
            }
        }
    }

    /// The role is this one. `None`: as in reads, any unknown role.
    fn and_role(&mut self, role: Option<Role>) {
        let text = |role: Role| Value::Text(role.as_str().to_owned());
        if let Some(role) = role {
            self.and_equal(item::ROLE, Some(text(role)));
            return;
        }
        for role in Role::ALL {
            let [name, known] = self.name_and_value(item::ROLE, role.as_str(), text(role));
            self.and(&format!("NOT {name} = {known}"));
        }
    }

    /// The placeholders of an attribute's name and of a value.
    fn name_and_value(&mut self, attribute: &str, value_name: &str, value: Value) -> [String; 2] {
        let (name, placeholder) = (format!("#{attribute}"), format!(":{value_name}"));
        let names = self.names.get_or_insert_default();
        names.insert(name.clone(), attribute.to_owned());
        let values = self.values.get_or_insert_default();
        values.insert(placeholder.clone(), to_attribute(value));
        [name, placeholder]
    }

    fn and(&mut self, clause: &str) {
        if !self.expression.is_empty() {
            self.expression.push_str(" AND ");
        }
        self.expression.push_str(clause);
    }
}
