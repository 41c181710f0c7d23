//! Settings of `changes`: the server to watch, and the position.

use std::path::PathBuf;

use clap::Args;

use super::{client::ConnectionSettings, values::uri_reference};

/// Settings of `changes`.
#[derive(Debug, Clone, Args)]
pub struct ChangesSettings {
    /// The connection to the server.
    #[command(flatten)]
    pub connection: ConnectionSettings,
    /// Save the position after the written lines in this file, and resume there.
    #[arg(long, env = "CHECKPOINT_FILE", value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Without a saved position, begin with the oldest change that is kept.
    #[arg(long)]
    pub oldest: bool,
    /// Only changes of this organization and of its members.
    #[arg(long, value_name = "NAME")]
    pub organization: Option<String>,
    /// Only changes of this user and of the user's memberships.
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// The `source` of the events: a URI reference.
    #[arg(
        long,
        env = "EVENT_SOURCE",
        value_name = "URI",
        default_value = "account-service",
        value_parser = uri_reference
    )]
    pub source: String,
}
