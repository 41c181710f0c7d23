//! The process's limit of open files, which bounds its connections.

#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files besides the connections of clients: connections to backends, listeners, and
/// files of settings.
#[cfg(unix)]
const OTHER_FILES: u64 = 256;

/// Raises the soft limit of open files to the hard limit. Returns the number of connections
/// of clients that may be open at once: `usize::MAX` without a limit.
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

/// The limit of open files is not known on this platform.
#[cfg(not(unix))]
#[must_use]
pub fn raise_open_files() -> usize {
    usize::MAX
}
