//! DynamoDB, Momento and Secrets Manager in a process of their own, as far away
//! as they are told to be. Prints the environment that `serve` needs, line by
//! line and then an empty one, and obeys what it reads, line by line:
//! `cache ok`, `cache refuse`, `cache hang`, `cache flush`, `calls`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use account_service::{
    config::{Cli, Command, DevSettings},
    local::{
        ANY_PORT, Embedded,
        momento::{Call, Fate, Gate},
    },
};
use anyhow::{Context as _, Result, bail};
use async_io::Timer;
use clap::Parser;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};
use tonic::Status;

#[derive(Parser)]
struct Arguments {
    /// How long the cache takes for an answer, in microseconds.
    #[arg(long, default_value_t = 0)]
    cache_us: u64,
    /// How long the table takes for an answer, in microseconds.
    #[arg(long, default_value_t = 0)]
    table_us: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Ok,
    Refuse,
    Hang,
}

/// Delays, refuses, withholds and counts what the cache is asked.
struct Way {
    delay: Duration,
    mood: Mutex<Mood>,
    calls: Mutex<BTreeMap<Call, u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tonic::async_trait]
impl Gate for Way {
    async fn pass(&self, call: Call, _: &[&[u8]]) -> Result<Fate, Status> {
        *lock(&self.calls).entry(call).or_default() += 1;
        if !self.delay.is_zero() {
            // tokio's timer is a millisecond coarse.
            Timer::after(self.delay).await;
        }
        let mood = *lock(&self.mood);
        match mood {
            Mood::Ok => Ok(Fate::Served),
            Mood::Refuse => Err(Status::unavailable("the cache refuses")),
            Mood::Hang => std::future::pending().await,
        }
    }
}

/// Passes bytes on, those that come back so much later.
async fn relay(upstream: SocketAddr, delay: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind(ANY_PORT).await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(upstream).await else {
                continue;
            };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(pass_on(near_in, far_out, Duration::ZERO));
            tokio::spawn(pass_on(far_in, near_out, delay));
        }
    });
    Ok(addr)
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
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
        if to.write_all(&chunk).await.is_err() {
            return;
        }
    }
}

fn dev_settings() -> Result<DevSettings> {
    match Cli::try_parse_from(["account-service", "dev"])?.command {
        Command::Dev(settings) => Ok(settings),
        _ => bail!("`dev` is not what it was"),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let way = Arc::new(Way {
        delay: Duration::from_micros(arguments.cache_us),
        mood: Mutex::new(Mood::Ok),
        calls: Mutex::default(),
    });
    let embedded = Embedded::start(&dev_settings()?, way.clone()).await?;
    embedded.set_up().await?;
    let settings = embedded.backend_settings();
    let table = embedded.dynamodb_url();
    let table = table.strip_prefix("http://").context("no http")?.parse()?;
    let table = if arguments.table_us == 0 {
        table
    } else {
        relay(table, Duration::from_micros(arguments.table_us)).await?
    };
    let secret = embedded.momento.secret();
    println!("TABLE_NAME={}", settings.table_name);
    println!("MOMENTO_SECRET_ID={}", settings.momento_secret_id);
    println!("AWS_ENDPOINT_URL_DYNAMODB=http://{table}");
    if let Some(secrets) = settings.secrets_endpoint {
        println!("AWS_ENDPOINT_URL_SECRETS_MANAGER={secrets}");
    }
    println!("CACHE_NAME={}", settings.cache_name);
    println!(
        "MOMENTO_SECRET={}",
        secrecy::ExposeSecret::expose_secret(&secret)
    );
    println!();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.as_str() {
            "cache ok" => *lock(&way.mood) = Mood::Ok,
            "cache refuse" => *lock(&way.mood) = Mood::Refuse,
            "cache hang" => *lock(&way.mood) = Mood::Hang,
            "cache flush" => embedded.momento.evictor().flush(&settings.cache_name),
            "calls" => {}
            other => bail!("{other:?} is no order"),
        }
        let calls = std::mem::take(&mut *lock(&way.calls));
        println!("{calls:?}");
    }
    Ok(())
}
