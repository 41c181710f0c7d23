//! A policy is good or refused, and grants no method that there is not.
#![no_main]

use account_service::{callers::Policy, grpc::methods};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &str| {
    let _ = Policy::parse(json, &methods());
});
