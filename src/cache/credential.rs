//! The Momento credential, as the secret holds it.

use std::fmt;

use momento::CredentialProvider;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};

use crate::loopback::is_loopback;

/// Key of a v1 token in the secret's JSON object.
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
    /// The v1 token does not decode.
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
    /// address), or else `MOMENTO_AUTH_TOKEN`.
    ///
    /// # Errors
    /// See [`CredentialError`].
    pub fn from_secret(secret: &SecretString) -> Result<Self, CredentialError> {
        let fields: Map<String, Value> =
            serde_json::from_str(secret.expose_secret()).map_err(|_| CredentialError::NotJson)?;
        let text = |name| fields.get(name).and_then(Value::as_str).map(str::trim);
        match (text(API_KEY), text(ENDPOINT), text(AUTH_TOKEN)) {
            (Some(key), Some(endpoint), _) => Self::from_api_key(key, endpoint),
            (None, _, Some(token)) => CredentialProvider::from_disposable_token(token)
                .map(Self)
                .map_err(|_| CredentialError::AuthToken),
            (Some(_), None, _) => Err(CredentialError::NoEndpoint),
            (None, _, None) => Err(CredentialError::Missing),
        }
    }

    /// Where the cache answers gRPC calls, as a URL. The SDK tells where it answers
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
