//! E-mail addresses, as far as it takes to tell them apart.

use std::{fmt, sync::Arc};

use super::{NameError, names::check_characters};

/// Most characters of an address, a limit of SMTP.
pub const EMAIL_MAX_LEN: usize = 254;

/// An e-mail address: `local@domain` in printable ASCII without space and `#`.
/// Kept as it was given; two that differ in case only are the same address.
#[derive(Clone)]
pub struct Email(Arc<str>);

impl Email {
    /// Accepts an address.
    ///
    /// # Errors
    /// The first rule that the address breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        const ALLOWED: &str = "printable ASCII characters without space and '#'";
        check_characters(text, EMAIL_MAX_LEN, ALLOWED, |found| {
            found.is_ascii_graphic() && found != '#'
        })?;
        match text.split_once('@') {
            Some((local, domain))
                if !local.is_empty() && !domain.is_empty() && !domain.contains('@') =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(NameError::NoEmail),
        }
    }

    /// The address as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address in the form that is the same for all ways to write it.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.0.to_ascii_lowercase()
    }

    /// Whether both are the same address.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

/// As written: addresses that are the same may still be written differently.
impl PartialEq for Email {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Email {}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an e-mail address")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_as_given_and_compared_without_case() {
        let email = Email::parse("Olivia.Smith@Example.com").unwrap();
        assert_eq!(email.as_str(), "Olivia.Smith@Example.com");
        assert_eq!(email.canonical(), "olivia.smith@example.com");
        assert!(email.is_same(&Email::parse("olivia.SMITH@example.com").unwrap()));
        // Log lines do not hold it.
        assert_eq!(format!("{email:?}"), "an e-mail address");
        let longest = format!("o@{}", "x".repeat(EMAIL_MAX_LEN - 2));
        Email::parse(&longest).unwrap();
        let too_long = format!("{longest}x");
        for text in [
            "", "o", "@", "o@", "@x", "o@x@y", "o o@x", "o#@x", "ö@x", &too_long,
        ] {
            Email::parse(text).unwrap_err();
        }
    }
}
