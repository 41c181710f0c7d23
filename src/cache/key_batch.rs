//! The keys of a look-up, in one buffer.

/// The length before each key.
type Length = u32;

/// Keys of a look-up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// The keys, each after its length.
    text: Vec<u8>,
    count: usize,
}

impl Keys {
    /// An empty batch with capacity for this many keys, of this many bytes in total.
    #[must_use]
    pub fn with_capacity(keys: usize, bytes: usize) -> Self {
        Self {
            text: Vec::with_capacity(keys * size_of::<Length>() + bytes),
            count: 0,
        }
    }

    /// Adds a key of these parts, together less than 4 GiB.
    pub fn push<P: AsRef<[u8]>>(&mut self, parts: &[P]) {
        let length: usize = parts.iter().map(|part| part.as_ref().len()).sum();
        let length = Length::try_from(length).unwrap_or(Length::MAX);
        self.text.extend_from_slice(&length.to_ne_bytes());
        for part in parts {
            self.text.extend_from_slice(part.as_ref());
        }
        self.count += 1;
    }

    /// The number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all keys.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len() - self.count * size_of::<Length>()
    }

    /// The keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.text;
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk()?;
            let length = usize::try_from(Length::from_ne_bytes(*length)).ok()?;
            let (key, after) = after.split_at_checked(length)?;
            rest = after;
            Some(key)
        })
    }
}

impl<'a> FromIterator<&'a str> for Keys {
    fn from_iter<I: IntoIterator<Item = &'a str>>(keys: I) -> Self {
        let mut all = Self::default();
        for key in keys {
            all.push(&[key]);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushed_keys_are_iterated_in_order() {
        let mut keys = Keys::with_capacity(3, 10);
        keys.push(&["a", "/", "b"]);
        keys.push::<&str>(&[]);
        keys.push(&["ü"]);
        assert_eq!(
            keys.iter().collect::<Vec<_>>(),
            ["a/b".as_bytes(), b"", "ü".as_bytes()]
        );
        assert_eq!((keys.len(), keys.bytes()), (3, 5));
        assert_eq!(["a/b", "", "ü"].into_iter().collect::<Keys>(), keys);
        assert!(Keys::default().is_empty());
    }
}
