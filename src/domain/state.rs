//! The state of a user or an organization: active or suspended.

/// Whether the memberships of a user or an organization count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum State {
    /// They count.
    #[default]
    Active,
    /// They are kept, and do not count.
    Suspended,
}

impl State {
    /// Active only if both are active.
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
