//! The calls of clients, and their outcomes.

use std::time::Instant;

use account_service::proto::account_v1::{Role, State};

/// The numbers of users, of organizations and of e-mail addresses: small, so that
/// operations conflict.
pub const USERS: usize = 2;
pub const ORGANIZATIONS: usize = 2;
pub const ADDRESSES: usize = 2;

/// A part of a user's profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    First,
    Last,
}

/// A call. Users, organizations and addresses have numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    CreateUser(usize),
    DeleteUser(usize),
    /// A deletion that can be undone.
    DeleteUserSoftly(usize),
    UndeleteUser(usize),
    SetUserState(usize, State),
    Update(usize, Part, u8),
    /// Claims an address, or releases the user's address.
    SetEmail(usize, Option<usize>),
    GetUser(usize),
    CreateOrganization(usize),
    DeleteOrganization(usize),
    /// A deletion that can be undone.
    DeleteOrganizationSoftly(usize),
    UndeleteOrganization(usize),
    SetOrganizationState(usize, State),
    Add(usize, usize, Role),
    ChangeRole(usize, usize, Role),
    Remove(usize, usize),
    /// By the platform.
    Transfer(usize, usize),
    Check(usize, usize),
}

/// The parts of a user that a read shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Profile {
    pub state: State,
    pub first: u8,
    pub last: u8,
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The change was applied.
    Done,
    /// The user's role in the organization.
    IsMember(Option<Role>),
    /// The user.
    IsUser(Option<Profile>),
    /// The user, organization, membership or claim exists already.
    Exists,
    /// The user does not exist.
    NoUser,
    /// The organization does not exist.
    NoOrganization,
    /// The membership does not exist.
    NoMember,
    /// The acting Owner has no permission.
    NotPermitted,
    /// The call had no effect.
    Nothing,
    /// The change may have been applied.
    Unknown,
}

/// One operation. Times are nanoseconds since the history began.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub call: Call,
    pub outcome: Outcome,
    pub began: u128,
    pub ended: u128,
}

impl Call {
    /// Whether the operation only reads.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Check(..) | Self::GetUser(_))
    }

    /// Whether the operation concerns the user's role in the organization.
    pub fn concerns(self, organization: usize, user: usize) -> bool {
        match self {
            Self::CreateUser(of)
            | Self::DeleteUser(of)
            | Self::DeleteUserSoftly(of)
            | Self::UndeleteUser(of)
            | Self::SetUserState(of, _)
            | Self::Update(of, ..)
            | Self::SetEmail(of, _)
            | Self::GetUser(of) => of == user,
            Self::CreateOrganization(at)
            | Self::DeleteOrganization(at)
            | Self::DeleteOrganizationSoftly(at)
            | Self::UndeleteOrganization(at)
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
