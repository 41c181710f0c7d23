//! The keys of items, written by any writer: a partition key and a sort key.
#![no_main]

use account_service::store::key_of_item;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|keys: (&str, &str)| {
    let _ = key_of_item(keys.0, keys.1);
});
