//! A policy is valid or rejected, and grants only existing methods.
#![no_main]

use std::sync::LazyLock;

use account_service::{
    auth::{Method, Policy},
    grpc::methods,
};
use libfuzzer_sys::fuzz_target;

static METHODS: LazyLock<Vec<Method>> = LazyLock::new(methods);

fuzz_target!(|json: &str| {
    let _ = Policy::parse(json, &METHODS);
});
