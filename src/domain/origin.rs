//! The origin of a change: its actor, its caller and its request.

use std::sync::Arc;

use super::Username;

/// The actor of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A user, who needs a role to change an organization.
    User(Username),
    /// The platform, which may change everything.
    Platform,
}

impl Actor {
    /// The user, if it is one.
    #[must_use]
    pub fn user(&self) -> Option<&Username> {
        match self {
            Self::User(username) => Some(username),
            Self::Platform => None,
        }
    }
}

/// The origin of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The actor.
    pub actor: Actor,
    /// The calling service. `None`: callers have no names, or a user called.
    pub caller: Option<ServiceName>,
    /// The id of the request, if it had one.
    pub request_id: Option<RequestId>,
}

impl Origin {
    /// The origin of a change that the service makes by itself.
    #[must_use]
    pub fn background() -> Self {
        Self {
            actor: Actor::Platform,
            caller: None,
            request_id: None,
        }
    }
}

/// The name of a calling service in the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    /// Wraps a name.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A change that this service made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Identity of the change, shared by all records that changed together.
    pub change_id: String,
    /// Its origin.
    pub origin: Origin,
}

/// The id of a request: a UUID in lower-case text form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

/// The text is not a request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a UUID such as 9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5e, and not nil")]
pub struct NoRequestId;

impl RequestId {
    const LEN: usize = 36;
    const HYPHENS: [usize; 4] = [8, 13, 18, 23];

    /// Parses a UUID in the usual text form, in either case.
    ///
    /// # Errors
    /// The text is not such a UUID, or is the nil UUID, which names no request.
    pub fn parse(text: &str) -> Result<Self, NoRequestId> {
        let is_part = |(at, byte): (usize, u8)| match byte {
            b'-' => Self::HYPHENS.contains(&at),
            byte => byte.is_ascii_hexdigit() && !Self::HYPHENS.contains(&at),
        };
        let is_uuid = text.len() == Self::LEN && text.bytes().enumerate().all(is_part);
        let is_nil = text.bytes().all(|byte| b"0-".contains(&byte));
        if !is_uuid || is_nil {
            return Err(NoRequestId);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A request with an id, which has its effect once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its id.
    pub id: RequestId,
    /// The caller, as a digest: each caller has its own request ids. `None`: callers have no
    /// names, and share the request ids.
    pub scope: Option<Digest>,
    /// The fingerprint, which distinguishes requests with the same id.
    pub fingerprint: Digest,
}

/// A digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(String);

impl Digest {
    /// Wraps a digest in text form.
    #[must_use]
    pub fn from_text(text: String) -> Self {
        Self(text)
    }

    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_uuid_and_its_case_does_not_matter() {
        let id = RequestId::parse("9B2F1D0C-5a7e-4c58-8d0e-6f1a2b3c4d5e").unwrap();
        assert_eq!(id.as_str(), "9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5e");
        for text in [
            "",
            "9b2f1d0c5a7e4c588d0e6f1a2b3c4d5e",
            "9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5",
            "9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5g",
            "9b2f1d0c-5a7e-4c58-8d0e6-f1a2b3c4d5e",
            "00000000-0000-0000-0000-000000000000",
            "9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4dé",
        ] {
            RequestId::parse(text).unwrap_err();
        }
    }
}
