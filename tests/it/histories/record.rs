//! What clients asked, and what they were told.

use std::time::Instant;

use account_service::proto::account_v1::Role;

/// Names of users and of organizations: few, so that operations meet.
pub const USERS: usize = 2;
pub const ORGANIZATIONS: usize = 2;

/// What was asked. Users and organizations by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    CreateUser(usize),
    DeleteUser(usize),
    Add(usize, usize, Role),
    ChangeRole(usize, usize, Role),
    Remove(usize, usize),
    Check(usize, usize),
}

/// What was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Told {
    /// It was done.
    Done,
    /// The user's role in the organization.
    IsMember(Option<Role>),
    /// There is such a user, or such a member, already.
    Exists,
    /// There is no such user.
    NoUser,
    /// There is no such member.
    NoMember,
    /// Nothing was done.
    Nothing,
    /// It may have been done.
    Unknown,
}

/// One operation. Times are nanoseconds since the history began.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub what: What,
    pub told: Told,
    pub began: u128,
    pub ended: u128,
}

impl What {
    /// Whether the operation concerns the user's role in the organization.
    pub fn concerns(self, organization: usize, user: usize) -> bool {
        match self {
            Self::CreateUser(of) | Self::DeleteUser(of) => of == user,
            Self::Add(at, of, _)
            | Self::ChangeRole(at, of, _)
            | Self::Remove(at, of)
            | Self::Check(at, of) => (at, of) == (organization, user),
        }
    }
}

/// The clock of a history.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> u128 {
        self.0.elapsed().as_nanos()
    }
}
