//! Embedded servers on loopback: DynamoDB, Momento and Secrets Manager, spoken
//! to over their real wire protocols.

pub mod dynamodb;
pub mod momento;
pub mod secrets;

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use crate::{
    boot,
    config::{BackendSettings, DevSettings, EmbeddedCredentials, ServeSettings},
    setup,
};

/// Loopback, any free port.
pub const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const REGION: &str = "us-east-1";
const TABLE_NAME: &str = "accounts";
const CACHE_NAME: &str = "accounts-cache";
const SECRET_ID: &str = "accounts/MomentoAuthToken";

/// Why the embedded servers did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error("data directory {dir:?} cannot be used: {source}; choose another --data-dir")]
    DataDir {
        /// The directory.
        dir: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A server cannot listen.
    #[error("an embedded server cannot start: {0}")]
    Start(#[from] io::Error),
    /// The table, the secret or the cache cannot be created.
    #[error(transparent)]
    Setup(#[from] boot::Error),
}

/// The embedded servers, running.
#[derive(Debug)]
pub struct Embedded {
    /// DynamoDB.
    pub dynamodb: dynamodb::Running,
    /// Momento.
    pub momento: momento::Running,
    /// Secrets Manager.
    pub secrets: secrets::Running,
}

impl Embedded {
    /// Starts the servers, empty but for the tables in `data_dir`.
    ///
    /// # Errors
    /// [`Error::DataDir`], [`Error::Start`].
    pub async fn start(
        data_dir: Option<&Path>,
        gate: Arc<dyn momento::Gate>,
    ) -> Result<Self, Error> {
        let dynamodb = dynamodb::start(ANY_PORT, data_dir);
        let dynamodb = dynamodb.map_err(|source| match data_dir {
            Some(dir) => Error::DataDir {
                dir: dir.to_owned(),
                source,
            },
            None => Error::Start(source),
        })?;
        Ok(Self {
            dynamodb,
            momento: momento::start(ANY_PORT, gate).await?,
            secrets: secrets::start(ANY_PORT).await?,
        })
    }

    /// Creates table, secret and cache as far as they are missing, as `setup`
    /// does.
    ///
    /// # Errors
    /// [`Error::Setup`].
    pub async fn set_up(&self) -> Result<setup::Report, Error> {
        Ok(setup::run(&self.backend_settings(), Some(self.momento.secret())).await?)
    }

    /// Settings with which `serve` and `setup` use these servers.
    #[must_use]
    pub fn backend_settings(&self) -> BackendSettings {
        BackendSettings {
            table_name: TABLE_NAME.to_owned(),
            cache_name: CACHE_NAME.to_owned(),
            cache_connections: 1,
            momento_secret_id: SECRET_ID.to_owned(),
            aws_region: Some(REGION.to_owned()),
            dynamodb_endpoint: Some(format!("http://{}", self.dynamodb.addr())),
            secrets_endpoint: Some(format!("http://{}", self.secrets.addr())),
            aws_credentials: Some(EmbeddedCredentials),
        }
    }

    /// Settings with which `serve` serves what `dev` was asked for.
    #[must_use]
    pub fn serve_settings(&self, settings: &DevSettings) -> ServeSettings {
        ServeSettings {
            server: settings.server.clone(),
            backends: self.backend_settings(),
            cache: settings.cache.clone(),
            log: settings.log.clone(),
        }
    }

    /// What is running, and what to paste into a terminal, once the service
    /// listens on `addr`.
    #[must_use]
    pub fn greeting(&self, addr: SocketAddr, data_dir: Option<&Path>) -> String {
        let kept = match data_dir {
            Some(dir) => format!("kept in {}", dir.display()),
            None => "in memory, gone when the process ends".to_owned(),
        };
        let dynamodb = self.dynamodb.addr();
        let momento = self.momento.addr();
        let secrets = self.secrets.addr();
        let call = |method: &str, request: &str| {
            format!("grpcurl -plaintext -d '{request}' {addr} account.v1.AccountService/{method}")
        };
        let story = [
            call("CreateUser", r#"{"username":"oliviaowner","first_name":"Olivia","last_name":"Smith"}"#),
            call("CreateUser", r#"{"username":"membermichael","first_name":"Michael","last_name":"Scott"}"#),
            call("CreateOrganization", r#"{"organization_name":"olivia-org","founding_user":"oliviaowner"}"#),
            call("CheckMembership", r#"{"organization_name":"olivia-org","username":"membermichael"}"#),
            call("AddUserToOrganization", r#"{"organization_name":"olivia-org","member_username":"membermichael","role":"ROLE_MEMBER","adding_user":"oliviaowner"}"#),
            call("CheckMembership", r#"{"organization_name":"olivia-org","username":"membermichael"}"#),
            call("RemoveUserFromOrganization", r#"{"organization_name":"olivia-org","member_username":"membermichael","acting_user":"oliviaowner"}"#),
            call("CheckMembership", r#"{"organization_name":"olivia-org","username":"membermichael"}"#),
        ]
        .join("\n");
        format!(
            "embedded DynamoDB        http://{dynamodb}  table {TABLE_NAME} ({kept})\n\
             embedded Momento         http://{momento}  cache {CACHE_NAME}\n\
             embedded Secrets Manager http://{secrets}  secret {SECRET_ID}\n\
             account service          {addr}\n\
             \n\
             Try it:\n\
             \n\
             grpcurl -plaintext {addr} list\n\
             {story}\n"
        )
    }
}
