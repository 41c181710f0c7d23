//! A configuration file that is read again when it changes.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Interval of reading the file again.
const POLL: Duration = Duration::from_secs(5);

/// A configuration file in use.
pub(super) struct ReloadedFile {
    path: PathBuf,
    /// Its content at the start.
    pub(super) text: String,
    /// The content in words, for the log.
    what: &'static str,
    /// Name of a gauge: 1 if the content of the file is in use, 0 while it is rejected or
    /// cannot be read.
    in_use: &'static str,
}

impl ReloadedFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) async fn read(
        path: &Path,
        what: &'static str,
        in_use: &'static str,
    ) -> Result<Self, io::Error> {
        Ok(Self {
            text: tokio::fs::read_to_string(path).await?,
            path: path.to_owned(),
            what,
            in_use,
        })
    }

    /// Reads the file again at intervals, and passes a changed content to `adopt`. The last valid
    /// content stays in use while the file cannot be read, or is rejected. Never ends.
    pub(super) async fn run_reload<E: Display>(&self, adopt: impl Fn(&str) -> Result<(), E>) {
        let Self {
            path,
            text,
            what,
            in_use,
        } = self;
        let gauge = metrics::gauge!(*in_use);
        let (mut known, mut is_valid) = (text.clone(), true);
        gauge.set(1);
        loop {
            tokio::time::sleep(POLL).await;
            let text = match tokio::fs::read_to_string(path).await {
                Ok(text) if text == known => {
                    gauge.set(u32::from(is_valid));
                    continue;
                }
                Ok(text) => text,
                Err(error) => {
                    gauge.set(0);
                    tracing::warn!(%error, "the {what} cannot be read; the last one stays in use");
                    continue;
                }
            };
            let adopted = adopt(&text);
            is_valid = adopted.is_ok();
            gauge.set(u32::from(is_valid));
            match adopted {
                Ok(()) => tracing::info!("a new {what} is in use"),
                Err(error) => {
                    tracing::error!(%error, "the changed {what} is rejected; the last one stays in use");
                }
            }
            known = text;
        }
    }
}
