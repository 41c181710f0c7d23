//! Names of users and organizations, and free text. `parse_new` and `parse_existing` are
//! the only constructors.

use std::{fmt, sync::Arc};

use super::ErasureId;

/// Most characters of a new name.
pub const NEW_NAME_MAX_LEN: usize = 64;
/// Most bytes of a name of an existing record.
pub const EXISTING_NAME_MAX_BYTES: usize = 256;
/// Most bytes of a free text.
pub const FREE_TEXT_MAX_BYTES: usize = 256;

/// The reason why a name is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("must not be empty")]
    Empty,
    /// The name has more than `max` characters (bytes, for free text).
    #[error("must not be longer than {max}")]
    TooLong {
        /// The bound.
        max: usize,
    },
    /// The character at byte `at` is not allowed in this kind of name.
    #[error("has {found:?} at offset {at}; allowed are only {allowed}")]
    Character {
        /// The offending character.
        found: char,
        /// Its byte offset.
        at: usize,
        /// The allowed characters, in words.
        allowed: &'static str,
    },
    /// The text is no e-mail address.
    #[error("must be an e-mail address: local@domain")]
    NoEmail,
    /// The text has blanks only.
    #[error("must have a character that is not blank")]
    Blank,
    /// The local part of an e-mail address is too long.
    #[error("must not have more than {max} characters before the '@'")]
    LocalPart {
        /// The bound.
        max: usize,
    },
    /// The name starts or ends with a character that is allowed only inside.
    #[error("must start and end with a letter or a digit")]
    Edge,
}

/// A user's name, free of control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Username(Arc<str>);

/// An organization's name: like a [`Username`], but new names have no `.` and no `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrganizationName(Arc<str>);

impl Username {
    /// Accepts the name of a new user:
    /// `[a-z0-9]([a-z0-9._-]*[a-z0-9])?`, at most [`NEW_NAME_MAX_LEN`] long.
    ///
    /// # Errors
    /// The first rule that the name breaks.
    pub fn parse_new(name: &str) -> Result<Self, NameError> {
        const ALLOWED: &str = "a-z, 0-9, '.', '_' and '-'";
        parse_new(name, b"._-", ALLOWED).map(Self)
    }

    /// Accepts a name of the table, also of another writer: 1 to
    /// [`EXISTING_NAME_MAX_BYTES`] bytes without control characters. It fits into keys of
    /// the table and of the cache, which may use control characters as separators.
    ///
    /// # Errors
    /// The first rule that the name breaks.
    pub fn parse_existing(name: &str) -> Result<Self, NameError> {
        parse_existing(name).map(Self)
    }

    /// The name that replaces that of an erased user. A new user cannot have it.
    #[must_use]
    pub fn of_erased(erasure: ErasureId) -> Self {
        Self(format!("erased:{erasure}").into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl OrganizationName {
    /// Accepts the name of a new organization:
    /// `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, at most [`NEW_NAME_MAX_LEN`] long.
    ///
    /// # Errors
    /// The first rule that the name breaks.
    pub fn parse_new(name: &str) -> Result<Self, NameError> {
        const ALLOWED: &str = "a-z, 0-9 and '-'";
        parse_new(name, b"-", ALLOWED).map(Self)
    }

    /// Accepts the same names as [`Username::parse_existing`].
    ///
    /// # Errors
    /// The first rule that the name breaks.
    pub fn parse_existing(name: &str) -> Result<Self, NameError> {
        parse_existing(name).map(Self)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn parse_new(name: &str, inside_only: &[u8], allowed: &'static str) -> Result<Arc<str>, NameError> {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    check_characters(name, NEW_NAME_MAX_LEN, allowed, |found| {
        u8::try_from(found).is_ok_and(|byte| is_alphanumeric(&byte) || inside_only.contains(&byte))
    })?;
    let bytes = name.as_bytes();
    if !bytes.first().is_some_and(is_alphanumeric) || !bytes.last().is_some_and(is_alphanumeric) {
        return Err(NameError::Edge);
    }
    Ok(name.into())
}

fn parse_existing(name: &str) -> Result<Arc<str>, NameError> {
    check_no_control(name, EXISTING_NAME_MAX_BYTES)?;
    Ok(name.into())
}

/// Accepts 1 to `max` bytes without control characters.
pub(super) fn check_no_control(text: &str, max: usize) -> Result<(), NameError> {
    const ALLOWED: &str = "characters that are not control characters";
    check_characters(text, max, ALLOWED, |found| !found.is_control())
}

pub(super) fn check_characters(
    name: &str,
    max: usize,
    allowed: &'static str,
    is_allowed: impl Fn(char) -> bool,
) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    // Most names are valid ASCII, which is checked without decoding characters. The fold does
    // not end at the first invalid byte, so that several bytes are checked together.
    let bytes = name.bytes();
    let is_fine = bytes.fold(true, |is_fine, byte| {
        is_fine & byte.is_ascii() & is_allowed(char::from(byte))
    });
    let mut characters = name.char_indices();
    if !is_fine && let Some((at, found)) = characters.find(|(_, found)| !is_allowed(*found)) {
        return Err(NameError::Character { found, at, allowed });
    }
    if name.len() > max {
        return Err(NameError::TooLong { max });
    }
    Ok(())
}

/// A given, family or display name: text of at most [`FREE_TEXT_MAX_BYTES`]
/// bytes, without control characters. May be empty.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct FreeText(Arc<str>);

/// Characters that are invisible, or change the display of others: direction marks, characters
/// of width zero, line and paragraph separators, tags.
fn is_invisible(found: char) -> bool {
    matches!(found,
        '\u{ad}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'
        | '\u{200e}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

/// Joiners of width zero, which some scripts and emoji need.
fn is_joiner(found: char) -> bool {
    matches!(found, '\u{200c}'..='\u{200d}')
}

/// Whether a joiner is allowed between these texts.
fn may_join(before: &str, after: &str) -> bool {
    let joins = |neighbour: Option<char>| {
        neighbour.is_some_and(|it| !it.is_ascii() && !it.is_whitespace() && !is_joiner(it))
    };
    joins(before.chars().next_back()) && joins(after.chars().next())
}

/// Whether a character looks like a blank.
fn is_blank(found: char) -> bool {
    found.is_whitespace()
        || is_joiner(found)
        || matches!(
            found,
            '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}'
        )
}

impl FreeText {
    /// Accepts new free text of a record.
    ///
    /// # Errors
    /// The text is too long, has a disallowed character, or has only blanks.
    pub fn parse_new(text: &str) -> Result<Self, NameError> {
        const ALLOWED: &str = "visible characters, and blanks within a line";
        let parsed = Self::parse_existing(text)?;
        let odd = text.char_indices().find(|(at, found)| {
            let joins = || may_join(&text[..*at], &text[at + found.len_utf8()..]);
            is_invisible(*found) || is_joiner(*found) && !joins()
        });
        if let Some((at, found)) = odd {
            return Err(NameError::Character {
                found,
                at,
                allowed: ALLOWED,
            });
        }
        if !text.is_empty() && text.chars().all(is_blank) {
            return Err(NameError::Blank);
        }
        Ok(parsed)
    }

    /// Accepts free text that a record may have already: of bounded length, and without
    /// control characters.
    ///
    /// # Errors
    /// The first rule that the text breaks.
    pub fn parse_existing(text: &str) -> Result<Self, NameError> {
        if !text.is_empty() {
            check_no_control(text, FREE_TEXT_MAX_BYTES)?;
        }
        Ok(Self(text.into()))
    }

    /// Whether the text may replace `before`. An unchanged text is always allowed.
    ///
    /// # Errors
    /// As [`Self::parse_new`].
    pub fn may_replace(&self, before: Option<&str>) -> Result<(), NameError> {
        if before == Some(self.as_str()) {
            return Ok(());
        }
        Self::parse_new(self.as_str()).map(drop)
    }

    /// Accepts any stored text.
    #[must_use]
    pub fn from_stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! shown_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    )*};
}

shown_as_text!(Username, OrganizationName, FreeText);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_usernames_are_lower_case_ascii_with_inner_punctuation() {
        for name in ["a", "0", "olivia.owner", "a_b-c.d", &"x".repeat(64)] {
            assert!(Username::parse_new(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "A",
            "Olivia",
            "-a",
            "a-",
            ".a",
            "a_",
            "a b",
            "a#b",
            "a/b",
            "日本",
            "a\u{0}",
            "a\n",
            "é",
            &"x".repeat(65),
        ] {
            assert!(Username::parse_new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn new_organization_names_have_no_dots_and_underscores() {
        assert!(OrganizationName::parse_new("olivia-org").is_ok());
        for name in ["olivia.org", "olivia_org", "-olivia", "Olivia", ""] {
            assert!(OrganizationName::parse_new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn existing_names_are_any_text_without_control_characters() {
        for name in [
            "Olivia",
            "_x_",
            "a@b.c",
            "a#b",
            "a/b",
            "a b",
            "日本",
            &"x".repeat(256),
        ] {
            assert!(Username::parse_existing(name).is_ok(), "{name}");
        }
        for name in ["", "a\tb", "a\n", "\u{7f}", "\u{85}", &"x".repeat(257)] {
            assert!(Username::parse_existing(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_error_names_the_disallowed_character_and_its_offset() {
        assert_eq!(
            Username::parse_new("ab#c").unwrap_err().to_string(),
            "has '#' at offset 2; allowed are only a-z, 0-9, '.', '_' and '-'"
        );
    }

    #[test]
    fn free_text_has_no_control_characters() {
        assert!(FreeText::parse_new("").is_ok());
        assert!(FreeText::parse_new("Łucja 日本 #/").is_ok());
        assert!(FreeText::parse_new("a\u{7}").is_err());
        assert!(FreeText::parse_new(&"x".repeat(257)).is_err());
    }

    #[test]
    fn free_text_has_no_invisible_characters() {
        for text in [
            "a b",
            "\u{a0}a",
            "می\u{200c}خواهم",
            "👩\u{200d}🚀",
            "🏳\u{fe0f}",
        ] {
            FreeText::parse_new(text).unwrap();
        }
        for text in [
            " ",
            "\u{2003}\u{a0}",
            "\u{3164}",
            "a\u{202e}b",
            "\u{2066}a\u{2069}",
            "a\u{200b}b",
            "a\u{feff}",
            "a\u{2028}b",
            "a\u{2029}b",
            "ad\u{200d}min",
            "\u{200c}می",
            "م\u{200d}\u{200d}ی",
            "a\u{e0041}",
        ] {
            FreeText::parse_new(text).unwrap_err();
        }
    }
}
