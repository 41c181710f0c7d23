//! Routes of Envoy are valid or rejected, and a path names one organization or none.
#![no_main]

use account_service::ext_authz::{PathTemplate, Routes};
use libfuzzer_sys::fuzz_target;

// The first line is a template, the second one a path, and the rest a file.
fuzz_target!(|input: &str| {
    let mut parts = input.splitn(3, '\n');
    let (template, path, file) = (parts.next(), parts.next(), parts.next());
    let template = template.map(|template| PathTemplate::parse(template, "organization"));
    if let (Some(Ok(template)), Some(path)) = (template, path)
        && let Some(organization) = template.capture(path)
    {
        let is_segment = !organization.is_empty() && !organization.contains(['/', '\\']);
        assert!(is_segment && organization != ".." && organization != ".");
    }
    if let Some(file) = file {
        let _ = Routes::parse(file, true);
    }
});
