//! Records in lines of JSON: users, organizations and memberships, as the contract defines them.

use prost::Message;
use prost_reflect::DynamicMessage;
use serde_json::{Map, Value};

use super::contract::{Contract, from_json, to_json};
use crate::{
    error_chain::describe,
    proto::account_v1::{Membership, Organization, User},
};

/// A record.
#[derive(Debug, Clone, PartialEq)]
pub enum Exported {
    /// A user.
    User(User),
    /// An organization.
    Organization(Organization),
    /// A membership.
    Membership(Membership),
}

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExportedKind {
    /// A user.
    User,
    /// An organization.
    Organization,
    /// A membership.
    Membership,
}

impl ExportedKind {
    /// The name in a line, and of the message.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::User => ("user", "User"),
            Self::Organization => ("organization", "Organization"),
            Self::Membership => ("membership", "Membership"),
        }
    }
}

impl Exported {
    /// Its kind.
    pub fn kind(&self) -> ExportedKind {
        match self {
            Self::User(_) => ExportedKind::User,
            Self::Organization(_) => ExportedKind::Organization,
            Self::Membership(_) => ExportedKind::Membership,
        }
    }

    /// Reads a line.
    ///
    /// # Errors
    /// The reason: the line is no object with one record.
    pub fn parse(contract: &Contract, line: &str) -> Result<Self, String> {
        let object: Map<String, Value> =
            serde_json::from_str(line).map_err(|error| error.to_string())?;
        let mut entries = object.into_iter();
        let (Some((name, value)), None) = (entries.next(), entries.next()) else {
            return Err("must be an object with one record".to_owned());
        };
        let kinds = [
            ExportedKind::User,
            ExportedKind::Organization,
            ExportedKind::Membership,
        ];
        let kind = kinds.into_iter().find(|kind| kind.names().0 == name);
        let kind = kind.ok_or_else(|| format!("{name:?} is no kind of record"))?;
        let message = from_json(contract.message(kind.names().1)?, value)?;
        let bytes = message.encode_to_vec();
        let bytes = bytes.as_slice();
        let record = match kind {
            ExportedKind::User => User::decode(bytes).map(Self::User),
            ExportedKind::Organization => Organization::decode(bytes).map(Self::Organization),
            ExportedKind::Membership => Membership::decode(bytes).map(Self::Membership),
        };
        record.map_err(|error| describe(&error))
    }

    /// The record as a line, without its end.
    ///
    /// # Errors
    /// A value has no form in JSON.
    pub fn line(&self, contract: &Contract) -> Result<String, String> {
        let (name, message) = self.kind().names();
        let bytes = match self {
            Self::User(user) => user.encode_to_vec(),
            Self::Organization(organization) => organization.encode_to_vec(),
            Self::Membership(membership) => membership.encode_to_vec(),
        };
        let message = DynamicMessage::decode(contract.message(message)?, bytes.as_slice());
        let json = to_json(&message.map_err(|error| describe(&error))?)?;
        Ok(Value::Object(Map::from_iter([(name.to_owned(), json)])).to_string())
    }
}
