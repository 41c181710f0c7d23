//! A proxy in front of a DynamoDB server. A script records each request and decides its
//! fate.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{StatusCode, Uri, header::CONTENT_LENGTH},
    response::{IntoResponse as _, Response},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use super::script::{BESIDE, Fate, Script};

pub struct DynamoDbProxy {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Proxy {
    upstream: String,
    client: Client<HttpConnector, Body>,
    script: Arc<Script>,
}

impl DynamoDbProxy {
    pub async fn start(upstream: String, script: Arc<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let proxy = Proxy {
            upstream,
            client: Client::builder(TokioExecutor::new()).build_http(),
            script,
        };
        let app = Router::new().fallback(pass_on).with_state(proxy);
        let task = tokio::spawn(async move {
            axum::serve(listener, app).await.unwrap();
        });
        Self { addr, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for DynamoDbProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The capacity units that a response reports.
fn consumed(response: &[u8]) -> f64 {
    let response: Value = serde_json::from_slice(response).unwrap();
    let consumed = &response["ConsumedCapacity"];
    let of_tables = consumed
        .as_array()
        .map_or(std::slice::from_ref(consumed), Vec::as_slice);
    let units = of_tables
        .iter()
        .map(|table| table["CapacityUnits"].as_f64());
    units.map(Option::unwrap_or_default).sum()
}

/// Completes a request that has arrived, even if its caller has left.
async fn pass_on(State(proxy): State<Proxy>, request: Request) -> Response {
    tokio::spawn(pass_one_on(proxy, request)).await.unwrap()
}

async fn pass_one_on(proxy: Proxy, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let mut body = to_bytes(body, usize::MAX).await.unwrap();
    let target = parts.headers["x-amz-target"].to_str().unwrap();
    let about = String::from_utf8_lossy(&body);
    let is_of_streams = target.starts_with("DynamoDBStreams");
    // RPCs write the note of a deletion. Only background work reads it.
    let is_of_notes = target.ends_with("BatchGetItem") && about.contains("DELETED#");
    let is_beside = is_of_notes
        || ["SERVICE#", "CHANGELOG#"]
            .iter()
            .any(|key| about.contains(key));
    let what = if is_of_streams || is_beside {
        BESIDE
    } else {
        ""
    };
    let operation = format!("{what}{}", target.rsplit('.').next().unwrap());
    let header = |name| parts.headers.get(name).map(|it| it.to_str().unwrap());
    if let Some(parent) = header("traceparent") {
        let state = header("tracestate").unwrap_or_default();
        proxy.script.in_trace(parent, state);
    }
    let fate = proxy.script.on_call(&operation, &about).await;
    match &fate {
        Fate::Refused => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Fate::Responded(status, body) => {
            let status = StatusCode::from_u16(*status).unwrap();
            return (status, body.clone()).into_response();
        }
        _ => {}
    }
    let is_metered = !is_of_streams && proxy.script.is_metered();
    if is_metered {
        let mut request: Value = serde_json::from_slice(&body).unwrap();
        request["ReturnConsumedCapacity"] = "TOTAL".into();
        body = request.to_string().into();
        parts.headers.remove(CONTENT_LENGTH);
    }
    parts.uri = format!("{}{}", proxy.upstream, parts.uri)
        .parse::<Uri>()
        .unwrap();
    let send = || {
        let request = http::Request::from_parts(parts.clone(), Body::from(body.clone()));
        proxy.client.request(request)
    };
    let Ok(response) = send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    if is_metered {
        let (parts, body) = response.into_parts();
        let body = to_bytes(Body::new(body), usize::MAX).await.unwrap();
        proxy.script.charge(&operation, consumed(&body));
        return Response::from_parts(parts, Body::from(body));
    }
    match fate {
        Fate::Unanswered => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Fate::ReplyHeld(gate) => gate.pass().await,
        Fate::Slow(delay) => tokio::time::sleep(delay).await,
        Fate::ServedTwice => drop(send().await),
        Fate::Abandoned => std::future::pending().await,
        _ => {}
    }
    response.map(Body::new).into_response()
}
