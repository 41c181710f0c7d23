//! Load over HTTP/2 with little CPU time of its own: requests are encoded before a run, and
//! responses are compared byte by byte.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use async_io::Timer;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::join_all;
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use http::{Method, Request, Uri};
use prost::Message;
use tokio::net::TcpStream;
use tonic::Code;

/// A repeated call, each time with the next of several messages.
#[derive(Debug, Clone)]
pub struct Target {
    /// The address, `host:port`.
    pub addr: String,
    /// `/package.Service/Method`.
    pub path: String,
    /// Headers besides those of gRPC.
    pub headers: Vec<(String, String)>,
    /// The bodies of the requests.
    pub bodies: Rc<Vec<Bytes>>,
    /// The accepted bodies of responses. Empty: any body.
    pub responses: Vec<Bytes>,
}

impl Target {
    /// Whether a response is accepted.
    pub fn accepts(&self, response: &Response) -> bool {
        let is_expected = self.responses.is_empty() || self.responses.contains(&response.body);
        response.code == Code::Ok && is_expected
    }
}

/// A response.
#[derive(Debug)]
pub struct Response {
    /// The gRPC code.
    pub code: Code,
    /// The message in its gRPC frame.
    pub body: Bytes,
}

/// One call, at an open pace.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// The due time, since the start of the run.
    pub due: Duration,
    /// The time from then to the response.
    pub latency: Duration,
    /// Whether the response was accepted.
    pub is_accepted: bool,
}

/// A message in its gRPC frame.
pub fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut body = BytesMut::with_capacity(length + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut body);
    body.freeze()
}

/// The pace of calls.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// A number of concurrent calls, each as soon as the previous one ends.
    Closed(usize),
    /// A number of calls a second, at random times, independent of earlier calls.
    Open(u32),
}

/// The results of a run.
#[derive(Debug)]
pub struct RunResult {
    /// Calls with an accepted response.
    pub calls: u64,
    /// Calls that failed, or had another response.
    pub failed: u64,
    /// Failed calls that were rejected because of the load.
    pub refused: u64,
    /// In nanoseconds. At an open pace, from the due time of the call.
    pub latency: Histogram<u64>,
    /// From the first call to the last response.
    pub duration: Duration,
    /// The calls one by one, at an open pace.
    pub samples: Vec<Sample>,
}

/// Connections to one server.
#[derive(Clone)]
pub struct Caller {
    target: Target,
    uri: Uri,
    connections: Vec<SendRequest<Bytes>>,
    next: Rc<Cell<usize>>,
}

impl Caller {
    /// Opens connections. Must be called within a `LocalSet`.
    pub async fn connect(target: Target, connections: usize) -> Result<Self> {
        let mut opened = Vec::new();
        for _ in 0..connections {
            let stream = TcpStream::connect(&target.addr).await?;
            stream.set_nodelay(true)?;
            let (send, connection) = h2::client::Builder::new()
                .initial_window_size(1 << 20)
                .initial_connection_window_size(1 << 24)
                .handshake(stream)
                .await?;
            tokio::task::spawn_local(connection);
            opened.push(send);
        }
        Ok(Self {
            uri: format!("http://{}{}", target.addr, target.path).parse()?,
            target,
            connections: opened,
            next: Rc::default(),
        })
    }

    /// Makes one call.
    pub async fn call(&self) -> Result<Response> {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let connection = &self.connections[number % self.connections.len()];
        let body = self.target.bodies[number % self.target.bodies.len()].clone();
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header("te", "trailers")
            .header("content-type", "application/grpc");
        for (name, value) in &self.target.headers {
            request = request.header(name, value);
        }
        let request = request.body(())?;
        let mut send = connection.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(body, true)?;
        let mut response = response.await?;
        let mut body = Bytes::new();
        while let Some(data) = response.body_mut().data().await {
            let data = data?;
            response
                .body_mut()
                .flow_control()
                .release_capacity(data.len())?;
            body = if body.is_empty() {
                data
            } else {
                [body, data].concat().into()
            };
        }
        let trailers = response.body_mut().trailers().await?;
        let trailers = trailers.as_ref().unwrap_or(response.headers());
        let status = trailers.get("grpc-status").context("no status")?;
        let code = Code::from_bytes(status.as_bytes());
        Ok(Response { code, body })
    }

    /// Makes calls for a duration.
    pub async fn run(&self, pace: Pace, duration: Duration) -> Result<RunResult> {
        let seen = Rc::new(RefCell::new(RunResult {
            calls: 0,
            failed: 0,
            refused: 0,
            latency: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
            duration: Duration::ZERO,
            samples: Vec::new(),
        }));
        let began = Instant::now();
        match pace {
            Pace::Closed(count) => {
                let workers = (0..count).map(|_| async {
                    while began.elapsed() < duration {
                        self.once(Instant::now(), &seen, None).await;
                    }
                });
                join_all(workers).await;
            }
            Pace::Open(rate) => {
                let mut due = began;
                let mut calls = Vec::new();
                while due.duration_since(began) < duration {
                    if due > Instant::now() {
                        Timer::at(due).await;
                    }
                    let (caller, seen) = (self.clone(), seen.clone());
                    calls.push(tokio::task::spawn_local(async move {
                        caller.once(due, &seen, Some(began)).await;
                    }));
                    let pause = -(1.0 - fastrand::f64()).ln() / f64::from(rate);
                    due += Duration::from_secs_f64(pause);
                }
                for call in calls {
                    call.await?;
                }
            }
        }
        let mut seen = Rc::into_inner(seen).context("calls go on")?.into_inner();
        seen.duration = began.elapsed();
        Ok(seen)
    }

    async fn once(&self, due: Instant, seen: &RefCell<RunResult>, began: Option<Instant>) {
        let response = self.call().await;
        let mut seen = seen.borrow_mut();
        let is_refused = matches!(&response, Ok(it) if it.code == Code::ResourceExhausted);
        let is_accepted = response.is_ok_and(|response| self.target.accepts(&response));
        if let Some(began) = began {
            seen.samples.push(Sample {
                due: due - began,
                latency: due.elapsed(),
                is_accepted,
            });
        }
        if is_accepted {
            seen.calls += 1;
            let nanos = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
            seen.latency.saturating_record(nanos);
        } else {
            seen.failed += 1;
            seen.refused += u64::from(is_refused);
        }
    }
}
