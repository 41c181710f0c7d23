//! Labels: texts that callers attach to users and organizations.

use std::collections::BTreeMap;

use super::names::{FreeText, NameError, check_characters};

/// Most labels of one record.
pub const MAX_LABELS: usize = 32;
/// Most characters of a label's key.
pub const LABEL_KEY_MAX_LEN: usize = 63;

/// Texts by key: at most [`MAX_LABELS`]; a key is 1 to [`LABEL_KEY_MAX_LEN`] of
/// `a-z`, `0-9`, `.`, `_`, `/` and `-`; a value is free text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(BTreeMap<String, FreeText>);

/// The reason why labels are rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// There are too many labels.
    #[error("has {0} entries; allowed are {MAX_LABELS}")]
    TooMany(usize),
    /// A key breaks its bounds.
    #[error("key {0:?}: {1}")]
    Key(String, NameError),
    /// The value of this key breaks its bounds.
    #[error("value of {0:?}: {1}")]
    Value(String, NameError),
}

impl Labels {
    /// Accepts labels, with values that `parse_value` accepts.
    ///
    /// # Errors
    /// The first bound that the labels break.
    pub fn parse<'a>(
        labels: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
        parse_value: fn(&str) -> Result<FreeText, NameError>,
    ) -> Result<Self, LabelError> {
        const ALLOWED: &str = "a-z, 0-9, '.', '_', '/' and '-'";
        if labels.len() > MAX_LABELS {
            return Err(LabelError::TooMany(labels.len()));
        }
        let labels = labels.map(|(key, value)| {
            check_characters(key, LABEL_KEY_MAX_LEN, ALLOWED, |found| {
                found.is_ascii_lowercase() || found.is_ascii_digit() || "._/-".contains(found)
            })
            .map_err(|why| LabelError::Key(key.to_owned(), why))?;
            let value = parse_value(value).map_err(|why| LabelError::Value(key.to_owned(), why))?;
            Ok((key.to_owned(), value))
        });
        labels.collect::<Result<_, _>>().map(Self)
    }
    /// Whether the labels may replace `before`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn may_replace(&self, before: &Self) -> Result<(), LabelError> {
        for (key, value) in &self.0 {
            let before = before.0.get(key).map(FreeText::as_str);
            let may_replace = value.may_replace(before);
            may_replace.map_err(|why| LabelError::Value(key.clone(), why))?;
        }
        Ok(())
    }

    /// Accepts any stored labels.
    #[must_use]
    pub fn from_stored<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let labels = labels.map(|(key, value)| (key.to_owned(), FreeText::from_stored(value)));
        Self(labels.collect())
    }

    /// The labels, sorted by key.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        let labels = self.0.iter();
        labels.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether these labels include all others, with equal values.
    #[must_use]
    pub fn has_all_of(&self, others: &Self) -> bool {
        let mut others = others.0.iter();
        others.all(|(key, value)| self.0.get(key) == Some(value))
    }

    /// Whether there are no labels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(labels: &[(&str, &str)]) -> Result<Labels, LabelError> {
        Labels::parse(labels.iter().copied(), FreeText::parse_new)
    }

    #[test]
    fn labels_are_bounded() {
        let labels = parse(&[("team", "日本"), ("cost-center/1.x_y", "")]).unwrap();
        let labels: Vec<_> = labels.iter().collect();
        assert_eq!(labels, [("cost-center/1.x_y", ""), ("team", "日本")]);
        for bad in [
            ("", "x"),
            ("Team", "x"),
            ("a b", "x"),
            (&*"k".repeat(64), "x"),
        ] {
            assert!(matches!(parse(&[bad]), Err(LabelError::Key(..))), "{bad:?}");
        }
        for bad in ["a\nb", &"x".repeat(257)] {
            assert!(matches!(parse(&[("k", bad)]), Err(LabelError::Value(..))));
        }
        let many: Vec<_> = (0..33).map(|number| number.to_string()).collect();
        let many: Vec<_> = many.iter().map(|key| (key.as_str(), "")).collect();
        assert_eq!(parse(&many), Err(LabelError::TooMany(33)));
        assert!(parse(&many[..32]).is_ok());
    }
}
