//! Values that at most one user, or one organization, has.

use super::{Email, ExternalId, ProfileName, Record, Uid};

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

/// The record that has a unique value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The user or the organization.
    pub holder: ProfileName,
    /// Its incarnation. `None` if it has no stored uid.
    pub uid: Option<Uid>,
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

impl Claim {
    /// The claim of a user or an organization. `None` for a membership.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        Some(Self {
            holder: record.profile_name()?,
            uid: record.uid().cloned(),
        })
    }

    /// Whether the claim is of this record, and the record still has the value.
    #[must_use]
    pub fn is_of(&self, record: &Record, value: &UniqueValue) -> bool {
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
