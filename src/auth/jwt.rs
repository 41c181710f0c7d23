//! JSON Web Tokens, verified by the key set. Verified tokens are cached, because
//! verifying one costs more than a check from the cache.

use std::sync::Arc;

use jsonwebtoken::{
    Algorithm, Header, TokenData, Validation, decode, decode_header, get_current_timestamp,
};
use moka::{policy::EvictionPolicy, sync::Cache};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    Policy, Refused, VerificationKeys,
    jwks::{Candidates, Edition},
    policy::{Holder, SUBJECT},
};

/// Tolerated difference of clocks, in seconds.
const LEEWAY_S: u64 = 30;
/// Most verified tokens in the cache. A service or a user has one at a time.
const MAX_VERIFIED: u64 = 10_000;

/// Header parameter of an unencoded payload (RFC 7797).
const UNENCODED: &str = "b64";

/// Required contents of a token.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The issuer: `iss`.
    pub issuer: String,
    /// The audience: one of `aud`.
    pub audience: String,
    /// Accepted algorithms. Never with a shared secret.
    pub algorithms: Vec<Algorithm>,
}

/// Verifies tokens.
#[derive(Debug)]
pub struct Tokens {
    expected: Expected,
    keys: VerificationKeys,
    /// By digest, so that no token is stored.
    verified: Cache<[u8; 32], Verified>,
}

/// The owner of a token, and its expiry.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub holder: Holder,
    pub subject: Arc<str>,
    /// When the token expires, in seconds since 1970.
    pub expires: u64,
}

/// A verified token.
#[derive(Debug, Clone)]
struct Verified {
    identity: Identity,
    edition: Edition,
}

impl Tokens {
    /// Verifies tokens with these keys.
    #[must_use]
    pub fn new(expected: Expected, keys: VerificationKeys) -> Self {
        Self {
            expected,
            keys,
            verified: Cache::builder()
                .max_capacity(MAX_VERIFIED)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
        }
    }

    /// The same, without verified tokens.
    pub(super) fn anew(&self) -> Self {
        Self::new(self.expected.clone(), self.keys.clone())
    }

    /// Verifies a token: its signature, its audience and its validity.
    pub(super) fn verify(&self, token: &str, policy: &Policy) -> Result<Identity, Refused> {
        let digest = Sha256::digest(token).into();
        if let Some(known) = self.verified.get(&digest) {
            let is_same = known.edition == self.keys.edition();
            if is_same && get_current_timestamp() <= known.identity.expires {
                return Ok(known.identity);
            }
        }
        let verified = self.verify_anew(token, policy)?;
        let identity = verified.identity.clone();
        self.verified.insert(digest, verified);
        Ok(identity)
    }

    fn verify_anew(&self, token: &str, policy: &Policy) -> Result<Verified, Refused> {
        let header =
            decode_header(token).map_err(|error| invalid(format!("the token: {error}")))?;
        if !self.expected.algorithms.contains(&header.alg) {
            return Err(invalid(format!(
                "tokens signed by {:?} are not accepted",
                header.alg
            )));
        }
        // Critical extensions: none is supported.
        if header.crit.is_some()
            || header
                .extras
                .inner()
                .get(UNENCODED)
                .is_some_and(|it| *it != Value::Bool(true))
        {
            return Err(invalid("the token has unsupported extensions".to_owned()));
        }
        let candidates = self.keys.find(header.alg, header.kid.as_deref());
        let Candidates { keys, edition } = candidates.ok_or(Refused::NoKeysYet)?;
        let claims = self.decode(token, &header, &keys)?;
        let subject = claims.get(SUBJECT).and_then(Value::as_str);
        let Some(subject) = subject.filter(|subject| !subject.is_empty()) else {
            return Err(invalid("the token has no subject".to_owned()));
        };
        let Some(holder) = policy.of_token(&claims) else {
            return Err(invalid("the token matches several callers".to_owned()));
        };
        Ok(Verified {
            identity: Identity {
                holder,
                subject: subject.into(),
                expires: expiry(&claims).saturating_add(LEEWAY_S),
            },
            edition,
        })
    }

    /// The claims of a token that one of these keys has signed.
    fn decode(
        &self,
        token: &str,
        header: &Header,
        keys: &[Arc<jsonwebtoken::DecodingKey>],
    ) -> Result<Map<String, Value>, Refused> {
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.expected.issuer]);
        validation.set_audience(&[&self.expected.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", SUBJECT]);
        let kid = header.kid.as_deref().unwrap_or_default();
        let mut why = format!("no known key {kid:?} signs by {:?}", header.alg);
        for key in keys {
            match decode(token, key, &validation) {
                Ok(TokenData { claims, .. }) => return Ok(claims),
                Err(error) => why = format!("the token: {error}"),
            }
        }
        Err(invalid(why))
    }
}

fn invalid(why: String) -> Refused {
    Refused::InvalidCredentials { why }
}

/// The claim `exp`.
fn expiry(claims: &Map<String, Value>) -> u64 {
    let expires = claims.get("exp").and_then(Value::as_f64);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and whole seconds are meant"
    )]
    expires.map_or(0, |expires| expires as u64)
}
