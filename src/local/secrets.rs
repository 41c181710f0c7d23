//! A Secrets Manager endpoint: GetSecretValue, CreateSecret and PutSecretValue, in memory.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::post,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;

use crate::domain::Timestamp;

#[derive(Debug, Clone)]
struct Secret {
    text: String,
    version: String,
    created_s: i64,
}

type SecretsByName = Arc<Mutex<HashMap<String, Secret>>>;

/// A running server. Dropping it stops the server.
#[derive(Debug)]
pub struct SecretsServer {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl SecretsServer {
    /// The address of the server.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for SecretsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a server without secrets.
///
/// # Errors
/// The server cannot listen on the address.
pub async fn start(addr: SocketAddr) -> io::Result<SecretsServer> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let app = Router::new()
        .route("/", post(handle))
        .with_state(SecretsByName::default());
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the embedded Secrets Manager failed");
        }
    });
    Ok(SecretsServer { addr, task })
}

async fn handle(State(secrets): State<SecretsByName>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target");
    let target = target.and_then(|it| it.to_str().ok()).unwrap_or_default();
    let input: Value = serde_json::from_slice(&body).unwrap_or_default();
    let response = match target {
        "secretsmanager.GetSecretValue" => get(&secrets, &input),
        "secretsmanager.CreateSecret" => create(&secrets, &input),
        "secretsmanager.PutSecretValue" => put(&secrets, &input),
        _ => Err(("UnknownOperationException", "no such operation")),
    };
    let (status, body) = match response {
        Ok(response) => (StatusCode::OK, response),
        Err((kind, message)) => (
            StatusCode::BAD_REQUEST,
            json!({ "__type": kind, "message": message }),
        ),
    };
    let content_type = [(CONTENT_TYPE, "application/x-amz-json-1.1")];
    (status, content_type, body.to_string()).into_response()
}

type SecretsResult = Result<Value, (&'static str, &'static str)>;

/// The part of a secret's ARN before its name.
const ARN: &str = "arn:aws:secretsmanager:us-east-1:000000000000:secret:";

/// The error if there is no secret of that name.
const MISSING: (&str, &str) = (
    "ResourceNotFoundException",
    "Secrets Manager can't find the specified secret.",
);

fn get(secrets: &SecretsByName, input: &Value) -> SecretsResult {
    let name = secret_name(input)?;
    let secrets = secrets.lock();
    let secret = secrets.get(name).ok_or(MISSING)?;
    Ok(json!({
        "ARN": arn(name),
        "Name": name,
        "CreatedDate": secret.created_s,
        "SecretString": secret.text,
        "VersionId": secret.version,
        "VersionStages": ["AWSCURRENT"],
    }))
}

fn put(secrets: &SecretsByName, input: &Value) -> SecretsResult {
    let name = secret_name(input)?;
    let new = new_version(input)?;
    let mut secrets = secrets.lock();
    let secret = secrets.get_mut(name).ok_or(MISSING)?;
    *secret = new;
    Ok(json!({
        "ARN": arn(name),
        "Name": name,
        "VersionId": secret.version,
        "VersionStages": ["AWSCURRENT"],
    }))
}

fn new_version(input: &Value) -> Result<Secret, (&'static str, &'static str)> {
    Ok(Secret {
        text: text(input, "SecretString")?.to_owned(),
        version: Uuid::new_v4().to_string(),
        created_s: Timestamp::now().0 / 1000,
    })
}

fn create(secrets: &SecretsByName, input: &Value) -> SecretsResult {
    let name = text(input, "Name")?;
    let secret = new_version(input)?;
    let mut secrets = secrets.lock();
    if secrets.contains_key(name) {
        return Err((
            "ResourceExistsException",
            "The operation failed because the secret already exists.",
        ));
    }
    let response = json!({ "ARN": arn(name), "Name": name, "VersionId": secret.version });
    secrets.insert(name.to_owned(), secret);
    Ok(response)
}

fn text<'a>(input: &'a Value, name: &'static str) -> Result<&'a str, (&'static str, &'static str)> {
    let text = input.get(name).and_then(Value::as_str);
    text.ok_or(("InvalidParameterException", "a parameter is missing"))
}

/// The name of the requested secret, from its name or its ARN.
fn secret_name(input: &Value) -> Result<&str, (&'static str, &'static str)> {
    let id = text(input, "SecretId")?;
    Ok(id.strip_prefix(ARN).unwrap_or(id))
}

fn arn(name: &str) -> String {
    format!("{ARN}{name}")
}
