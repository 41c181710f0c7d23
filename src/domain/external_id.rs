//! The ids of users and organizations in another system, such as an identity provider.

use std::sync::Arc;

use super::{NameError, names::check_no_control};

/// Most bytes of an external id.
pub const EXTERNAL_ID_MAX_BYTES: usize = 256;

/// The id of a user or an organization in another system: 1 to [`EXTERNAL_ID_MAX_BYTES`] bytes without
/// control characters. Unlike e-mail addresses, ids that differ in case are different.
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalId(Arc<str>);

impl ExternalId {
    /// Accepts an external id.
    ///
    /// # Errors
    /// The first rule that the id breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_no_control(text, EXTERNAL_ID_MAX_BYTES)?;
        Ok(Self(text.into()))
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Without the id, which may name a person.
impl std::fmt::Debug for ExternalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an external id")
    }
}
