//! Settings of `export` and `import`.

use std::path::PathBuf;
#[cfg(feature = "local")]
use std::{net::SocketAddr, path::Path};

use clap::Args;
#[cfg(feature = "local")]
use http::Uri;

use super::client::ConnectionSettings;

/// Settings of `export`.
#[derive(Debug, Clone, Args)]
pub struct ExportSettings {
    /// The connection to the server.
    #[command(flatten)]
    pub connection: ConnectionSettings,
}

/// Settings of `import`.
#[derive(Debug, Clone, Args)]
pub struct ImportSettings {
    /// The records, as `export` writes them. `-`: standard input.
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    /// Print for each line what an import would do, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Most records in a second. 0: unlimited.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub rate: u32,
    /// Records that are imported at once.
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub at_once: u16,
    /// The connection to the server.
    #[command(flatten)]
    pub connection: ConnectionSettings,
}

#[cfg(feature = "local")]
impl ImportSettings {
    /// The import of a file into the server of this process, which listens on this address.
    #[must_use]
    pub fn of_seed(file: &Path, addr: SocketAddr) -> Self {
        /// Records at once: as many as the default of `import`.
        const AT_ONCE: u16 = 16;
        let server = Uri::builder().scheme("http").authority(addr.to_string());
        Self {
            file: file.to_owned(),
            dry_run: false,
            rate: 0,
            at_once: AT_ONCE,
            connection: ConnectionSettings {
                server: server.path_and_query("/").build().unwrap_or_default(),
                tls_ca: None,
                tls_client_cert: None,
                tls_client_key: None,
                token_file: None,
            },
        }
    }
}
