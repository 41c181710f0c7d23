//! Values that at most one user, or one organization, has.

use super::{Email, ExternalId, ProfileId, Record};

/// A value that at most one record has.
#[derive(Debug, Clone)]
pub enum UniqueValue {
    /// The e-mail address of a user.
    Email(Email),
    /// The external id of a user.
    UserExternalId(ExternalId),
    /// The external id of an organization.
    OrganizationExternalId(ExternalId),
}

/// Spellings of the same e-mail address are equal.
impl PartialEq for UniqueValue {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Email(one), Self::Email(other)) => one.is_same(other),
            (Self::UserExternalId(one), Self::UserExternalId(other))
            | (Self::OrganizationExternalId(one), Self::OrganizationExternalId(other)) => {
                one == other
            }
            _ => false,
        }
    }
}

impl Eq for UniqueValue {}

impl ProfileId {
    /// Whether a record is of this incarnation, and still has the value.
    #[must_use]
    pub fn has(&self, record: &Record, value: &UniqueValue) -> bool {
        Self::of(record).as_ref() == Some(self) && record.unique_values().contains(value)
    }
}

impl Record {
    /// The values that only this record may have.
    #[must_use]
    pub fn unique_values(&self) -> Vec<UniqueValue> {
        let mut values = Vec::new();
        match self {
            Self::User(user) => {
                values.extend(user.email.clone().map(UniqueValue::Email));
                let id = user.external_id.clone();
                values.extend(id.map(UniqueValue::UserExternalId));
            }
            Self::Organization(organization) => {
                let id = organization.external_id.clone();
                values.extend(id.map(UniqueValue::OrganizationExternalId));
            }
            Self::Membership(_) => {}
        }
        values
    }
}
