//! Erasure: the removal of a deleted user's name from all that the service stores.

use std::{fmt, time::Duration};

use super::{
    Key, Membership, Organization, Record, RecordChange, RequestId, Timestamp, Uid, User, Username,
};

/// Identifies an erasure: a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErasureId(u128);

impl ErasureId {
    /// Wraps the bits of a UUID.
    #[must_use]
    pub fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// The id in its text form. `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = RequestId::parse(text).ok()?.as_str().replace('-', "");
        u128::from_str_radix(&digits, 16).ok().map(Self)
    }
}

impl fmt::Display for ErasureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
        f.write_str(&parts.join("-"))
    }
}

/// The steps of an erasure, in order. Each may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErasurePhase {
    /// Records.
    Table,
    /// Outcomes of requests, and other items. After the records: until then, requests may store outcomes
    /// that have the name.
    Outcomes,
    /// The change log.
    Log,
    /// The user itself.
    User,
    /// The deletion of the user in the change log, and its counts.
    Rest,
    /// Nothing is left to do.
    Done,
}

impl ErasurePhase {
    /// All phases with the names under which they are stored.
    pub const NAMES: [(Self, &str); 6] = [
        (Self::Table, "TABLE"),
        (Self::Outcomes, "OUTCOMES"),
        (Self::Log, "LOG"),
        (Self::User, "USER"),
        (Self::Rest, "REST"),
        (Self::Done, "DONE"),
    ];
}

/// An erasure and its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// Its id.
    pub id: ErasureId,
    /// The user. `None` once it is done.
    pub user: Option<ErasedUser>,
    /// When it began.
    pub create_time: Timestamp,
    /// The present phase.
    pub phase: ErasurePhase,
    /// When the phase began.
    pub phase_time: Timestamp,
    /// Items that were examined.
    pub examined: u64,
    /// Items that were changed or removed. One may be counted more than once.
    pub changed: u64,
}

/// A user that is erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErasedUser {
    /// The name.
    pub username: Username,
    /// The incarnation. `None` if it has no stored uid.
    pub uid: Option<Uid>,
}

impl Erasure {
    /// The erasure of a user, from `now` on.
    #[must_use]
    pub fn of(user: &User, id: ErasureId, now: Timestamp) -> Self {
        Self {
            id,
            user: Some(ErasedUser {
                username: user.username.clone(),
                uid: user.uid.clone(),
            }),
            create_time: now,
            phase: ErasurePhase::Table,
            phase_time: now,
            examined: 0,
            changed: 0,
        }
    }

    /// The name that replaces that of the user.
    #[must_use]
    pub fn pseudonym(&self) -> Username {
        Username::of_erased(self.id)
    }
}

/// A place where the name of an erased user remains after the erasure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remainder {
    /// The place.
    pub place: &'static str,
    /// The longest time after the end of the erasure.
    pub retention: Duration,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The places where the name of an erased user remains.
pub const REMAINDERS: [Remainder; 6] = [
    Remainder {
        place: "tombstones of the user and of what the user deleted, and the task of the clean-up",
        retention: HOUR.saturating_mul(2),
    },
    Remainder {
        place: "entries of the cache and of the memory of replicas",
        retention: DAY,
    },
    Remainder {
        place: "the stream of the table",
        retention: DAY,
    },
    Remainder {
        place: "the deletions of the user's memberships, kept for two days, and then until the table removes them",
        retention: DAY.saturating_mul(4),
    },
    Remainder {
        place: "changes older than 7 days, until the table removes them, and change logs before and after an interruption",
        retention: DAY.saturating_mul(10),
    },
    Remainder {
        place: "backups for point-in-time recovery of the table",
        retention: DAY.saturating_mul(35),
    },
];

/// The replacement of a name.
#[derive(Debug, Clone, Copy)]
pub struct Pseudonymization<'a> {
    /// The name.
    pub username: &'a Username,
    /// Its replacement.
    pub pseudonym: &'a Username,
}

impl Pseudonymization<'_> {
    fn of(self, name: &Username) -> Username {
        if name == self.username {
            self.pseudonym.clone()
        } else {
            name.clone()
        }
    }

    fn of_text(self, name: &str) -> String {
        if name == self.username.as_str() {
            self.pseudonym.to_string()
        } else {
            name.to_owned()
        }
    }

    /// A record without the name. The user's own record has no other personal data either.
    #[must_use]
    pub fn of_record(self, record: &Record) -> Record {
        match record {
            Record::User(user) if user.username == *self.username => Record::User(User {
                username: self.pseudonym.clone(),
                ..user.clone().without_profile()
            }),
            Record::User(_) => record.clone(),
            Record::Organization(organization) => Record::Organization(Organization {
                founding_user: self.of_text(&organization.founding_user),
                ..organization.clone()
            }),
            Record::Membership(membership) => Record::Membership(Membership {
                member_username: self.of(&membership.member_username),
                adding_user: membership.adding_user.as_deref().map(|it| self.of_text(it)),
                ..membership.clone()
            }),
        }
    }

    /// A change without the name.
    #[must_use]
    pub fn of_change(self, change: &RecordChange) -> RecordChange {
        let mut change = change.clone();
        change.key = match &change.key {
            Key::User(username) => Key::User(self.of(username)),
            Key::Organization(name) => Key::Organization(name.clone()),
            Key::Membership(name, member) => Key::Membership(name.clone(), self.of(member)),
        };
        for image in [&mut change.before, &mut change.after] {
            *image = image.as_ref().map(|record| self.of_record(record));
        }
        if let Some(made) = &mut change.made
            && let super::Actor::User(actor) = &mut made.origin.actor
        {
            *actor = self.of(actor);
        }
        change
    }
}

impl Record {
    /// Whether the record names a user, in its key or otherwise.
    #[must_use]
    pub fn names(&self, user: &Username) -> bool {
        match self {
            Self::User(found) => found.username == *user,
            Self::Organization(organization) => organization.founding_user == user.as_str(),
            Self::Membership(membership) => {
                membership.member_username == *user
                    || membership.adding_user.as_deref() == Some(user.as_str())
            }
        }
    }
}

impl User {
    /// The user without personal data but its name.
    #[must_use]
    pub fn without_profile(self) -> Self {
        Self {
            first_name: super::FreeText::default(),
            last_name: super::FreeText::default(),
            display_name: super::FreeText::default(),
            email: None,
            external_id: None,
            labels: super::Labels::default(),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_new_user_can_have_a_pseudonym() {
        let pseudonym = Username::of_erased(ErasureId::new(7));
        Username::parse_new(pseudonym.as_str()).unwrap_err();
        assert_eq!(Username::parse_existing(pseudonym.as_str()), Ok(pseudonym));
    }

    #[test]
    fn an_id_is_parsed_from_its_text_form() {
        let text = "0b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5e";
        let id = ErasureId::new(0x0b2f_1d0c_5a7e_4c58_8d0e_6f1a_2b3c_4d5e);
        assert_eq!(id.to_string(), text);
        assert_eq!(ErasureId::parse(&text.to_uppercase()), Some(id));
        assert_eq!(ErasureId::parse("oliviaowner"), None);
    }
}
