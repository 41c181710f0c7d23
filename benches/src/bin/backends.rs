//! DynamoDB, Momento and Secrets Manager in one process, with adjustable delays. Prints the
//! environment variables for `serve`, one a line, and then an empty line. Reads commands, one a
//! line: `cache ok`, `cache refuse`, `cache hang`, `cache flush`, `table ok`, `table hang`, `calls`.
//! After each, prints the calls and bytes since the previous command, as JSON.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use account_service::{
    boot::provision,
    config::{Cli, Command, DevSettings},
    local::{
        ANY_PORT, Embedded,
        momento::{DataCall, Fate, Gate},
    },
};
use anyhow::{Context as _, Result, bail};
use async_io::Timer;
use clap::Parser;
use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Builder,
    sync::{mpsc, watch},
};
use tonic::Status;

#[derive(Parser)]
struct Arguments {
    /// Delay of the cache's responses, in microseconds.
    #[arg(long, default_value_t = 0)]
    cache_us: u64,
    /// Delay of the table's responses, in microseconds.
    #[arg(long, default_value_t = 0)]
    table_us: u64,
    /// Counts bytes, by relays in front of the backends.
    #[arg(long)]
    meter: bool,
    /// Threads. With several, no request waits long for another one.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FaultMode {
    Ok,
    Refuse,
    Hang,
}

/// Delays, rejects, withholds and counts the requests to the cache.
struct CacheGate {
    delay: Duration,
    mode: Mutex<FaultMode>,
    calls: Mutex<BTreeMap<DataCall, u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tonic::async_trait]
impl Gate for CacheGate {
    async fn pass(&self, call: DataCall, _: &[&[u8]]) -> Result<Fate, Status> {
        *lock(&self.calls).entry(call).or_default() += 1;
        if !self.delay.is_zero() {
            // tokio's timer has a resolution of a millisecond.
            Timer::after(self.delay).await;
        }
        let mode = *lock(&self.mode);
        match mode {
            FaultMode::Ok => Ok(Fate::Served),
            FaultMode::Refuse => Err(Status::unavailable("the cache rejects requests")),
            FaultMode::Hang => std::future::pending().await,
        }
    }
}

/// Relayed bytes: of requests, and of responses.
#[derive(Default)]
struct Meter([AtomicU64; 2]);

impl Meter {
    /// The bytes since the last read.
    fn read(&self) -> [u64; 2] {
        self.0
            .each_ref()
            .map(|bytes| bytes.swap(0, Ordering::Relaxed))
    }
}

/// Starts a relay. Bytes of responses are delayed, and withheld while it is not `open`.
async fn relay(
    upstream: SocketAddr,
    delay: Duration,
    meter: &Arc<Meter>,
    open: watch::Receiver<bool>,
) -> Result<SocketAddr> {
    let meter = meter.clone();
    let listener = TcpListener::bind(ANY_PORT).await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(upstream).await else {
                continue;
            };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            for (way, from, to, delay) in [
                (0, near_in, far_out, Duration::ZERO),
                (1, far_in, near_out, delay),
            ] {
                tokio::spawn(forward(from, to, delay, meter.clone(), way, open.clone()));
            }
        }
    });
    Ok(addr)
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    meter: Arc<Meter>,
    way: usize,
    mut open: watch::Receiver<bool>,
) {
    let (sender, mut chunks) = mpsc::channel(64);
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = std::time::Instant::now() + delay;
            if sender.send((due, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    });
    while let Some((due, chunk)) = chunks.recv().await {
        if !delay.is_zero() {
            Timer::at(due).await;
        }
        if open.wait_for(|is_open| *is_open).await.is_err() {
            return;
        }
        if to.write_all(&chunk).await.is_err() {
            return;
        }
        meter.0[way].fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
}

fn dev_settings() -> Result<DevSettings> {
    match Cli::try_parse_from(["account-service", "dev"])?.command {
        Command::Dev(settings) => Ok(settings),
        _ => bail!("`dev` is another command"),
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = Builder::new_multi_thread()
        .worker_threads(arguments.threads)
        .enable_all()
        .build()?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: Arguments) -> Result<()> {
    let gate = Arc::new(CacheGate {
        delay: Duration::from_micros(arguments.cache_us),
        mode: Mutex::new(FaultMode::Ok),
        calls: Mutex::default(),
    });
    let embedded = Embedded::start(&dev_settings()?, gate.clone()).await?;
    let meters = [Arc::new(Meter::default()), Arc::new(Meter::default())];
    let [of_cache, of_table] = &meters;
    let settings = embedded.backend_settings();
    let table = embedded.dynamodb_url();
    let table = table.strip_prefix("http://").context("no http")?.parse()?;
    let (open_cache, open_table) = (watch::Sender::new(true), watch::Sender::new(true));
    let table = if arguments.table_us == 0 && !arguments.meter {
        table
    } else {
        let delay = Duration::from_micros(arguments.table_us);
        relay(table, delay, of_table, open_table.subscribe()).await?
    };
    let mut secret = embedded.momento.secret();
    if arguments.meter {
        let cache = embedded.momento.addr();
        let near = relay(cache, Duration::ZERO, of_cache, open_cache.subscribe()).await?;
        let text = secret.expose_secret();
        secret = text.replace(&cache.to_string(), &near.to_string()).into();
    }
    provision::run(&settings, Some(secret.clone())).await?;
    println!("TABLE_NAME={}", settings.table_name);
    println!("MOMENTO_SECRET_ID={}", settings.momento_secret_id);
    println!("AWS_ENDPOINT_URL_DYNAMODB=http://{table}");
    if let Some(secrets) = settings.secrets_endpoint {
        println!("AWS_ENDPOINT_URL_SECRETS_MANAGER={secrets}");
    }
    println!("CACHE_NAME={}", settings.cache_name);
    println!("MOMENTO_SECRET={}", secret.expose_secret());
    println!();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.as_str() {
            "cache ok" => *lock(&gate.mode) = FaultMode::Ok,
            "cache refuse" => *lock(&gate.mode) = FaultMode::Refuse,
            "cache hang" => *lock(&gate.mode) = FaultMode::Hang,
            "cache flush" => embedded.momento.evictor().flush(&settings.cache_name),
            "table ok" => drop(open_table.send_replace(true)),
            "table hang" => drop(open_table.send_replace(false)),
            "calls" => {}
            other => bail!("{other:?} is not a command"),
        }
        let calls = std::mem::take(&mut *lock(&gate.calls));
        let calls: BTreeMap<_, _> = calls
            .into_iter()
            .map(|(call, times)| (format!("{call:?}"), times))
            .collect();
        let [cache, table] = meters.each_ref().map(|meter| meter.read());
        println!(
            "{}",
            json!({"calls": calls, "cache": cache, "table": table})
        );
    }
    Ok(())
}
