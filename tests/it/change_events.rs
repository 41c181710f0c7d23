//! The consumer of changes: a process that writes CloudEvents, and resumes after a crash.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use account_service::{proto::account_v1::Role, service::MAX_CHANGES};
use serde_json::Value;
use temp_dir::TempDir;

use crate::{
    harness::{Backends, Replica, binary::command},
    streams::{eventually, following},
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

/// A consumer, with the files of its output and its position.
struct Consumer {
    folder: TempDir,
    server: String,
}

impl Consumer {
    fn output(&self) -> PathBuf {
        self.folder.child("events")
    }

    fn start(&self, arguments: &[&str]) -> Running {
        self.start_into(&self.output(), arguments)
    }

    fn start_into(&self, output: &Path, arguments: &[&str]) -> Running {
        let output = OpenOptions::new().create(true).append(true).open(output);
        let errors = fs::File::create(self.folder.child("errors"));
        let checkpoint = self.folder.child("checkpoint");
        let mut command = command(&["changes", "--oldest", "--server", &self.server]);
        command
            .args(arguments)
            .arg("--checkpoint")
            .arg(checkpoint)
            .stdout(Stdio::from(output.unwrap()))
            .stderr(Stdio::from(errors.unwrap()));
        Running(command.spawn().unwrap())
    }

    fn events(&self) -> Vec<Value> {
        events(&self.output())
    }
}

/// The complete lines of a file.
fn events(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.split_inclusive('\n');
    let complete = lines.filter(|line| line.ends_with('\n'));
    complete
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A process that is killed when it is dropped.
struct Running(Child);

impl Running {
    /// Waits until the process ends.
    async fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("it ends", async || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A replica that follows the stream, and a consumer of its changes.
async fn consumed() -> (Backends, Replica, Consumer) {
    let backends = Backends::start().await;
    let replica = Box::pin(Replica::start_with(&backends.serve_settings(), following())).await;
    let consumer = Consumer {
        folder: TempDir::new().unwrap(),
        server: format!("http://{}", replica.addr),
    };
    (backends, replica, consumer)
}

fn text<'a>(event: &'a Value, name: &str) -> &'a str {
    event[name].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_written_as_cloud_events() {
    let (_backends, service, consumer) = consumed().await;
    service.found_olivia_org_with_michael().await;
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    let _running = consumer.start(&["--organization", ORG, "--source", "//accounts/test"]);
    eventually("the removal is written", async || {
        let events = consumer.events();
        events
            .iter()
            .any(|event| text(event, "type") == "account.v1.membership.deleted")
    })
    .await;
    let events = consumer.events();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| (text(event, "type"), text(event, "subject")))
        .collect();
    let of_michael = "organizations/olivia-org/members/membermichael";
    for expected in [
        (
            "account.v1.organization.created",
            "organizations/olivia-org",
        ),
        ("account.v1.membership.created", of_michael),
        ("account.v1.membership.deleted", of_michael),
    ] {
        assert!(kinds.contains(&expected), "{kinds:?}");
    }
    for event in &events {
        assert_eq!(text(event, "specversion"), "1.0");
        assert_eq!(text(event, "source"), "//accounts/test");
        assert_eq!(text(event, "datacontenttype"), "application/json");
        assert!(!text(event, "id").is_empty() && text(event, "time").ends_with('Z'));
    }
    let removal = events.last().unwrap();
    assert_eq!(removal["data"]["kind"], "CHANGE_KIND_DELETED");
    assert_eq!(removal["data"]["actingUser"], OLIVIA);
    let before = &removal["data"]["membership"]["before"];
    assert_eq!(before["role"], "ROLE_MEMBER");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_killed_again_and_again_loses_no_change() {
    const USERS: usize = 60;
    const KILLS: usize = 6;
    let (_backends, service, consumer) = consumed().await;
    let mut running = consumer.start(&[]);
    for kill in 0..KILLS {
        let seen = consumer.events().len();
        for number in 0..USERS / KILLS {
            let number = kill * (USERS / KILLS) + number;
            let username = format!("user-{number}");
            service.create_user(&username).await.unwrap();
        }
        // Not before it has written something new: a start takes some time.
        eventually("a change is written", async || {
            consumer.events().len() > seen
        })
        .await;
        drop(running);
        running = consumer.start(&[]);
    }
    let last = format!("users/user-{}", USERS - 1);
    eventually("the last change is written", async || {
        let events = consumer.events();
        events.iter().any(|event| text(event, "subject") == last)
    })
    .await;
    let events = consumer.events();
    // A change that is written twice has the same id.
    let mut ids = HashSet::new();
    let once = events.iter().filter(|event| ids.insert(text(event, "id")));
    let subjects: Vec<_> = once.map(|event| text(event, "subject")).collect();
    // A restart repeats at most one response.
    assert!(events.len() <= USERS + KILLS * MAX_CHANGES);
    let expected: Vec<_> = (0..USERS).map(|it| format!("users/user-{it}")).collect();
    assert_eq!(subjects, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_cannot_be_written_is_written_later_also_after_a_part_of_a_line() {
    let (_backends, service, consumer) = consumed().await;
    let mut running = consumer.start_into(Path::new("/dev/full"), &[]);
    service.create_user(OLIVIA).await.unwrap();
    assert_eq!(running.exit_code().await, Some(1));
    let part = r#"{"specversion":"1.0","id":"#;
    fs::write(consumer.output(), part).unwrap();
    let _running = consumer.start(&[]);
    let written = || fs::read_to_string(consumer.output()).unwrap();
    eventually("the change is written", async || written().ends_with("}\n")).await;
    let written = written();
    let (first, event) = written.split_once('\n').unwrap();
    assert_eq!(first, part);
    let event: Value = serde_json::from_str(event).unwrap();
    assert_eq!(text(&event, "subject"), format!("users/{OLIVIA}"));
}

#[tokio::test]
async fn settings_that_would_expose_a_token_are_rejected() {
    let exposed = ["changes", "--server", "http://accounts.example:1"];
    for more in [
        ["--token-file", "token"],
        ["--tls-ca", "ca.pem"],
        ["--source", ""],
    ] {
        let output = command(&[exposed.as_slice(), &more].concat()).output();
        assert_eq!(output.unwrap().status.code(), Some(64), "{more:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_connects_again_after_a_restart_of_the_server() {
    let (backends, first, consumer) = consumed().await;
    first.create_user(OLIVIA).await.unwrap();
    let _running = consumer.start(&[]);
    eventually("the first change is written", async || {
        consumer.events().len() == 1
    })
    .await;
    let mut settings = backends.serve_settings();
    settings.server.listen_addr = first.addr;
    drop(first);
    let mut second = None;
    eventually("another server has the address", async || {
        second = Replica::try_start_with(&settings, following()).await.ok();
        second.is_some()
    })
    .await;
    let second = second.unwrap();
    second.create_user(MICHAEL).await.unwrap();
    second.create_organization(ORG, OLIVIA).await.unwrap();
    second
        .add(ORG, MICHAEL, Role::Member, OLIVIA)
        .await
        .unwrap();
    eventually("all changes are written", async || {
        consumer.events().len() == 5
    })
    .await;
}

#[tokio::test]
async fn a_consumer_with_an_expired_position_ends_with_an_error() {
    let (_backends, service, consumer) = consumed().await;
    service.create_user(OLIVIA).await.unwrap();
    let position = "0123456789abcdef0123456789abcdef-7";
    fs::write(consumer.folder.child("checkpoint"), position).unwrap();
    let mut running = consumer.start(&[]);
    assert_eq!(running.exit_code().await, Some(1));
    let errors = fs::read_to_string(consumer.folder.child("errors")).unwrap();
    assert!(errors.contains("error: "), "{errors}");
    assert!(errors.contains("no longer kept"), "{errors}");
    assert!(consumer.events().is_empty());
}
