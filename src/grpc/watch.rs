//! The response stream of one watcher. It holds one response at a time, and ends if the
//! client does not receive it in time.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::Stream;
use http::Extensions;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    convert,
    middleware::FlowKey,
    share_limit::SharePermit,
    status::{self, Reason},
};
use crate::{
    auth::Caller,
    proto::account_v1::WatchChangesResponse,
    service::Watcher,
    transport::listener::{MemoryCharge, Peer},
};

/// Shortest lifetime of a stream, even if its connection is about to end.
const LEAST_LIFETIME: Duration = Duration::from_secs(1);

/// The limits of a stream of changes.
#[derive(Debug, Clone)]
pub struct WatchLimits {
    /// Longest time until a client receives a response.
    pub patience: Duration,
    /// Cancelled when the service stops.
    pub stopping: CancellationToken,
    /// Lifetime of a connection, and of its streams.
    pub lifetime: Duration,
}

/// The start of a stream of changes.
#[derive(Debug)]
pub(super) struct Begin {
    /// Age of its connection.
    pub(super) age: Duration,
    /// Remaining validity of its caller's credentials.
    pub(super) credentials: Option<Duration>,
    /// Cancelled when another policy replaces the one that grants the stream.
    policy_replaced: Option<CancellationToken>,
    /// The charge of unreceived responses.
    charge: MemoryCharge,
}

impl Begin {
    pub(super) fn of(extensions: &Extensions) -> Self {
        let peer = extensions.get::<Peer>();
        let caller = extensions.get::<Caller>();
        let expires = caller.and_then(|caller| caller.expires);
        Self {
            policy_replaced: caller.and_then(|caller| caller.policy_replaced.clone()),
            charge: peer.map_or_else(|| Peer::in_process().charge_memory(), Peer::charge_memory),
            age: peer.map_or(Duration::ZERO, |peer| peer.since.elapsed()),
            credentials: expires.map(|expires| {
                let expires = UNIX_EPOCH.checked_add(Duration::from_secs(expires));
                let left = expires.and_then(|at| at.duration_since(SystemTime::now()).ok());
                left.unwrap_or_default()
            }),
        }
    }
}

/// The responses of a watcher.
pub struct WatchResponses {
    responses: Receiver<(WatchChangesResponse, MemoryCharge)>,
    end: Arc<Mutex<Option<Status>>>,
}

impl WatchResponses {
    /// Sends changes until the service stops, the connection ends, the caller's credentials
    /// expire, or another policy replaces the one that grants them.
    pub(super) fn start(
        watcher: Watcher,
        permit: SharePermit<FlowKey>,
        limits: WatchLimits,
        begin: Begin,
    ) -> Self {
        let left = limits
            .lifetime
            .saturating_sub(begin.age)
            .max(LEAST_LIFETIME);
        let (left, over) = match begin.credentials {
            Some(credentials) if credentials < left => (credentials, status::expired()),
            _ => (left, status::lifetime_ended()),
        };
        let (sender, responses) = mpsc::channel(1);
        let end = Arc::new(Mutex::new(None));
        let ended = end.clone();
        tokio::spawn(async move {
            let policy_replaced = begin.policy_replaced.unwrap_or_default();
            let sending = async {
                tokio::select! {
                    status = send_changes(watcher, &sender, &begin.charge, limits.patience) => status,
                    () = policy_replaced.cancelled() => status::policy_replaced(),
                }
            };
            let sending = timeout(left, sending);
            let stopped = limits.stopping.run_until_cancelled(sending).await;
            let status = match stopped {
                None => status::stopping(),
                Some(Err(_)) => over,
                Some(Ok(status)) => status,
            };
            drop(permit);
            *ended.lock() = Some(status);
        });
        Self { responses, end }
    }
}

/// Sends changes, and returns the reason of the end.
async fn send_changes(
    mut watcher: Watcher,
    sender: &Sender<(WatchChangesResponse, MemoryCharge)>,
    charge: &MemoryCharge,
    patience: Duration,
) -> Status {
    loop {
        let next = tokio::select! {
            next = watcher.next() => next,
            () = sender.closed() => return Status::cancelled("the client has left"),
        };
        let response = match next {
            Ok(changed) => convert::changes(&changed),
            Err(error) => return status::watch_failed(error),
        };
        let mut held = charge.another();
        held.add(response.encoded_len());
        let sent = sender.send_timeout((response, held), patience);
        if sent.await.is_err() {
            return status::plain(
                Code::ResourceExhausted,
                Reason::SlowConsumer,
                "the client did not receive changes in time; continue after the last cursor",
            );
        }
    }
}

impl Stream for WatchResponses {
    type Item = Result<WatchChangesResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let response = ready!(this.responses.poll_recv(context));
        let end = || this.end.lock().take();
        let response = response.map(|(response, _)| Ok(response));
        Poll::Ready(response.or_else(|| end().map(Err)))
    }
}
