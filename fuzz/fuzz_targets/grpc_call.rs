//! A method's name, a line break, and the bytes of a message.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    if let Ok(method) = std::str::from_utf8(&input[..end]) {
        account_service_fuzz::call(method, &input[end + 1..]);
    }
});
