//! The measured processes and their backends: pinned to processors, and ended with this process.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{time::clock_getcpuclockid, unistd::Pid};

/// The processor of the measured process, as `taskset` names it.
pub const MEASURED: &str = "0";
/// The processor of everything else.
pub const REST: &str = "1";

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts a program on a processor. Its environment is `environment` and `PATH`.
    pub fn start(
        processor: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> Result<Self> {
        // The measured process has the usual scheduling, the others that of this process.
        let usually: &[_] = if processor == MEASURED {
            &["chrt", "--other", "0"]
        } else {
            &[]
        };
        let mut command = Command::new("env");
        command
            .args(usually)
            .args(["taskset", "-c", processor])
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .envs(environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("{}", program.display()))?;
        Ok(Self {
            input: child.stdin.take().context("no input")?,
            output: BufReader::new(child.stdout.take().context("no output")?),
            child,
        })
    }

    /// The next line of its output.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the process ended");
        Ok(line.trim_end().to_owned())
    }

    /// The rest of the next line that begins with `label`.
    pub fn after(&mut self, label: &str) -> Result<String> {
        loop {
            if let Some(rest) = self.line()?.strip_prefix(label) {
                return Ok(rest.trim().to_owned());
            }
        }
    }

    /// Sends a line, and returns the next line of output.
    pub fn command(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}")?;
        self.line()
    }

    /// Its CPU time.
    pub fn busy(&self) -> Result<Duration> {
        Ok(clock_getcpuclockid(self.pid())?.now()?.into())
    }

    /// Its resident memory, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.context("no VmRSS")?.trim().trim_end_matches(" kB");
        Ok(kib.trim().parse()?)
    }

    /// The instructions of a process under callgrind since the last call. Callgrind writes
    /// them into files of this name and a number.
    pub fn instructions(&self, file: &Path) -> Result<u64> {
        let pid = self.pid().to_string();
        let dumped = Command::new("callgrind_control")
            .args(["--dump", &pid])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(dumped.success(), "callgrind writes nothing");
        let mut number = 1;
        let named = |number: u32| file.with_extension(number.to_string());
        while named(number + 1).exists() {
            number += 1;
        }
        let totals = std::fs::read_to_string(named(number))?;
        let total = totals
            .lines()
            .find_map(|line| line.strip_prefix("summary: "));
        Ok(total.context("no summary")?.trim().parse()?)
    }

    /// Sends SIGTERM, and waits for the end of the process.
    pub fn end(mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        self.child.wait()?;
        Ok(())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
