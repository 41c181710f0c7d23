//! A DynamoDB server: dynoxide, on its own thread and runtime, because it blocks the calling
//! thread.

use std::{
    convert::Infallible,
    fs::{File, TryLockError},
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    thread::JoinHandle,
    time::Duration,
};

use dynoxide::Database;
use tokio::sync::oneshot;

/// Name of the database's file in the data directory.
const FILE_NAME: &str = "accounts.db";
/// Name of the file that is locked while a process uses the data directory.
const LOCK_NAME: &str = "lock";
/// Pause between two deletions of expired items.
const SWEEP_PAUSE: Duration = Duration::from_secs(60);

/// A running server. Dropping it stops the server, and waits for its end.
#[derive(Debug)]
pub struct DynamoDbServer {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _lock: Option<File>,
}

impl DynamoDbServer {
    /// The address of the server.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for DynamoDbServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Fails only if the server has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the embedded DynamoDB panicked");
        }
    }
}

/// Starts a server on the tables in `data_dir`, or in memory.
///
/// # Errors
/// The directory cannot be used, or the server cannot listen on the address.
pub fn start(addr: SocketAddr, data_dir: Option<&Path>) -> io::Result<DynamoDbServer> {
    let lock = data_dir.map(lock).transpose()?;
    let database = match data_dir {
        None => Database::memory(),
        Some(dir) => Database::new(&dir.join(FILE_NAME).to_string_lossy()),
    };
    let database = database.map_err(|error| io::Error::other(error.to_string()))?;
    let listener = TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("dynamodb".to_owned())
        .spawn(move || {
            let served = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)
                    .map_err(|error| error.to_string())?;
                let stopped = async {
                    // A dropped sender stops the server, too.
                    let _ = stopped.await;
                };
                let sweep = sweep(database.clone());
                let serve = dynoxide::server::serve_with_shutdown(listener, database, stopped);
                tokio::select! {
                    served = serve => served,
                    never = sweep => match never {},
                }
            });
            if let Err(error) = served {
                tracing::error!(%error, "the embedded DynamoDB failed");
            }
        })?;
    Ok(DynamoDbServer {
        addr,
        stop: Some(stop),
        thread: Some(thread),
        _lock: lock,
    })
}

/// Locks a directory for this process, until the file is closed: two processes would use
/// separate caches for one table.
fn lock(dir: &Path) -> io::Result<File> {
    std::fs::create_dir_all(dir)?;
    let mut options = File::options();
    let file = options
        .create(true)
        .append(true)
        .open(dir.join(LOCK_NAME))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another process uses it")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Deletes expired items, as DynamoDB does.
async fn sweep(database: Database) -> Infallible {
    loop {
        tokio::time::sleep(SWEEP_PAUSE).await;
        let database = database.clone();
        match tokio::task::spawn_blocking(move || database.sweep_ttl()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "expired items are not deleted"),
            Err(error) => tracing::error!(%error, "deleting expired items panicked"),
        }
    }
}
