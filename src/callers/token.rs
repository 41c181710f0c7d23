//! Bearer tokens: JSON Web Tokens, signed with a key of the key set. A token that
//! was verified is known again, as verifying costs more than a check from the cache.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, Validation, decode, decode_header, get_current_timestamp};
use moka::{policy::EvictionPolicy, sync::Cache};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Keys, Refused, keys::Edition};

/// By how much clocks may differ, in seconds.
const LEEWAY_S: u64 = 30;
/// Tokens that are known again. A service has one at a time, a user who calls too.
const MAX_VERIFIED: u64 = 10_000;

/// What a token has to say.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Who made it: `iss`.
    pub issuer: String,
    /// For whom: among `aud`.
    pub audience: String,
    /// How it may be signed. Never with a shared secret.
    pub algorithms: Vec<Algorithm>,
}

/// Verifies tokens.
#[derive(Debug)]
pub struct Tokens {
    expected: Expected,
    keys: Keys,
    /// By digest, so that no token is kept.
    verified: Cache<[u8; 32], Verified>,
}

/// Whom a token names.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub subject: Arc<str>,
}

/// A token that was valid.
#[derive(Debug, Clone)]
struct Verified {
    identity: Identity,
    edition: Edition,
    /// In seconds since 1970.
    expires: u64,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
}

impl Tokens {
    /// Verifies tokens with these keys.
    #[must_use]
    pub fn new(expected: Expected, keys: Keys) -> Self {
        Self {
            expected,
            keys,
            verified: Cache::builder()
                .max_capacity(MAX_VERIFIED)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
        }
    }

    /// Whom a token names, if it is signed, meant for this service, and neither
    /// too old nor too new.
    pub(super) fn verify(&self, token: &str) -> Result<Identity, Refused> {
        let digest = Sha256::digest(token).into();
        if let Some(known) = self.verified.get(&digest) {
            let is_same = known.edition == self.keys.edition();
            if is_same && get_current_timestamp() <= known.expires.saturating_add(LEEWAY_S) {
                return Ok(known.identity);
            }
        }
        let verified = self.verify_anew(token)?;
        let identity = verified.identity.clone();
        self.verified.insert(digest, verified);
        Ok(identity)
    }

    fn verify_anew(&self, token: &str) -> Result<Verified, Refused> {
        let invalid = |why: String| Refused::InvalidCredentials { why };
        let header =
            decode_header(token).map_err(|error| invalid(format!("the token: {error}")))?;
        if !self.expected.algorithms.contains(&header.alg) {
            return Err(invalid(format!(
                "tokens signed by {:?} are not taken",
                header.alg
            )));
        }
        let Some((key, edition)) = self.keys.find(header.kid.as_deref()) else {
            return Err(invalid(format!("no key {:?} is known", header.kid)));
        };
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.expected.issuer]);
        validation.set_audience(&[&self.expected.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<Claims>(token, &key, &validation)
            .map_err(|error| invalid(format!("the token: {error}")))?
            .claims;
        if claims.sub.is_empty() {
            return Err(invalid("the token names nobody".to_owned()));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and whole seconds are meant"
        )]
        let expires = claims.exp as u64;
        let subject = claims.sub.into();
        Ok(Verified {
            identity: Identity { subject },
            edition,
            expires,
        })
    }
}
