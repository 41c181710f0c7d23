//! The Momento credential, as the secret holds it.

use std::fmt;

use base64::{
    Engine as _,
    prelude::{BASE64_URL_SAFE as URL_SAFE, BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD},
};
use momento::CredentialProvider;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::loopback::is_loopback;

/// Key of a v1 or legacy token in the secret's JSON object.
const AUTH_TOKEN: &str = "MOMENTO_AUTH_TOKEN";
/// Key of a v2 API key in the secret's JSON object.
const API_KEY: &str = "MOMENTO_API_KEY";
/// Key of the endpoint that belongs to a v2 API key.
const ENDPOINT: &str = "MOMENTO_ENDPOINT";
const HTTP: &str = "http://";
const HTTPS: &str = "https://";

/// A credential for Momento, with the endpoint it belongs to. Its debug output
/// is redacted.
#[derive(Clone)]
pub struct Credential(pub(super) CredentialProvider);

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(redacted)")
    }
}

/// Why a secret holds no credential. Says nothing of the secret's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The secret is not a JSON object.
    #[error("it is not a JSON object; expected {{\"{AUTH_TOKEN}\":\"…\"}}")]
    NotJson,
    /// Neither kind of credential is there.
    #[error("it has neither a string {AUTH_TOKEN} nor the strings {API_KEY} and {ENDPOINT}")]
    Missing,
    /// There is an API key without endpoint.
    #[error("it has {API_KEY} but no string {ENDPOINT}")]
    NoEndpoint,
    /// The token is neither a v1 nor a legacy one.
    #[error("its {AUTH_TOKEN} is not a Momento token")]
    AuthToken,
    /// The v2 key does not decode.
    #[error("its {API_KEY} is not a Momento v2 API key")]
    ApiKey,
    /// The endpoint would send the credential in plain text over a network.
    #[error("its {ENDPOINT} is plain http:// and not on a loopback address")]
    PlainText,
}

impl Credential {
    /// Reads the secret's JSON: `MOMENTO_API_KEY` with `MOMENTO_ENDPOINT` (a
    /// host name, an `https://` URL, or an `http://` URL of a loopback
    /// address), or else `MOMENTO_AUTH_TOKEN`: a v1 token, or a legacy one, which is a
    /// JWT with the endpoints `c` and `cp`.
    ///
    /// # Errors
    /// See [`CredentialError`].
    pub fn from_secret(secret: &SecretString) -> Result<Self, CredentialError> {
        let fields: Map<String, Value> =
            serde_json::from_str(secret.expose_secret()).map_err(|_| CredentialError::NotJson)?;
        let text = |name| fields.get(name).and_then(Value::as_str).map(str::trim);
        match (text(API_KEY), text(ENDPOINT), text(AUTH_TOKEN)) {
            (Some(key), Some(endpoint), _) => Self::from_api_key(key, endpoint),
            (None, _, Some(token)) => {
                let v1 = legacy_to_v1(token);
                CredentialProvider::from_disposable_token(v1.as_deref().unwrap_or(token))
                    .map(Self)
                    .map_err(|_| CredentialError::AuthToken)
            }
            (Some(_), None, _) => Err(CredentialError::NoEndpoint),
            (None, _, None) => Err(CredentialError::Missing),
        }
    }

    /// The address of the cache for gRPC calls, as a URL. The SDK knows that of
    /// plain HTTP.
    pub(super) fn endpoint(&self) -> String {
        let http = self.0.cache_http_endpoint();
        http.replacen("://api.cache.", "://cache.", 1)
    }

    fn from_api_key(key: &str, endpoint: &str) -> Result<Self, CredentialError> {
        let host = endpoint.trim_start_matches(HTTPS).trim_start_matches(HTTP);
        let provider =
            CredentialProvider::from_api_key_v2(key, host).map_err(|_| CredentialError::ApiKey)?;
        if endpoint.starts_with(HTTPS) {
            return Ok(Self(provider.full_endpoint_override(endpoint)));
        }
        if endpoint.starts_with(HTTP) {
            let uri: http::Uri = endpoint.parse().map_err(|_| CredentialError::PlainText)?;
            if !uri.host().is_some_and(is_loopback) {
                return Err(CredentialError::PlainText);
            }
            return Ok(Self(provider.insecure_endpoint_override(endpoint)));
        }
        Ok(Self(provider))
    }
}

/// The endpoints in the claims of a legacy token.
#[derive(Deserialize)]
struct LegacyClaims {
    /// Host of the cache: `cache.` and the endpoint.
    c: String,
    /// Host of the control plane: `control.` and the endpoint.
    cp: String,
}

/// The v1 token that means the same as a legacy token. A legacy token is a JWT: it is the
/// API key itself, and its claims name the endpoints. `None` if the text is no such JWT.
fn legacy_to_v1(token: &str) -> Option<String> {
    let mut segments = token.split('.');
    let [_, claims, _] = [segments.next()?, segments.next()?, segments.next()?];
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let LegacyClaims { c, cp } = serde_json::from_slice(&claims).ok()?;
    let endpoint = c.strip_prefix("cache.")?;
    if segments.next().is_some() || cp.strip_prefix("control.") != Some(endpoint) {
        return None;
    }
    let v1 = json!({ "api_key": token, "endpoint": endpoint });
    Some(URL_SAFE.encode(v1.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Header and claims `{"t":"g"}` of a v2 key.
    const V2_KEY: &str = "e30.eyJ0IjoiZyJ9.c2ln";
    /// `{"endpoint":"e","api_key":"secret-word"}`.
    const V1_TOKEN: &str = "eyJlbmRwb2ludCI6ImUiLCJhcGlfa2V5Ijoic2VjcmV0LXdvcmQifQ==";

    fn parse(secret: &str) -> Result<Credential, CredentialError> {
        Credential::from_secret(&SecretString::from(secret))
    }

    #[test]
    fn both_kinds_of_credential_are_accepted() {
        let v1 = parse(&format!(r#"{{"MOMENTO_AUTH_TOKEN":"{V1_TOKEN}"}}"#));
        assert_eq!(v1.unwrap().endpoint(), "https://cache.e");
        for (endpoint, grpc) in [
            ("cell.example.com", "https://cache.cell.example.com"),
            ("https://x.example", "https://x.example"),
            ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ] {
            let secret =
                format!(r#"{{"MOMENTO_API_KEY":"{V2_KEY}","MOMENTO_ENDPOINT":"{endpoint}"}}"#);
            assert_eq!(parse(&secret).unwrap().endpoint(), grpc);
        }
    }

    fn legacy_token(claims: &Value) -> String {
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        format!("e30.{claims}.c2ln")
    }

    #[test]
    fn a_legacy_token_is_a_key_that_names_its_endpoints() {
        let token = legacy_token(&json!({
            "sub": "olivia@example.com", "cp": "control.cell.example.com", "c": "cache.cell.example.com",
        }));
        let secret = json!({ "MOMENTO_AUTH_TOKEN": token }).to_string();
        let Credential(provider) = parse(&secret).unwrap();
        assert_eq!(provider.auth_token(), token);
        let endpoint = Credential(provider).endpoint();
        assert_eq!(endpoint, "https://cache.cell.example.com");
        for claims in [
            json!({ "cp": "control.a", "c": "cache.b" }),
            json!({ "cp": "control.a", "c": "a" }),
            json!({ "c": "cache.a" }),
            json!({ "cp": 1, "c": "cache.a" }),
        ] {
            let secret = json!({ "MOMENTO_AUTH_TOKEN": legacy_token(&claims) }).to_string();
            let refused = parse(&secret).unwrap_err();
            assert_eq!(refused, CredentialError::AuthToken, "{claims}");
        }
    }

    #[test]
    fn what_is_no_credential_is_named_and_never_shown() {
        let v2 = |endpoint: &str| {
            format!(r#"{{"MOMENTO_API_KEY":"{V2_KEY}","MOMENTO_ENDPOINT":"{endpoint}"}}"#)
        };
        for (secret, error) in [
            ("secret-word".to_owned(), CredentialError::NotJson),
            (r#"["secret-word"]"#.to_owned(), CredentialError::NotJson),
            ("{}".to_owned(), CredentialError::Missing),
            (
                r#"{"MOMENTO_AUTH_TOKEN":7}"#.to_owned(),
                CredentialError::Missing,
            ),
            (
                r#"{"MOMENTO_AUTH_TOKEN":"secret-word"}"#.to_owned(),
                CredentialError::AuthToken,
            ),
            (
                r#"{"MOMENTO_API_KEY":"secret-word"}"#.to_owned(),
                CredentialError::NoEndpoint,
            ),
            (
                r#"{"MOMENTO_API_KEY":"secret-word","MOMENTO_ENDPOINT":"e"}"#.to_owned(),
                CredentialError::ApiKey,
            ),
            (v2("http://cell.example.com"), CredentialError::PlainText),
        ] {
            let refused = parse(&secret).unwrap_err();
            assert_eq!(refused, error, "{secret}");
            assert!(!refused.to_string().contains("secret-word"));
        }
        let credential = parse(&v2("e")).unwrap();
        assert_eq!(format!("{credential:?}"), "Credential(redacted)");
    }
}
