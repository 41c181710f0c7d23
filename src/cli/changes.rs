//! The changes as CloudEvents, one JSON object in each line of standard output.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::fd::AsFd as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::{Value, json};
use tokio::{task::spawn_blocking, time::timeout};
use tonic::{Code, Status};

use super::{
    connection::{self, ConnectionError},
    contract::{self, Contract},
};
use crate::{
    config::ChangesSettings,
    error_chain::describe,
    proto::account_v1::{
        self as pb, ChangeKind, account_service_client::AccountServiceClient, change::Resource,
        watch_changes_request::Start,
    },
};

/// A connection without a response for longer is broken: the server sends one every 10 s.
const SILENCE: Duration = Duration::from_secs(30);
/// Pauses before the next connection: 1 s to 30 s, and up to as much again by jitter.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_secs(1))
    .with_max_delay(Duration::from_secs(30))
    .without_max_times()
    .with_jitter();

/// The end of the stream of changes.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// A file cannot be read or written.
    #[error("{what}: {source}")]
    File {
        /// The file.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The reader of the output has gone.
    #[error("the output cannot be written: {0}")]
    Output(io::Error),
    /// There is no connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A change cannot be written as an event.
    #[error("a change cannot be written: {0}")]
    Event(String),
    /// The server rejects the request for good.
    #[error("{}: {}", .0.code(), .0.message())]
    Rejected(Status),
}

/// Reason why a connection has ended.
enum Ended {
    /// Another connection may succeed.
    Retryable(String),
    /// None will.
    Final(ChangesError),
}

/// The position in the changes.
#[derive(Debug, Default)]
struct Consumed {
    /// The cursor after the written changes.
    cursor: Option<String>,
    /// Whether the connection has had a response.
    has_response: bool,
}

/// Writes all changes to standard output, until `stop` resolves. Saves the position after the lines
/// that were written, and resumes there.
///
/// # Errors
/// See [`ChangesError`]. Faults of the network and restarts of the server are no errors.
pub async fn write(
    settings: &ChangesSettings,
    stop: impl Future<Output = ()>,
) -> Result<(), ChangesError> {
    tokio::select! {
        ended = run(settings) => ended,
        () = stop => Ok(()),
    }
}

async fn run(settings: &ChangesSettings) -> Result<(), ChangesError> {
    connection::assert_secure(&settings.connection)?;
    let events = Events::new(&settings.source).map_err(ChangesError::Event)?;
    end_last_line().map_err(ChangesError::Output)?;
    let mut consumed = Consumed::default();
    if let Some(path) = &settings.checkpoint {
        consumed.cursor = read_checkpoint(path)?;
    }
    let mut pauses = PAUSES.build();
    loop {
        consumed.has_response = false;
        match follow(settings, &events, &mut consumed).await {
            Ended::Final(error) => return Err(error),
            Ended::Retryable(why) => {
                if consumed.has_response {
                    pauses = PAUSES.build();
                }
                let pause = pauses.next().unwrap_or_default();
                eprintln!("warning: {why}; connects again in {} ms", pause.as_millis());
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Writes changes until the connection ends.
async fn follow(
    settings: &ChangesSettings,
    events: &Arc<Events>,
    consumed: &mut Consumed,
) -> Ended {
    let start = match &consumed.cursor {
        Some(cursor) => Some(Start::Cursor(cursor.clone())),
        None => settings.oldest.then_some(Start::Oldest(true)),
    };
    let request = pb::WatchChangesRequest {
        start,
        organization_name: settings.organization.clone().unwrap_or_default(),
        username: settings.username.clone().unwrap_or_default(),
    };
    let request = match connection::authorized(&settings.connection, request) {
        Ok(request) => request,
        Err(error) => return Ended::Final(error.into()),
    };
    let silent = || Ended::Retryable("the server does not respond".to_owned());
    let channel = match timeout(SILENCE, connection::connect(&settings.connection)).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error @ ConnectionError::Unreachable(_))) => {
            return Ended::Retryable(error.to_string());
        }
        Ok(Err(error)) => return Ended::Final(error.into()),
        Err(_) => return silent(),
    };
    let mut client = AccountServiceClient::new(channel);
    let mut watch = match timeout(SILENCE, client.watch_changes(request)).await {
        Ok(Ok(watch)) => watch.into_inner(),
        Ok(Err(status)) => return ended_with(status),
        Err(_) => return silent(),
    };
    loop {
        let response = match timeout(SILENCE, watch.message()).await {
            Ok(Ok(Some(response))) => response,
            Ok(Ok(None)) => return Ended::Retryable("the stream has ended".to_owned()),
            Ok(Err(status)) => return ended_with(status),
            Err(_) => return silent(),
        };
        let cursor = response.cursor.clone();
        let (checkpoint, events) = (settings.checkpoint.clone(), events.clone());
        // On a thread of its own: a slow reader of the output must not delay the end of the process.
        let accepted = spawn_blocking(move || accept(checkpoint.as_deref(), &events, &response));
        match accepted.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Ended::Final(error),
            Err(error) => return Ended::Final(ChangesError::Event(error.to_string())),
        }
        consumed.cursor = Some(cursor);
        consumed.has_response = true;
    }
}

/// Writes the changes of a response, and then the position after them.
fn accept(
    checkpoint: Option<&Path>,
    events: &Events,
    response: &pb::WatchChangesResponse,
) -> Result<(), ChangesError> {
    // Written at once, so that a crash rarely leaves a part of a line.
    let mut lines = String::new();
    for change in &response.changes {
        let event = events.event(change).map_err(ChangesError::Event)?;
        lines.push_str(&event.to_string());
        lines.push('\n');
    }
    let mut output = io::stdout().lock();
    let written = output.write_all(lines.as_bytes());
    written
        .and_then(|()| output.flush())
        .and_then(|()| sync_output())
        .map_err(ChangesError::Output)?;
    match checkpoint {
        Some(path) => write_checkpoint(path, &response.cursor),
        None => Ok(()),
    }
}

/// The output, if it is a file.
fn output_file() -> io::Result<Option<File>> {
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    Ok(output.metadata()?.is_file().then_some(output))
}

/// Makes the lines as durable as the position after them.
fn sync_output() -> io::Result<()> {
    output_file()?.map_or(Ok(()), |output| output.sync_data())
}

/// Ends a line of which a crash has left a part, so that the next event has a line of its own.
fn end_last_line() -> io::Result<()> {
    let Some(mut output) = output_file()? else {
        return Ok(());
    };
    // Standard output may be open for writing only.
    let Ok(mut written) = File::open("/dev/stdout") else {
        return Ok(());
    };
    let mut last = [b'\n'];
    if written.seek(SeekFrom::End(-1)).is_ok() {
        written.read_exact(&mut last)?;
    }
    if last == [b'\n'] {
        return Ok(());
    }
    output.write_all(b"\n")
}

fn ended_with(status: Status) -> Ended {
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange | Code::PermissionDenied | Code::Unimplemented => {
            Ended::Final(ChangesError::Rejected(status))
        }
        code => Ended::Retryable(format!("{code}: {}", status.message())),
    }
}

fn file_error(path: &Path, source: io::Error) -> ChangesError {
    let what = path.display().to_string();
    ChangesError::File { what, source }
}

/// The saved position. `None`: there is none yet.
fn read_checkpoint(path: &Path) -> Result<Option<String>, ChangesError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(file_error(path, source)),
    }
}

/// Replaces the saved position as a whole, so that a crash leaves the old one or the new one.
fn write_checkpoint(path: &Path, cursor: &str) -> Result<(), ChangesError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let written = File::create(&new).and_then(|mut file| {
        writeln!(file, "{cursor}")?;
        file.sync_data()?;
        std::fs::rename(&new, path)
    });
    written.map_err(|source| file_error(path, source))
}

/// Encodes changes as CloudEvents.
struct Events {
    source: String,
    change: MessageDescriptor,
}

impl Events {
    fn new(source: &str) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self {
            source: source.to_owned(),
            change: Contract::read()?.message("Change")?,
        }))
    }

    /// The event of a change. Its id is the cursor after the change: the same whenever the change is
    /// delivered again.
    fn event(&self, change: &pb::Change) -> Result<Value, String> {
        let kind = match change.kind() {
            ChangeKind::Created => "created",
            ChangeKind::Updated => "updated",
            ChangeKind::Deleted => "deleted",
            ChangeKind::Expired => "expired",
            ChangeKind::Unspecified => "changed",
        };
        let (resource, subject) = match &change.resource {
            Some(Resource::User(user)) => ("user", format!("users/{}", user.username)),
            Some(Resource::Organization(organization)) => {
                let name = &organization.organization_name;
                ("organization", format!("organizations/{name}"))
            }
            Some(Resource::Membership(membership)) => {
                let (organization, member) =
                    (&membership.organization_name, &membership.member_username);
                let subject = format!("organizations/{organization}/members/{member}");
                ("membership", subject)
            }
            None => ("record", String::new()),
        };
        let bytes = change.encode_to_vec();
        let message = DynamicMessage::decode(self.change.clone(), bytes.as_slice());
        let data = contract::to_json(&message.map_err(|error| describe(&error))?)?;
        let mut event = json!({
            "specversion": "1.0",
            "id": change.cursor,
            "source": self.source,
            "type": format!("account.v1.{resource}.{kind}"),
            "datacontenttype": "application/json",
            "data": data,
        });
        if !subject.is_empty() {
            event["subject"] = subject.into();
        }
        if let Some(time) = event["data"].get("commitTime").cloned() {
            event["time"] = time;
        }
        Ok(event)
    }
}
