//! Inspects the log lines of all replicas in the test process, and of processes with a
//! `Log`: a line contains no user's name, no control character and no debug form.

use std::{
    fs::File,
    io,
    sync::{LazyLock, Mutex, Once, PoisonError},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Parts of names, profiles and addresses of users in tests. Organizations may be named.
const USERS: [&str; 8] = [
    "oliviaowner",
    "membermichael",
    "Odd_Name",
    "Jane Doe",
    "newcomer-nora",
    "viewer-vera",
    "łukasz",
    "@example.com",
];
/// Targets of the service's own lines.
const OUR_TARGETS: [&str; 2] = ["account_service", "audit"];
/// Parts of Rust's debug forms.
const FORMS_OF_CODE: [&str; 4] = ["Some(", "None", "Ok(", "Err("];
/// Longest line, in bytes.
const MAX_LINE: usize = 4096;

/// The file that the variable `TEST_LOG` names. It receives the lines of all replicas in the test process.
static COPY: LazyLock<Option<File>> = LazyLock::new(|| {
    let path = std::env::var_os("TEST_LOG")?;
    Some(File::create(path).expect("TEST_LOG cannot be created"))
});

/// The fault of a line; `None` if the line is clean.
fn fault(line: &str) -> Option<String> {
    let is_ours = OUR_TARGETS.iter().any(|target| line.contains(target));
    // At these levels, libraries log the data that they send.
    if !is_ours && ["DEBUG", "TRACE"].iter().any(|level| line.contains(level)) {
        return None;
    }
    if let Some(name) = USERS.iter().find(|name| line.contains(**name)) {
        return Some(format!("it names a user: {name}"));
    }
    if line
        .chars()
        .any(|found| found.is_control() && found != '\t')
    {
        return Some("it has a control character".to_owned());
    }
    let shows_code = |form: &&&str| is_ours && line.contains(**form);
    if let Some(form) = FORMS_OF_CODE.iter().find(shows_code) {
        return Some(format!("it contains a debug form: {form}"));
    }
    (line.len() > MAX_LINE).then(|| format!("it has {} bytes", line.len()))
}

/// Panics if a line of a process's log is not clean.
pub fn assert_clean(log: &str) {
    for line in log.lines() {
        if let Some(fault) = fault(line) {
            panic!("a log line is not clean, {fault}\n{line}");
        }
    }
}

/// Inspects the lines of all replicas of this process from now on. A faulty line ends
/// the process: a panic in a replica's task would be lost.
pub fn inspect() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let filter = EnvFilter::new("dynoxide=error,aws_config=error,account_service=debug,info");
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(Inspector)
            .init();
    });
}

struct Inspector;

impl<'a> MakeWriter<'a> for Inspector {
    type Writer = Inspector;

    fn make_writer(&'a self) -> Self::Writer {
        Inspector
    }
}

impl io::Write for Inspector {
    /// The subscriber writes a whole line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        static ONE: Mutex<()> = Mutex::new(());
        if let Some(mut copy) = COPY.as_ref() {
            copy.write_all(line)?;
        }
        let text = String::from_utf8_lossy(line);
        if let Some(fault) = text.lines().find_map(fault) {
            let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("a log line is not clean, {fault}\n{text}");
            std::process::exit(101);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn faulty_lines_are_noticed() {
    assert_eq!(
        fault("2026-11-29T23:55:57Z INFO account_service::boot: serving"),
        None
    );
    for line in [
        "user oliviaowner does not exist",
        "\u{1b}[32mINFO\u{1b}[0m serving",
        "a\u{7f}b",
        "account_service: owner=Some(\"x\")",
        "audit: caller=None",
        &"x".repeat(MAX_LINE + 1),
    ] {
        assert!(fault(line).is_some(), "{line}");
    }
}
