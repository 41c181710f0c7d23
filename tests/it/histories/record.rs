//! What clients asked, and what they were told.

use std::time::Instant;

use account_service::proto::account_v1::{Role, State};

/// Names of users, of organizations and of e-mail addresses: few, so that operations
/// meet.
pub const USERS: usize = 2;
pub const ORGANIZATIONS: usize = 2;
pub const ADDRESSES: usize = 2;

/// A part of a user's profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    First,
    Last,
}

/// What was asked. Users and organizations by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    CreateUser(usize),
    DeleteUser(usize),
    SetUserState(usize, State),
    Update(usize, Part, u8),
    /// Claims an address, or gives up whichever the user has.
    SetEmail(usize, Option<usize>),
    GetUser(usize),
    CreateOrganization(usize),
    DeleteOrganization(usize),
    SetOrganizationState(usize, State),
    Add(usize, usize, Role),
    ChangeRole(usize, usize, Role),
    Remove(usize, usize),
    /// By the platform.
    Transfer(usize, usize),
    Check(usize, usize),
}

/// What a read shows of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Profile {
    pub state: State,
    pub first: u8,
    pub last: u8,
}

/// What was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Told {
    /// It was done.
    Done,
    /// The user's role in the organization.
    IsMember(Option<Role>),
    /// The user.
    IsUser(Option<Profile>),
    /// There is such a user, organization, member or claim already.
    Exists,
    /// There is no such user.
    NoUser,
    /// There is no such organization.
    NoOrganization,
    /// There is no such member.
    NoMember,
    /// The Owner who acts may not.
    NotPermitted,
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
    /// Whether the operation only reads.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Check(..) | Self::GetUser(_))
    }

    /// Whether the operation concerns the user's role in the organization.
    pub fn concerns(self, organization: usize, user: usize) -> bool {
        match self {
            Self::CreateUser(of)
            | Self::DeleteUser(of)
            | Self::SetUserState(of, _)
            | Self::Update(of, ..)
            | Self::SetEmail(of, _)
            | Self::GetUser(of) => of == user,
            Self::CreateOrganization(at)
            | Self::DeleteOrganization(at)
            | Self::SetOrganizationState(at, _) => at == organization,
            Self::Add(at, of, _)
            | Self::ChangeRole(at, of, _)
            | Self::Remove(at, of)
            | Self::Transfer(at, of)
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
