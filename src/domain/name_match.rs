//! Matches of names: all, those with a prefix, or one.

/// The names that are matched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NameMatch {
    /// All names.
    #[default]
    All,
    /// Names that begin with this text.
    Prefix(String),
    /// This name.
    Exactly(String),
}

impl NameMatch {
    /// Whether a name is matched.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => name.starts_with(prefix),
            Self::Exactly(exactly) => name == exactly,
        }
    }
}
