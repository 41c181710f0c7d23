//! Errors of SDKs as one line for operators.

use std::error::Error;

/// The messages of an error and of all its causes, in one line.
#[must_use]
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.trim_end_matches('.').replace('\n', " ")
}
