//! Origins of web pages, as browsers send them in the header `origin`.

use std::str::FromStr;

use http::{HeaderValue, Uri};

/// The origin of web pages: scheme, host and port, as a browser writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOrigin(HeaderValue);

impl WebOrigin {
    /// The value of the header `origin`.
    #[must_use]
    pub fn as_header(&self) -> &HeaderValue {
        &self.0
    }
}

impl FromStr for WebOrigin {
    type Err = String;

    /// Accepts only the form that browsers send: others would never equal a header.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || {
            "must be an origin as a browser sends it, such as https://console.example.com: \
             lower case, without a path, and without a port that is the default of the scheme"
                .to_owned()
        };
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(invalid());
        };
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(invalid()),
        };
        let port = match uri.port_u16() {
            Some(port) if port == default_port => return Err(invalid()),
            Some(port) => format!(":{port}"),
            None => String::new(),
        };
        let origin = format!("{scheme}://{}{port}", authority.host().to_ascii_lowercase());
        // A `*` would look like a pattern, and match nothing.
        let is_of_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
        if origin != text || !authority.host().bytes().all(is_of_host) {
            return Err(invalid());
        }
        HeaderValue::try_from(origin)
            .map(Self)
            .map_err(|_| invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::WebOrigin;

    #[test]
    fn origins_have_the_form_that_browsers_send() {
        for text in [
            "https://console.example.com",
            "http://127.0.0.1:8080",
            "http://localhost:3000",
            "https://[::1]:8443",
        ] {
            let origin: WebOrigin = text.parse().unwrap();
            assert_eq!(origin.as_header(), text);
        }
        for text in [
            "",
            "*",
            "null",
            "console.example.com",
            "https://",
            "https://*",
            "https://*.example.com",
            "https://console.example.com/",
            "https://console.example.com/path",
            "https://console.example.com?a",
            "https://Console.example.com",
            "HTTPS://console.example.com",
            "https://console.example.com:443",
            "http://console.example.com:80",
            "http://console.example.com:080",
            "http://console.example.com:",
            "http://console.example.com:99999",
            "http://user@console.example.com",
            "ftp://console.example.com",
            "https://a b",
            "https://é.example.com",
        ] {
            assert!(text.parse::<WebOrigin>().is_err(), "{text}");
        }
    }
}
