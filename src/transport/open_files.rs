//! The process's limit of open files, which bounds its connections.

#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that are no connections of clients: those to backends, listeners, and
/// files of settings.
#[cfg(unix)]
const OTHER_FILES: u64 = 256;

/// Raises the soft limit of open files to the hard one; returns how many connections
/// of clients may be open at once. `usize::MAX` where there is no limit.
#[cfg(unix)]
#[must_use]
pub fn raise_open_files() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    files.map_or(usize::MAX, |files| {
        usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX)
    })
}

/// Open files have no limit that is known here.
#[cfg(not(unix))]
#[must_use]
pub fn raise_open_files() -> usize {
    usize::MAX
}
