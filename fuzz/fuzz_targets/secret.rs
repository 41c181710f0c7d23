//! A secret is a valid credential or rejected, and is never shown.
#![no_main]

use account_service::cache::Credential;
use libfuzzer_sys::fuzz_target;
use secrecy::SecretString;

fuzz_target!(|json: String| {
    match Credential::from_secret(&SecretString::from(json)) {
        Ok(credential) => assert_eq!(format!("{credential:?}"), "Credential(redacted)"),
        Err(error) => drop(error.to_string()),
    }
});
