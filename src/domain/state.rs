//! Whether a user or an organization takes part.

/// What becomes of the memberships of a user or an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum State {
    /// They count.
    #[default]
    Active,
    /// They are kept, and do not count.
    Suspended,
}

impl State {
    /// All states.
    pub const ALL: [Self; 2] = [Self::Active, Self::Suspended];

    /// The state of what takes part only while both others do.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Active, Self::Active) => Self::Active,
            _ => Self::Suspended,
        }
    }

    /// The name under which the state is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
        }
    }
}

/// A stored state is none of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the state is neither ACTIVE nor SUSPENDED")]
pub struct UnknownState;

impl std::str::FromStr for State {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(UnknownState)
    }
}
