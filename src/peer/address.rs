//! The address of a replica for its peers, with the proofs of identity of both sides.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Length of a fingerprint, in bytes.
const FINGERPRINT_BYTES: usize = 32;
/// Greatest length of an address in text form, in bytes.
const MAX_BYTES: usize = 512;

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; FINGERPRINT_BYTES]);

impl Fingerprint {
    /// The fingerprint of a certificate in DER.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// The secret of a replica that its peers present.
#[derive(Clone)]
pub struct PeerToken(String);

impl PeerToken {
    /// Draws a new token of 122 random bits.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// The text to present.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a caller presents this token. Compares digests, so that the time reveals nothing.
    #[must_use]
    pub fn is_presented(&self, presented: &[u8]) -> bool {
        Sha256::digest(presented) == Sha256::digest(&self.0)
    }
}

impl fmt::Debug for PeerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerToken")
    }
}

/// The address of a replica for its peers. Its text form stands in the replica directory.
#[derive(Debug, Clone)]
pub struct PeerAddress {
    /// Host and port.
    pub authority: String,
    /// The certificate of the replica.
    pub fingerprint: Fingerprint,
    /// The token that the replica accepts.
    pub token: PeerToken,
}

impl PeerAddress {
    /// An address on which no replica responds.
    #[must_use]
    pub fn unreachable() -> Self {
        Self {
            authority: "unreachable.invalid:1".to_owned(),
            fingerprint: Fingerprint([0; FINGERPRINT_BYTES]),
            token: PeerToken(String::new()),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            authority,
            fingerprint,
            token,
        } = self;
        write!(f, "{authority} {fingerprint:?} {}", token.0)
    }
}

/// The text is not the address of a replica.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidAddress;

impl FromStr for PeerAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let mut parts = text.split(' ');
        let mut part = || parts.next().ok_or(InvalidAddress);
        let (authority, fingerprint, token) = (part()?, part()?, part()?);
        let fingerprint = URL_SAFE_NO_PAD.decode(fingerprint);
        let fingerprint = fingerprint.map_err(|_| InvalidAddress)?;
        if text.len() > MAX_BYTES || parts.next().is_some() {
            return Err(InvalidAddress);
        }
        Ok(Self {
            authority: authority.to_owned(),
            fingerprint: Fingerprint(fingerprint.try_into().map_err(|_| InvalidAddress)?),
            token: PeerToken(token.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_of_an_address_is_parsed() {
        let address = PeerAddress {
            authority: "10.0.0.1:50052".to_owned(),
            fingerprint: Fingerprint::of(b"certificate"),
            token: PeerToken::random(),
        };
        for address in [address, PeerAddress::unreachable()] {
            let parsed: PeerAddress = address.to_string().parse().unwrap();
            assert_eq!(parsed.to_string(), address.to_string());
        }
    }

    #[test]
    fn other_texts_are_rejected() {
        let valid = PeerAddress::unreachable().to_string();
        let long = format!("{}{valid}", "x".repeat(MAX_BYTES));
        for text in [
            "",
            "host:1",
            "host:1 abc token",
            &format!("{valid} more"),
            &long,
        ] {
            assert_eq!(PeerAddress::from_str(text).unwrap_err(), InvalidAddress);
        }
    }

    #[test]
    fn only_the_whole_token_is_accepted() {
        let token = PeerToken::random();
        assert!(token.is_presented(token.as_str().as_bytes()));
        assert!(!token.is_presented(&token.as_str().as_bytes()[1..]));
        assert!(!token.is_presented(b""));
        assert!(!format!("{token:?}").contains(token.as_str()));
    }
}
