//! The service over its embedded servers, called in the process, so that the fuzzer's input
//! reaches all code that a caller's input reaches.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use account_service::{
    auth::Authorizer,
    boot::App,
    config::{Cli, Command},
    grpc::{AccountService, AuthLayer, with_error_details},
    local::{Embedded, momento},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::{ServiceBuilder, ServiceExt as _, util::MapResponseLayer};

const PATH: &str = "/account.v1.AccountService/";

struct Served {
    runtime: Runtime,
    service: AccountService,
    _embedded: Embedded,
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    use clap::Parser as _;
    let runtime = Runtime::new().expect("a runtime");
    let Command::Dev(mut settings) = Cli::parse_from(["account-service", "dev"]).command else {
        unreachable!("`dev` was requested");
    };
    // So that streams end soon.
    settings.server.watch_patience_ms = Duration::from_millis(1);
    settings.server.max_connection_age_s = Duration::from_millis(10);
    let (service, embedded) = runtime.block_on(async {
        // Rust's own `main` ignores this signal, libFuzzer's does not: a write to a closed
        // connection would end the process.
        drop(signal(SignalKind::pipe()).expect("a handler of SIGPIPE"));
        let embedded = Embedded::start(&settings, Arc::new(momento::OpenGate));
        let embedded = embedded.await.expect("embedded servers");
        embedded
            .set_up()
            .await
            .expect("a table, a secret and a cache");
        let app = App::boot(&embedded.serve_settings(&settings)).await;
        let app = app.expect("the service boots");
        (app.service().clone(), embedded)
    });
    Served {
        runtime,
        service,
        _embedded: embedded,
    }
});

/// Calls a method with these bytes as its message. The response must be OK, or an error with a
/// reason that does not blame the service.
pub fn call(method: &str, message: &[u8]) -> Status {
    let Ok(request) = http::Request::post(format!("{PATH}{method}"))
        .header("content-type", "application/grpc")
        .body(framed(message))
    else {
        return Status::new(Code::InvalidArgument, "no path");
    };
    let service = ServiceBuilder::new()
        .layer(MapResponseLayer::new(with_error_details))
        .layer(AuthLayer(Authorizer::open()))
        .service(SERVED.service.clone().into_server());
    let status = SERVED.runtime.block_on(async {
        let response = match service.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if let Some(status) = Status::from_header_map(response.headers()) {
            return status;
        }
        let body = response.into_body().collect().await;
        let trailers = body.as_ref().map(|body| body.trailers());
        match trailers {
            Ok(Some(trailers)) => Status::from_header_map(trailers).expect("a status"),
            Ok(None) => panic!("no trailers"),
            Err(status) => status.clone(),
        }
    });
    let blames_us = [Code::Internal, Code::Unknown, Code::DataLoss];
    assert!(!blames_us.contains(&status.code()), "{method}: {status:?}");
    let has_reason = status.get_error_details().error_info().is_some();
    assert!(status.code() == Code::Ok || has_reason, "{status:?}");
    status
}

fn framed(message: &[u8]) -> Body {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("inputs are small"));
    frame.put_slice(message);
    let frame: Bytes = frame.freeze();
    Body::new(Full::new(frame))
}
