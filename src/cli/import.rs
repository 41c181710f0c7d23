//! The import of records that `export` has written.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs::File,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _},
    path::Path,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use prost_types::FieldMask;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::Code;
use uuid::Uuid;

use super::{
    connection::ConnectionError,
    contract::Contract,
    records::{Exported, ExportedKind},
    say,
    typed::{CallError, Client},
};
use crate::{
    config::ImportSettings,
    proto::account_v1::{self as pb, Role, State},
};

/// Longest line, in bytes.
const LONGEST_LINE: u64 = 256 * 1024;
/// Interval of reporting the progress to a terminal.
const REPORT: Duration = Duration::from_millis(500);

/// The failure of an import.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is no connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    File(#[from] io::Error),
    /// The contract cannot be read.
    #[error("{0}")]
    Contract(String),
    /// Some lines are not valid. Nothing was imported.
    #[error("{0} lines are not valid; nothing was imported")]
    Invalid(u64),
    /// Some records were not imported.
    #[error("{0} records were not imported")]
    Failed(u64),
}

/// What the whole file says about an organization.
#[derive(Debug, Default)]
struct OrganizationInFile {
    /// The user who founded it, by its record.
    founding_user: String,
    /// Its first Owner without an end.
    owner: Option<String>,
    /// Whether the founding user is an Owner without an end.
    is_founder_owner: bool,
}

impl OrganizationInFile {
    /// The user who founds the organization, and adds the others.
    fn founder(&self) -> Option<&str> {
        if self.is_founder_owner {
            return Some(&self.founding_user);
        }
        self.owner.as_deref()
    }
}

/// What became of a record.
#[derive(Debug, Clone, Copy)]
enum Imported {
    Created,
    Unchanged,
}

#[derive(Debug, Default)]
struct ImportTally {
    created: Cell<u64>,
    unchanged: Cell<u64>,
    failed: Cell<u64>,
}

impl ImportTally {
    fn done(&self) -> u64 {
        self.created.get() + self.unchanged.get() + self.failed.get()
    }
}

/// Imports the records of a file. All lines are read before the first one is imported.
///
/// # Errors
/// See [`ImportError`].
pub async fn run(settings: &ImportSettings) -> Result<(), ImportError> {
    let contract = Contract::read().map_err(ImportError::Contract)?;
    let (foundings, total) = survey(&contract, &settings.file)?;
    let import = Import {
        client: Client::connect(&settings.connection).await?,
        foundings,
        suspended: RefCell::default(),
        tally: ImportTally::default(),
        total,
        is_dry_run: settings.dry_run,
    };
    let began = Instant::now();
    tokio::select! {
        done = import.all(&contract, settings) => done?,
        () = import.report(began) => {}
    }
    if io::stderr().is_terminal() {
        eprintln!();
    }
    let seconds = began.elapsed().as_secs_f64();
    let ImportTally {
        created,
        unchanged,
        failed,
    } = &import.tally;
    let verb = if settings.dry_run {
        "to create"
    } else {
        "created"
    };
    #[expect(clippy::cast_precision_loss, reason = "a rate to show")]
    let rate = import.tally.done() as f64 / seconds;
    eprintln!(
        "{} {verb}, {} unchanged, {} failed in {seconds:.1} s ({rate:.0} a second)",
        created.get(),
        unchanged.get(),
        failed.get(),
    );
    match failed.get() {
        0 => Ok(()),
        failed => Err(ImportError::Failed(failed)),
    }
}

/// The lines of a file, each with its number. An error of a line is its text.
fn lines(
    path: &Path,
) -> io::Result<impl Iterator<Item = io::Result<(u64, Result<String, String>)>>> {
    let mut file = BufReader::new(File::open(path)?);
    let mut number = 0;
    Ok(std::iter::from_fn(move || {
        loop {
            let mut line = Vec::new();
            let read = file
                .by_ref()
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line);
            match read {
                Ok(0) => return None,
                Ok(_) => number += 1,
                Err(error) => return Some(Err(error)),
            }
            let is_whole = line.ends_with(b"\n") || (line.len() as u64) < LONGEST_LINE;
            if !is_whole {
                if let Err(error) = file.skip_until(b'\n') {
                    return Some(Err(error));
                }
                let why = format!("is longer than {LONGEST_LINE} bytes");
                return Some(Ok((number, Err(why))));
            }
            match String::from_utf8(line) {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => return Some(Ok((number, Ok(line)))),
                Err(_) => return Some(Ok((number, Err("is not UTF-8".to_owned())))),
            }
        }
    }))
}

/// Reads the whole file: its organizations, and the number of its records.
fn survey(
    contract: &Contract,
    path: &Path,
) -> Result<(HashMap<String, OrganizationInFile>, u64), ImportError> {
    let mut foundings = HashMap::<String, OrganizationInFile>::new();
    let (mut total, mut invalid, mut last) = (0, 0, ExportedKind::User);
    for line in lines(path)? {
        let (number, line) = line?;
        let record = line.and_then(|line| Exported::parse(contract, &line));
        let record = record.and_then(|record| {
            let kind = record.kind();
            if kind < last {
                return Err("stands after records that need it: users come first, then \
                            organizations, then memberships"
                    .to_owned());
            }
            last = kind;
            Ok(record)
        });
        match record {
            Err(why) => {
                invalid += 1;
                eprintln!("line {number}: {why}");
            }
            Ok(Exported::User(_)) => {}
            Ok(Exported::Organization(organization)) => {
                let founding = foundings.entry(organization.organization_name).or_default();
                founding.founding_user = organization.founding_user;
            }
            Ok(Exported::Membership(it)) => {
                if it.role() == Role::Owner && it.expire_time.is_none() {
                    let founding = foundings.entry(it.organization_name).or_default();
                    founding.is_founder_owner |= founding.founding_user == it.member_username;
                    founding.owner.get_or_insert(it.member_username);
                }
            }
        }
        total += 1;
    }
    if invalid > 0 {
        return Err(ImportError::Invalid(invalid));
    }
    Ok((foundings, total))
}

struct Import {
    client: Client,
    foundings: HashMap<String, OrganizationInFile>,
    /// Records that are suspended once all memberships are there, with their lines.
    suspended: RefCell<Vec<(u64, Exported)>>,
    tally: ImportTally,
    total: u64,
    is_dry_run: bool,
}

impl Import {
    async fn all(&self, contract: &Contract, settings: &ImportSettings) -> Result<(), ImportError> {
        let at_once = usize::from(settings.at_once);
        let mut pace = (settings.rate > 0).then(|| {
            let mut pace = interval(Duration::from_secs(1) / settings.rate);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        });
        let mut failure = None;
        let mut records = lines(&settings.file)?
            .map_while(|line| line.map_err(|error| failure = Some(error)).ok())
            .filter_map(|(number, line)| {
                let record = Exported::parse(contract, &line.ok()?);
                Some((number, record.ok()?))
            })
            .peekable();
        // Each kind needs all records of the kind before.
        while let Some((_, first)) = records.peek() {
            let kind = first.kind();
            let of_kind = std::iter::from_fn(|| records.next_if(|(_, it)| it.kind() == kind));
            let mut running = stream::iter(of_kind)
                .map(|(number, record)| self.one(number, record))
                .buffer_unordered(at_once);
            while running.next().await.is_some() {
                if let Some(pace) = &mut pace {
                    pace.tick().await;
                }
            }
        }
        drop(records);
        if let Some(error) = failure {
            return Err(error.into());
        }
        let suspended = self.suspended.take();
        let suspend = |(number, record)| async move {
            if let Err(why) = self.suspend(&record).await {
                self.fail(number, &why);
            }
        };
        let mut running = stream::iter(suspended)
            .map(suspend)
            .buffer_unordered(at_once);
        while running.next().await.is_some() {}
        Ok(())
    }

    /// Imports a record, and counts and reports what became of it.
    async fn one(&self, number: u64, record: Exported) {
        match self.import(&record).await {
            Ok(imported) => {
                let (count, what) = match imported {
                    Imported::Created => (&self.tally.created, "would be created"),
                    Imported::Unchanged => (&self.tally.unchanged, "is there already"),
                };
                count.set(count.get() + 1);
                if self.is_dry_run {
                    say(&format!("line {number}: {what}\n"));
                }
            }
            Err(why) => self.fail(number, &why),
        }
        let is_suspended = match &record {
            Exported::User(user) => user.state() == State::Suspended,
            Exported::Organization(organization) => organization.state() == State::Suspended,
            Exported::Membership(_) => false,
        };
        if is_suspended && !self.is_dry_run {
            self.suspended.borrow_mut().push((number, record));
        }
    }

    fn fail(&self, number: u64, why: &str) {
        self.tally.failed.set(self.tally.failed.get() + 1);
        eprintln!("line {number}: {why}");
    }

    async fn import(&self, record: &Exported) -> Result<Imported, String> {
        let refused = if self.is_dry_run {
            None
        } else {
            match self.create(record).await {
                Ok(()) => return Ok(Imported::Created),
                // An earlier import may have created it, and suspended its founder since.
                Err(why) => Some(why),
            }
        };
        let found = self.find(record).await.map_err(|error| error.to_string())?;
        let Some(found) = found else {
            return refused.map_or(Ok(Imported::Created), Err);
        };
        self.compare(record, &found).await?;
        Ok(Imported::Unchanged)
    }

    async fn create(&self, record: &Exported) -> Result<(), String> {
        let request_id = Uuid::new_v4().to_string();
        match record.clone() {
            Exported::User(user) => {
                let request = pb::CreateUserRequest {
                    username: user.username,
                    first_name: user.first_name,
                    last_name: user.last_name,
                    display_name: user.display_name,
                    labels: user.labels,
                    email: user.email,
                    external_id: user.external_id,
                    request_id,
                };
                self.client.create_user(&request).await.map(drop)
            }
            Exported::Organization(organization) => {
                let founder = self.founder_of(&organization.organization_name)?;
                let request = pb::CreateOrganizationRequest {
                    organization_name: organization.organization_name,
                    founding_user: founder.to_owned(),
                    display_name: organization.display_name,
                    labels: organization.labels,
                    external_id: organization.external_id,
                    request_id,
                };
                self.client.create_organization(&request).await.map(drop)
            }
            Exported::Membership(membership) => {
                let founder = self.founder_of(&membership.organization_name)?;
                let request = pb::AddUserToOrganizationRequest {
                    role: membership.role,
                    adding_user: founder.to_owned(),
                    organization_name: membership.organization_name,
                    member_username: membership.member_username,
                    expire_time: membership.expire_time,
                    labels: membership.labels,
                    request_id,
                };
                self.client
                    .add_user_to_organization(&request)
                    .await
                    .map(drop)
            }
        }
        .map_err(|error| error.to_string())
    }

    fn founder_of(&self, organization: &str) -> Result<&str, String> {
        let founding = self.foundings.get(organization);
        let founder = founding.and_then(OrganizationInFile::founder);
        let why = "the organization has no Owner without an end in the file";
        founder.ok_or_else(|| why.to_owned())
    }

    /// The record of the service.
    async fn find(&self, record: &Exported) -> Result<Option<Exported>, CallError> {
        let found = match record {
            Exported::User(user) => {
                let request = pb::GetUserRequest {
                    username: user.username.clone(),
                    ..pb::GetUserRequest::default()
                };
                let found = self.client.get_user(&request).await;
                found.map(|it| it.user.map(Exported::User))
            }
            Exported::Organization(organization) => {
                let request = pb::GetOrganizationRequest {
                    organization_name: organization.organization_name.clone(),
                    ..pb::GetOrganizationRequest::default()
                };
                let found = self.client.get_organization(&request).await;
                found.map(|it| it.organization.map(Exported::Organization))
            }
            Exported::Membership(membership) => {
                let request = pb::GetMembershipRequest {
                    organization_name: membership.organization_name.clone(),
                    member_username: membership.member_username.clone(),
                    ..pb::GetMembershipRequest::default()
                };
                let found = self.client.get_membership(&request).await;
                found.map(|it| it.membership.map(Exported::Membership))
            }
        };
        match found {
            Err(CallError(status)) if status.code() == Code::NotFound => Ok(None),
            found => found,
        }
    }

    /// Compares a record with the one of the service. Completes the membership of a founder, which has no labels.
    async fn compare(&self, record: &Exported, found: &Exported) -> Result<(), String> {
        let differences = differences(record, found);
        if let (Exported::Membership(membership), Exported::Membership(found)) = (record, found)
            && differences == ["labels"]
            && found.labels.is_empty()
            && !self.is_dry_run
        {
            let request = pb::UpdateMembershipRequest {
                membership: Some(pb::Membership {
                    organization_name: membership.organization_name.clone(),
                    member_username: membership.member_username.clone(),
                    labels: membership.labels.clone(),
                    ..pb::Membership::default()
                }),
                update_mask: Some(FieldMask {
                    paths: vec!["labels".to_owned()],
                }),
                acting_user: membership.member_username.clone(),
                request_id: Uuid::new_v4().to_string(),
            };
            let updated = self.client.update_membership(&request).await;
            return updated.map(drop).map_err(|error| error.to_string());
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(format!("exists, with another {}", differences.join(", ")))
    }

    async fn suspend(&self, record: &Exported) -> Result<(), String> {
        let request_id = Uuid::new_v4().to_string();
        let suspended = match record.clone() {
            Exported::User(user) => {
                let request = pb::SuspendUserRequest {
                    username: user.username,
                    request_id,
                    ..pb::SuspendUserRequest::default()
                };
                self.client.suspend_user(&request).await.map(drop)
            }
            Exported::Organization(organization) => {
                let request = pb::SuspendOrganizationRequest {
                    organization_name: organization.organization_name,
                    request_id,
                    ..pb::SuspendOrganizationRequest::default()
                };
                self.client.suspend_organization(&request).await.map(drop)
            }
            Exported::Membership(_) => Ok(()),
        };
        suspended.map_err(|error| error.to_string())
    }

    /// Reports the progress to a terminal. Never ends.
    async fn report(&self, began: Instant) {
        if !io::stderr().is_terminal() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(REPORT).await;
            let done = self.tally.done();
            let seconds = began.elapsed().as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "a rate to show")]
            let (rate, left) = (
                done as f64 / seconds,
                (self.total - done.min(self.total)) as f64,
            );
            let remaining = left / rate.max(0.1);
            eprint!(
                "\r{done} of {} records, {rate:.0} a second, {remaining:.0} s left ",
                self.total
            );
        }
    }
}

/// The names of the fields that differ, among those that an import sets.
fn differences(record: &Exported, found: &Exported) -> Vec<&'static str> {
    let fields = match (record, found) {
        (Exported::User(a), Exported::User(b)) => vec![
            ("first_name", a.first_name == b.first_name),
            ("last_name", a.last_name == b.last_name),
            ("display_name", a.display_name == b.display_name),
            ("email", a.email == b.email),
            ("external_id", a.external_id == b.external_id),
            ("labels", a.labels == b.labels),
            (
                "state",
                a.state() == State::Suspended || b.state() != State::Suspended,
            ),
        ],
        (Exported::Organization(a), Exported::Organization(b)) => vec![
            ("display_name", a.display_name == b.display_name),
            ("external_id", a.external_id == b.external_id),
            ("labels", a.labels == b.labels),
            (
                "state",
                a.state() == State::Suspended || b.state() != State::Suspended,
            ),
        ],
        (Exported::Membership(a), Exported::Membership(b)) => vec![
            ("role", a.role == b.role),
            ("expire_time", a.expire_time == b.expire_time),
            ("labels", a.labels == b.labels),
        ],
        _ => vec![("kind", false)],
    };
    let different = fields.into_iter().filter(|(_, is_equal)| !is_equal);
    different.map(|(name, _)| name).collect()
}
