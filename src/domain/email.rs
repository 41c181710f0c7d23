//! E-mail addresses, and their normal form.

use std::{fmt, sync::Arc};

use super::{NameError, names::check_characters};

/// Most characters of an address, a limit of SMTP.
pub const EMAIL_MAX_LEN: usize = 254;

/// Most characters of the part before the `@`, a limit of SMTP.
const LOCAL_MAX_LEN: usize = 64;
/// Most characters of a part of a domain between dots, a limit of the DNS.
const LABEL_MAX_LEN: usize = 63;

/// An e-mail address, with its original case. Addresses that differ only in case are the same.
#[derive(Clone)]
pub struct Email(Arc<str>);

impl Email {
    /// Accepts a new address of a user: RFC 5321's `Dot-string@Domain`, the
    /// form that mail systems use, without `#`. No quoted local parts, no address
    /// literals, no comments, no dot at the end.
    ///
    /// # Errors
    /// The first rule that the address breaks.
    pub fn parse_new(text: &str) -> Result<Self, NameError> {
        let email = Self::parse_existing(text)?;
        let (local, domain) = text.split_once('@').unwrap_or_default();
        if local.len() > LOCAL_MAX_LEN {
            return Err(NameError::LocalPart { max: LOCAL_MAX_LEN });
        }
        if local.split('.').all(is_atom) && domain.split('.').all(is_label) {
            Ok(email)
        } else {
            Err(NameError::NoEmail)
        }
    }

    /// Accepts an address of the table, or of a look-up: printable ASCII without space and
    /// `#`, with one `@` between two parts.
    ///
    /// # Errors
    /// The first rule that the address breaks.
    pub fn parse_existing(text: &str) -> Result<Self, NameError> {
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

    /// The address with its original case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The normal form, which is equal for all spellings of an address.
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

/// Whether a text is an `Atom` of RFC 5321.
fn is_atom(text: &str) -> bool {
    const SPECIAL: &[u8] = b"!$%&'*+-/=?^_`{|}~";
    let mut bytes = text.bytes();
    !text.is_empty() && bytes.all(|it| it.is_ascii_alphanumeric() || SPECIAL.contains(&it))
}

/// Whether a text is a part of a domain name: letters, digits and hyphens inside.
fn is_label(text: &str) -> bool {
    let mut bytes = text.bytes();
    let is_edged = |text: &str| text.starts_with('-') || text.ends_with('-');
    (1..=LABEL_MAX_LEN).contains(&text.len())
        && bytes.all(|it| it.is_ascii_alphanumeric() || it == b'-')
        && !is_edged(text)
}

/// Compares spellings: two spellings of the same address are unequal.
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
        let email = Email::parse_existing("Olivia.Smith@Example.com").unwrap();
        assert_eq!(email.as_str(), "Olivia.Smith@Example.com");
        assert_eq!(email.canonical(), "olivia.smith@example.com");
        assert!(email.is_same(&Email::parse_existing("olivia.SMITH@example.com").unwrap()));
        // Log lines do not contain the address.
        assert_eq!(format!("{email:?}"), "an e-mail address");
        let longest = format!("o@{}", "x".repeat(EMAIL_MAX_LEN - 2));
        Email::parse_existing(&longest).unwrap();
        let too_long = format!("{longest}x");
        for text in [
            "", "o", "@", "o@", "@x", "o@x@y", "o o@x", "o#@x", "ö@x", &too_long,
        ] {
            Email::parse_existing(text).unwrap_err();
        }
    }
    #[test]
    fn a_new_address_has_a_form_that_mail_systems_use() {
        let longest = format!("{}@x", "l".repeat(64));
        let long_label = format!("o@{}.com", "x".repeat(63));
        for text in [
            "bob@example.com",
            "Bob.O'Neil+news=1@sub-1.example.co.uk",
            "o@localhost",
            "!$%&'*+-/=?^_`{|}~@x",
            &longest,
            &long_label,
        ] {
            Email::parse_new(text).unwrap();
        }
        let too_long = format!("l{longest}");
        let too_long_label = format!("o@x{}.com", "x".repeat(63));
        for text in [
            "Bob@example.com.",
            "<a@x>",
            "mailto:a@x",
            "a,b@x",
            ".a@x",
            "a.@x",
            "a..b@x",
            "a@x..y",
            "a@.x",
            "a@-x",
            "a@x-.y",
            "a@x_y",
            "a@[127.0.0.1]",
            "\"a\"@x",
            "a(b)@x",
            "a@x,b@y",
            &too_long,
            &too_long_label,
        ] {
            Email::parse_new(text).unwrap_err();
        }
    }
}
