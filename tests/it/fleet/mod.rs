//! Several processes of the binary under load, while they are restarted, killed
//! and cut off from their backends.

mod flood;
pub mod load;
mod outage;
mod soak;

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::sleep,
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    harness::{
        Backends, Client, PATIENCE,
        binary::{Log, Server, free_address, over, scrape},
    },
    streams::eventually,
};

use self::load::{Load, Policy};

/// Replicas at fixed addresses.
pub struct Fleet {
    backends: Backends,
    places: Vec<Place>,
    has_near_caches: bool,
}

pub struct Place {
    addr: String,
    metrics: SocketAddr,
    /// The replica's standard error.
    log: Log,
    server: Mutex<Option<Server>>,
}

impl Fleet {
    /// Starts replicas without near caches, so that each read is looked up.
    async fn start(replicas: usize) -> Self {
        Self::start_replicas(replicas, false).await
    }

    /// Starts replicas, and waits until they serve from their near caches.
    async fn start_with_near_caches(replicas: usize) -> Self {
        let fleet = Self::start_replicas(replicas, true).await;
        for place in 0..replicas {
            fleet.active(place).await;
        }
        fleet
    }

    async fn start_replicas(replicas: usize, has_near_caches: bool) -> Self {
        let backends = Backends::start().await;
        let places = (0..replicas).map(|_| Place {
            addr: free_address().to_string(),
            metrics: free_address(),
            log: Log::new(),
            server: Mutex::default(),
        });
        let fleet = Self {
            places: places.collect(),
            backends,
            has_near_caches,
        };
        for place in 0..replicas {
            fleet.start_replica(place);
            fleet.serving(place).await;
        }
        fleet
    }

    fn start_replica(&self, place: usize) {
        let Place {
            addr,
            metrics,
            log,
            server,
        } = &self.places[place];
        let mut command: Command = over(&self.backends, &["serve"]);
        command
            .env("LISTEN_ADDR", addr)
            .env("METRICS_ADDR", metrics.to_string())
            .env("LOG", "info")
            .stderr(log.file());
        if self.has_near_caches {
            command.env("PEER_ADDR", "127.0.0.1:0");
        }
        let started = Server::start(command, "serving on", |_| true);
        *server.lock().unwrap() = Some(started);
    }

    /// Waits until a replica reports that it serves.
    async fn serving(&self, place: usize) {
        let serves = async {
            while !is_serving(&self.places[place].addr).await {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, serves).await.is_err() {
            let output = self.places[place].log.read();
            panic!("replica {place} does not serve; its log: {output:?}");
        }
    }

    /// Waits until a replica serves from its near cache.
    async fn active(&self, place: usize) {
        eventually("the replica is active", async || {
            scrape(self.places[place].metrics).contains("account_replica_active 1")
        })
        .await;
    }

    fn take(&self, place: usize) -> Server {
        self.places[place].server.lock().unwrap().take().unwrap()
    }

    /// SIGTERM; the replica has to end by itself, with success.
    async fn terminate(&self, place: usize) {
        let server = self.take(place);
        let code = tokio::task::spawn_blocking(|| server.terminate()).await;
        assert_eq!(code.unwrap(), Some(0));
    }

    /// SIGKILL.
    fn kill(&self, place: usize) {
        self.take(place).kill();
    }

    async fn restart_all_twice(&self) {
        for place in (0..self.places.len()).chain(0..self.places.len()) {
            sleep(Duration::from_millis(500)).await;
            self.terminate(place).await;
            self.start_replica(place);
            self.serving(place).await;
        }
    }

    fn pid(&self, place: usize) -> Option<u32> {
        let server = self.places[place].server.lock().unwrap();
        server.as_ref().map(Server::pid)
    }

    /// A client that uses all replicas, as the documentation recommends.
    fn client(&self) -> Client {
        let endpoints = self.places.iter().map(|place| endpoint(&place.addr));
        Client::new(Channel::balance_list(endpoints))
    }
}

fn endpoint(addr: &str) -> Endpoint {
    Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_secs(30))
}

async fn is_serving(addr: &str) -> bool {
    let Ok(channel) = endpoint(addr).connect().await else {
        return false;
    };
    let service = "account.v1.AccountService".to_owned();
    let mut health = HealthClient::new(channel);
    let response = health.check(HealthCheckRequest { service });
    match tokio::time::timeout(Duration::from_secs(1), response).await {
        Ok(Ok(response)) => response.get_ref().status() == ServingStatus::Serving,
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Runs load until `disturbances` are over.
async fn under_load<T>(
    fleet: &Fleet,
    policy: Policy,
    workers: usize,
    disturbances: impl Future<Output = T>,
) -> (Load, T) {
    let load = Load::prepare(fleet, policy, workers).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let running = load.run(&is_over);
    let disturbances = async {
        let outcome = disturbances.await;
        is_over.store(true, Ordering::Relaxed);
        outcome
    };
    let ((), outcome) = tokio::join!(running, disturbances);
    (load, outcome)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_fails_no_call() {
    let fleet = Fleet::start_with_near_caches(2).await;
    let restarts = fleet.restart_all_twice();
    let (load, ()) = under_load(&fleet, Policy::recommended(), 8, restarts).await;
    let report = load.report();
    println!("{report}");
    assert!(report.failed.is_empty(), "{report}");
    assert!(report.wrong.is_empty(), "{report}");
    assert!(report.reads > 0 && report.acknowledged > 0, "{report}");
    load.verify_all(&fleet).await;
}

/// Environment variable with a program. The program calls the addresses in its arguments
/// until its input ends, and fails if a call fails.
const CLIENT: &str = "FLEET_CLIENT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a client of another language: tests/clients/run"]
async fn a_rolling_restart_fails_no_call_of_a_grpc_library() {
    let fleet = Fleet::start(2).await;
    let program = std::env::var(CLIENT).unwrap();
    let mut words = program.split_whitespace();
    let mut client = tokio::process::Command::new(words.next().unwrap())
        .args(words)
        .args(fleet.places.iter().map(|place| &place.addr))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = BufReader::new(client.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(PATIENCE, output.next_line()).await;
    assert_eq!(first.unwrap().unwrap().as_deref(), Some("under way"));
    fleet.restart_all_twice().await;
    drop(client.stdin.take());
    println!("{:?}", output.next_line().await.unwrap());
    let ended = tokio::time::timeout(PATIENCE, client.wait()).await;
    assert!(ended.unwrap().unwrap().success());
}
