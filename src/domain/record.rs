//! Records as the table holds them: keys, versions and times, without their encoding.

use std::{
    fmt,
    str::Utf8Error,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Labels, Made, Membership, NameError, Organization, OrganizationName, SoftDeletion, User,
    Username, names::check_no_control,
};

/// Most bytes of a uid that can be looked up.
pub const UID_MAX_BYTES: usize = 64;
/// Length of a UUID in text form.
const UUID_LEN: usize = 36;
/// Approximate bytes of a label besides its key and value.
const LABEL_OVERHEAD: usize = 64;

/// Identity of one incarnation of a name, a UUID in text form.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Uid(Text);

/// Uids of this service are UUIDs and not on the heap, because every check compares four uids.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Text {
    Uuid([u8; UUID_LEN]),
    Other(Arc<str>),
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Uid").field(&self.as_str()).finish()
    }
}

impl Uid {
    /// Wraps an identity that was generated or stored. `None` for the empty text, which means
    /// that no uid is stored.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| {
            Self(match text.as_bytes().try_into() {
                Ok(bytes) => Text::Uuid(bytes),
                Err(_) => Text::Other(text.into()),
            })
        })
    }

    /// Accepts a uid to look up: 1 to [`UID_MAX_BYTES`] bytes without control characters.
    ///
    /// # Errors
    /// The first rule that the uid breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_no_control(text, UID_MAX_BYTES)?;
        Self::from_text(text).ok_or(NameError::Empty)
    }

    /// The same as [`Self::from_text`], for bytes.
    ///
    /// # Errors
    /// The bytes are not UTF-8.
    pub fn from_utf8(bytes: &[u8]) -> Result<Option<Self>, Utf8Error> {
        match bytes.try_into() {
            Ok(uuid) if bytes.is_ascii() => Ok(Some(Self(Text::Uuid(uuid)))),
            _ => str::from_utf8(bytes).map(Self::from_text),
        }
    }

    /// The identity in text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            // Always valid: made from a text.
            Text::Uuid(bytes) => str::from_utf8(bytes).unwrap_or_default(),
            Text::Other(text) => text,
        }
    }
}

/// Milliseconds since the Unix epoch, by the clock of the replica that wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The time now, at least 1970.
    #[must_use]
    pub fn now() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    /// Whole seconds since the Unix epoch, rounded down.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// The time this span before.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(millis))
    }

    /// The time after this span.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

/// Version and times of a record. All absent for records that were in the table
/// before this service served it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Number of writes by this service that the record has seen.
    pub version: u64,
    /// When the record was created.
    pub create_time: Option<Timestamp>,
    /// When the record was last changed.
    pub update_time: Option<Timestamp>,
}

impl Stamp {
    /// The stamp of a record created at `now`.
    #[must_use]
    pub fn created(now: Timestamp) -> Self {
        Self {
            version: 1,
            create_time: Some(now),
            update_time: Some(now),
        }
    }

    /// Identifies this version among all records that the name ever had. The times distinguish
    /// a new record from a deleted one, because versions begin again at 1.
    #[must_use]
    pub fn etag(&self) -> Etag {
        let millis = |time: Option<Timestamp>| time.map_or(0, |Timestamp(millis)| millis);
        let (created, updated) = (millis(self.create_time), millis(self.update_time));
        Etag(format!("{:x}-{created:x}-{updated:x}", self.version))
    }

    /// The stamp of the same record after a change at `now`.
    #[must_use]
    pub fn changed(self, now: Timestamp) -> Self {
        Self {
            version: self.version.saturating_add(1),
            update_time: Some(now),
            ..self
        }
    }
}

/// Identifies one version of a record. Opaque to callers: etags are only compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etag(String);

impl Etag {
    /// Wraps the text of a caller. `None` for the empty text, which means any version.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identifies one record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// A user.
    User(Username),
    /// An organization.
    Organization(OrganizationName),
    /// The membership of a user in an organization.
    Membership(OrganizationName, Username),
}

/// The name of a profile: of a user or an organization.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ProfileName {
    /// A user.
    User(Username),
    /// An organization.
    Organization(OrganizationName),
}

impl ProfileName {
    /// The key of the profile.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::User(username) => Key::User(username.clone()),
            Self::Organization(name) => Key::Organization(name.clone()),
        }
    }
}

/// One incarnation of a user or an organization.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProfileId {
    /// The name.
    pub name: ProfileName,
    /// The identity. `None` if it has no stored uid.
    pub uid: Option<Uid>,
}

impl ProfileId {
    /// The incarnation of a user or an organization. `None` for a membership.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        Some(Self {
            name: record.profile_name()?,
            uid: record.uid().cloned(),
        })
    }

    /// The organization of a membership.
    #[must_use]
    pub fn organization_of(membership: &Membership) -> Self {
        Self {
            name: ProfileName::Organization(membership.organization_name.clone()),
            uid: membership.organization_uid.clone(),
        }
    }

    /// The member of a membership.
    #[must_use]
    pub fn member_of(membership: &Membership) -> Self {
        Self {
            name: ProfileName::User(membership.member_username.clone()),
            uid: membership.member_uid.clone(),
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A user.
    User(User),
    /// An organization.
    Organization(Organization),
    /// A membership.
    Membership(Membership),
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The record is new.
    Created,
    /// The record has other values.
    Updated,
    /// The record is gone.
    Deleted,
    /// The membership has ended by its time of expiry. Its item is removed later.
    Expired,
}

/// A change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordChange {
    /// The record's key.
    pub key: Key,
    /// The kind of the change.
    pub kind: ChangeKind,
    /// The record before. `None` also if it was omitted.
    pub before: Option<Record>,
    /// The record after. `None` also if it was omitted.
    pub after: Option<Record>,
    /// The time, by the clock of the replica that made the change, or else by the table's
    /// clock.
    pub time: Option<Timestamp>,
    /// The change of this service. `None` if the record was changed past it.
    pub made: Option<Made>,
}

impl Record {
    /// The key that names this record.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::User(user) => Key::User(user.username.clone()),
            Self::Organization(organization) => {
                Key::Organization(organization.organization_name.clone())
            }
            Self::Membership(membership) => Key::Membership(
                membership.organization_name.clone(),
                membership.member_username.clone(),
            ),
        }
    }

    /// Version and times.
    #[must_use]
    pub fn stamp(&self) -> &Stamp {
        match self {
            Self::User(user) => &user.stamp,
            Self::Organization(organization) => &organization.stamp,
            Self::Membership(membership) => &membership.stamp,
        }
    }

    /// The name of a user or an organization. `None` for a membership.
    #[must_use]
    pub fn profile_name(&self) -> Option<ProfileName> {
        match self {
            Self::User(user) => Some(ProfileName::User(user.username.clone())),
            Self::Organization(organization) => Some(ProfileName::Organization(
                organization.organization_name.clone(),
            )),
            Self::Membership(_) => None,
        }
    }

    /// The incarnation of a user or an organization. `None` if it has no stored uid, and for
    /// memberships.
    #[must_use]
    pub fn uid(&self) -> Option<&Uid> {
        match self {
            Self::User(user) => user.uid.as_ref(),
            Self::Organization(organization) => organization.uid.as_ref(),
            Self::Membership(_) => None,
        }
    }

    /// The deletion of a user or an organization that can be undone. `None` for memberships.
    #[must_use]
    pub fn deletion(&self) -> Option<SoftDeletion> {
        match self {
            Self::User(user) => user.deletion,
            Self::Organization(organization) => organization.deletion,
            Self::Membership(_) => None,
        }
    }

    /// Approximate bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let labels = |labels: &Labels| -> usize {
            let labels = labels.iter();
            labels
                .map(|(key, value)| key.len() + value.len() + LABEL_OVERHEAD)
                .sum()
        };
        let on_heap = match self {
            Self::User(user) => {
                let names = [&user.first_name, &user.last_name, &user.display_name];
                let names: usize = names.into_iter().map(|name| name.as_str().len()).sum();
                let email = user
                    .email
                    .as_ref()
                    .map_or(0, |email| email.as_str().len() * 2);
                let external_id = user.external_id.as_ref();
                user.username.as_str().len()
                    + names
                    + email
                    + external_id.map_or(0, |id| id.as_str().len())
                    + labels(&user.labels)
            }
            Self::Organization(organization) => {
                organization.organization_name.as_str().len()
                    + organization.founding_user.len()
                    + organization.display_name.as_str().len()
                    + organization
                        .external_id
                        .as_ref()
                        .map_or(0, |id| id.as_str().len())
                    + labels(&organization.labels)
            }
            Self::Membership(membership) => {
                membership.organization_name.as_str().len()
                    + membership.member_username.as_str().len()
                    + membership.adding_user.as_ref().map_or(0, String::len)
                    + labels(&membership.labels)
            }
        };
        size_of::<Self>() + on_heap
    }

    /// The user, if this is one.
    #[must_use]
    pub fn into_user(self) -> Option<User> {
        match self {
            Self::User(user) => Some(user),
            _ => None,
        }
    }

    /// The organization, if this is one.
    #[must_use]
    pub fn into_organization(self) -> Option<Organization> {
        match self {
            Self::Organization(organization) => Some(organization),
            _ => None,
        }
    }

    /// The membership, if this is one.
    #[must_use]
    pub fn into_membership(self) -> Option<Membership> {
        match self {
            Self::Membership(membership) => Some(membership),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_any_text_that_is_not_empty() {
        let usual = "9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5e";
        // Texts as long as a UUID: in characters, and in bytes.
        let (long, wide) = ("x".repeat(UUID_LEN), "é".repeat(UUID_LEN / 2));
        for text in ["1", usual, &long, &wide, &long.repeat(2)] {
            let uid = Uid::from_text(text).unwrap();
            assert_eq!(uid.as_str(), text);
            assert_eq!(Uid::from_utf8(text.as_bytes()), Ok(Some(uid.clone())));
            assert_eq!(format!("{uid:?}"), format!("Uid({text:?})"));
        }
        assert_eq!(Uid::from_text(""), None);
        assert_eq!(Uid::from_utf8(b""), Ok(None));
        Uid::from_utf8(&[0xff; UUID_LEN]).unwrap_err();
        Uid::from_utf8(&[0xff]).unwrap_err();
    }
}
