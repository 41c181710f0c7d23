//! Bearer tokens: JSON Web Tokens, signed with a key of the key set.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::Deserialize;

use super::{Keys, Refused};

/// By how much clocks may differ, in seconds.
const LEEWAY_S: u64 = 30;

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
}

/// Whom a token names.
#[derive(Debug)]
pub(super) struct Identity {
    pub subject: Arc<str>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

impl Tokens {
    /// Verifies tokens with these keys.
    #[must_use]
    pub fn new(expected: Expected, keys: Keys) -> Self {
        Self { expected, keys }
    }

    /// Whom a token names, if it is signed, meant for this service, and neither
    /// too old nor too new.
    pub(super) fn verify(&self, token: &str) -> Result<Identity, Refused> {
        let invalid = |why: String| Refused::InvalidCredentials { why };
        let header =
            decode_header(token).map_err(|error| invalid(format!("the token: {error}")))?;
        if !self.expected.algorithms.contains(&header.alg) {
            return Err(invalid(format!(
                "tokens signed by {:?} are not taken",
                header.alg
            )));
        }
        let Some(key) = self.keys.find(header.kid.as_deref()) else {
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
        Ok(Identity {
            subject: claims.sub.into(),
        })
    }
}
