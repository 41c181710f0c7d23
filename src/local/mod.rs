//! Embedded servers on loopback: DynamoDB, Momento and Secrets Manager, with their real wire
//! protocols.

pub mod dynamodb;
pub mod momento;
pub mod secrets;

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use crate::{
    boot::{self, provision},
    config::{BackendSettings, DevSettings, EmbeddedCredentials, ServeSettings},
    store,
};

/// Loopback, any free port.
pub const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const REGION: &str = "us-east-1";
const CACHE_NAME: &str = "accounts-cache";
const SECRET_ID: &str = "accounts/MomentoAuthToken";

/// Rarely: the embedded secret does not change by itself.
const SECRET_REFRESH: Duration = Duration::from_secs(300);

/// A failed start of the embedded servers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error("data directory {dir:?} cannot be used: {source}; choose another --data-dir")]
    DataDir {
        /// The directory.
        dir: std::path::PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A server cannot listen.
    #[error("an embedded server cannot start: {0}")]
    Start(#[from] io::Error),
    /// The table, the secret or the cache cannot be created.
    #[error(transparent)]
    Setup(#[from] boot::Error),
}

/// An embedded or an external server.
#[derive(Debug)]
pub enum BackendServer<T> {
    /// Running in this process.
    Embedded(T),
    /// At this URL.
    External(String),
}

/// The embedded servers, running.
#[derive(Debug)]
pub struct Embedded {
    /// DynamoDB.
    pub dynamodb: BackendServer<dynamodb::DynamoDbServer>,
    /// Secrets Manager.
    pub secrets: BackendServer<secrets::SecretsServer>,
    /// Momento.
    pub momento: momento::MomentoServer,
    table_name: String,
    /// Unique in an external Secrets Manager: the secret of an earlier process may name a
    /// Momento server that has ended.
    secret_id: String,
}

impl Embedded {
    /// Starts the servers for which `settings` name no endpoint. They are empty, except for
    /// the tables in the data directory.
    ///
    /// # Errors
    /// [`Error::DataDir`], [`Error::Start`].
    pub async fn start(
        settings: &DevSettings,
        gate: Arc<dyn momento::Gate>,
    ) -> Result<Self, Error> {
        Ok(Self {
            dynamodb: match &settings.dynamodb_endpoint {
                Some(url) => BackendServer::External(url.clone()),
                None => BackendServer::Embedded(start_dynamodb(settings.data_dir.as_deref())?),
            },
            secrets: match &settings.secrets_endpoint {
                Some(url) => BackendServer::External(url.clone()),
                None => BackendServer::Embedded(secrets::start(ANY_PORT).await?),
            },
            momento: momento::start(ANY_PORT, gate).await?,
            table_name: settings.table_name.clone(),
            secret_id: match &settings.secrets_endpoint {
                Some(_) => format!("{SECRET_ID}-{}", uuid::Uuid::new_v4()),
                None => SECRET_ID.to_owned(),
            },
        })
    }

    /// Creates table, secret and cache unless they exist, as `setup` does.
    ///
    /// # Errors
    /// [`Error::Setup`].
    pub async fn set_up(&self) -> Result<provision::Report, Error> {
        Ok(provision::run(&self.backend_settings(), Some(self.momento.secret())).await?)
    }

    /// Settings with which `serve` and `setup` use these servers.
    #[must_use]
    pub fn backend_settings(&self) -> BackendSettings {
        BackendSettings {
            table_name: self.table_name.clone(),
            cache_name: CACHE_NAME.to_owned(),
            cache_connections: 1,
            momento_secret_id: self.secret_id.clone(),
            secret_refresh_s: SECRET_REFRESH,
            aws_region: Some(REGION.to_owned()),
            dynamodb_endpoint: Some(self.dynamodb_url()),
            dynamodb_attempt_timeout_ms: match self.dynamodb {
                BackendServer::Embedded(_) => store::ATTEMPT_TIMEOUT,
                // Other emulators may be slow.
                BackendServer::External(_) => store::OPERATION_TIMEOUT,
            },
            secrets_endpoint: Some(self.secrets_url()),
            aws_credentials: Some(EmbeddedCredentials),
        }
    }

    /// The URL of DynamoDB.
    #[must_use]
    pub fn dynamodb_url(&self) -> String {
        match &self.dynamodb {
            BackendServer::Embedded(server) => format!("http://{}", server.addr()),
            BackendServer::External(url) => url.clone(),
        }
    }

    fn secrets_url(&self) -> String {
        match &self.secrets {
            BackendServer::Embedded(server) => format!("http://{}", server.addr()),
            BackendServer::External(url) => url.clone(),
        }
    }

    /// The settings of `serve` for these settings of `dev`.
    #[must_use]
    pub fn serve_settings(&self, settings: &DevSettings) -> ServeSettings {
        ServeSettings {
            server: settings.server.clone(),
            backends: self.backend_settings(),
            cache: settings.cache.clone(),
            log: settings.log.clone(),
        }
    }

    /// The addresses of the servers and of the service, which listens on `addr`, and commands
    /// to try.
    #[must_use]
    pub fn greeting(&self, addr: SocketAddr, data_dir: Option<&Path>) -> String {
        let dynamodb = match (&self.dynamodb, data_dir) {
            (BackendServer::External(_), _) => "external".to_owned(),
            (BackendServer::Embedded(_), Some(dir)) => {
                format!("embedded, kept in {}", dir.display())
            }
            (BackendServer::Embedded(_), None) => {
                "embedded, in memory: lost when the process ends".to_owned()
            }
        };
        let secrets = match &self.secrets {
            BackendServer::External(_) => "external",
            BackendServer::Embedded(_) => "embedded",
        };
        let dynamodb_url = self.dynamodb_url();
        let momento = self.momento.addr();
        let secrets_url = self.secrets_url();
        let table = &self.table_name;
        let secret = &self.secret_id;
        let story = STORY.map(|line| line.replace("ADDR", &addr.to_string()));
        let story = story.join("\n");
        format!(
            "DynamoDB         {dynamodb_url}  table {table} ({dynamodb})\n\
             Momento          http://{momento}  cache {CACHE_NAME} (embedded)\n\
             Secrets Manager  {secrets_url}  secret {secret} ({secrets})\n\
             account service  {addr}\n\
             \n\
             Try it:\n\
             \n\
             {story}\n"
        )
    }
}

/// The commands of the tutorial.
const STORY: [&str; 9] = [
    "grpcurl -plaintext ADDR list",
    r#"grpcurl -plaintext -d '{"username":"oliviaowner","first_name":"Olivia","last_name":"Smith"}' ADDR account.v1.AccountService/CreateUser"#,
    r#"grpcurl -plaintext -d '{"username":"membermichael","first_name":"Michael","last_name":"Scott"}' ADDR account.v1.AccountService/CreateUser"#,
    r#"grpcurl -plaintext -d '{"organization_name":"olivia-org","founding_user":"oliviaowner"}' ADDR account.v1.AccountService/CreateOrganization"#,
    r#"grpcurl -plaintext -emit-defaults -d '{"organization_name":"olivia-org","username":"membermichael"}' ADDR account.v1.AccountService/CheckMembership"#,
    r#"grpcurl -plaintext -d '{"organization_name":"olivia-org","member_username":"membermichael","role":"ROLE_MEMBER","adding_user":"oliviaowner"}' ADDR account.v1.AccountService/AddUserToOrganization"#,
    r#"grpcurl -plaintext -emit-defaults -d '{"organization_name":"olivia-org","username":"membermichael"}' ADDR account.v1.AccountService/CheckMembership"#,
    r#"grpcurl -plaintext -d '{"organization_name":"olivia-org","member_username":"membermichael","acting_user":"oliviaowner"}' ADDR account.v1.AccountService/RemoveUserFromOrganization"#,
    r#"grpcurl -plaintext -emit-defaults -d '{"organization_name":"olivia-org","username":"membermichael"}' ADDR account.v1.AccountService/CheckMembership"#,
];

fn start_dynamodb(data_dir: Option<&Path>) -> Result<dynamodb::DynamoDbServer, Error> {
    dynamodb::start(ANY_PORT, data_dir).map_err(|source| match data_dir {
        Some(dir) => Error::DataDir {
            dir: dir.to_owned(),
            source,
        },
        None => Error::Start(source),
    })
}
