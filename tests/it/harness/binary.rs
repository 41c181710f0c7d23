//! The binary in a process of its own.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use temp_dir::TempDir;

use super::{Backends, Client, log_lines};

const BINARY: &str = env!("CARGO_BIN_EXE_account-service");

/// The processor that is reserved for servers, in the notation of `taskset`.
const PROCESSOR: &str = "REPLICA_PROCESSOR";

/// The binary with an empty environment, except for AWS credentials and region.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = match std::env::var(PROCESSOR) {
        Ok(processor) => {
            let mut pinned = Command::new("taskset");
            pinned.args(["-c", &processor, BINARY]);
            pinned
        }
        Err(_) => Command::new(BINARY),
    };
    command
        .args(arguments)
        .env_clear()
        .env("AWS_ACCESS_KEY_ID", "embedded")
        .env("AWS_SECRET_ACCESS_KEY", "test-secret-key")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// A file for a process's standard error. Dropping it inspects the lines and removes the
/// file.
pub struct Log(TempDir);

impl Drop for Log {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.path().exists() {
            log_lines::assert_clean(&self.read());
        }
    }
}

impl Log {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.child("log")
    }

    /// Opens the file at its end.
    pub fn file(&self) -> File {
        let mut options = File::options();
        options.append(true).create(true).open(self.path()).unwrap()
    }

    /// The text written so far.
    pub fn read(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub addr: String,
    pub greeting: String,
}

impl Server {
    /// Starts `dev` and waits for its address and the last line of its greeting.
    pub fn dev(data_dir: &Path) -> Self {
        let mut command = command(&["dev", "--listen-addr", "127.0.0.1:0", "--data-dir"]);
        command.arg(data_dir);
        Self::start(command, "account service", |greeting| {
            greeting.matches("/CheckMembership\n").count() == 3
        })
    }

    /// Starts `serve` over these backends and waits until it serves.
    pub fn serve(backends: &Backends) -> Self {
        Self::start(serve_over(backends), "serving on", |_| true)
    }

    /// Starts a server, reads its address from the line that begins with
    /// `label`, and waits until its greeting `is_whole`.
    pub fn start(mut command: Command, label: &str, is_whole: fn(&str) -> bool) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        let mut addr = None;
        while addr.is_none() || !is_whole(&greeting) {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "{greeting}");
            if let Some(rest) = line.strip_prefix(label) {
                addr = Some(rest.trim().to_owned());
            }
            greeting.push_str(&line);
        }
        Self {
            child,
            addr: addr.unwrap(),
            greeting,
        }
    }

    pub async fn client(&self) -> Client {
        Client::connect(format!("http://{}", self.addr))
            .await
            .unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The peak resident memory of the process, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        memory_kib(self.pid(), "VmHWM:")
    }

    /// The current resident memory of the process, in KiB.
    pub fn memory_kib(&self) -> u64 {
        memory_kib(self.pid(), "VmRSS:")
    }

    /// SIGKILL: ends the process without a shutdown.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal, in the notation of `kill`.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args([name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// SIGTERM; returns the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        self.signal("-TERM");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if the test has already ended the process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A figure of a process's memory, by its name in `/proc/<pid>/status`.
pub fn memory_kib(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let figure = status.lines().find_map(|line| line.strip_prefix(name));
    let figure = figure.unwrap().trim().trim_end_matches(" kB");
    figure.parse().unwrap()
}

/// `serve` over these backends, on any port.
pub fn serve_over(backends: &Backends) -> Command {
    over(backends, &["serve", "--log", "trace"])
}

pub fn over(backends: &Backends, arguments: &[&str]) -> Command {
    let settings = backends.serve_settings().backends;
    let mut command = command(arguments);
    command
        .env("LISTEN_ADDR", "127.0.0.1:0")
        // Unlimited: the embedded Momento has no quota.
        .env("CACHE_OPERATIONS_PER_SECOND", "0")
        .env("TABLE_NAME", settings.table_name)
        .env("MOMENTO_SECRET_ID", settings.momento_secret_id)
        .env(
            "AWS_ENDPOINT_URL_DYNAMODB",
            settings.dynamodb_endpoint.unwrap(),
        )
        .env(
            "AWS_ENDPOINT_URL_SECRETS_MANAGER",
            settings.secrets_endpoint.unwrap(),
        )
        .stderr(Stdio::null());
    command
}

/// A local address without a listener.
pub fn free_address() -> SocketAddr {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

/// The metrics at this address, as Prometheus receives them.
pub fn scrape(addr: SocketAddr) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    metrics
}
