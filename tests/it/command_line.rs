//! The commands for people, run as processes against a server.

use std::process::Output;

use account_service::{auth::KeySource, proto::account_v1::Role};
use serde_json::Value;

use crate::{
    callers::{Files, Signer, token_settings},
    harness::{
        Backends, Replica,
        binary::{Server, command},
        start,
    },
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

/// Runs a command against a replica, to its end.
async fn run(replica: &Replica, arguments: &[&str]) -> Output {
    let mut command = command(arguments);
    command.env("ACCOUNT_SERVICE_URL", format!("http://{}", replica.addr));
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    run.await.unwrap()
}

/// The output of a command that succeeds.
async fn succeed(replica: &Replica, arguments: &[&str]) -> String {
    let output = run(replica, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", error(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The JSON objects of an output, one in each line.
fn objects(output: &str) -> Vec<Value> {
    let lines = output.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn people_found_an_organization_and_manage_its_members() {
    let (_backends, replica) = start().await;
    let shown = succeed(
        &replica,
        &["create", "user", OLIVIA, "--display-name", "Olivia"],
    )
    .await;
    assert!(
        shown.starts_with("USER ") && shown.contains("Olivia"),
        "{shown}"
    );
    succeed(
        &replica,
        &["create", "user", MICHAEL, "--label", "team=blue"],
    )
    .await;
    succeed(
        &replica,
        &["create", "organization", ORG, "--founder", OLIVIA],
    )
    .await;
    succeed(
        &replica,
        &["add", ORG, MICHAEL, "--as", OLIVIA, "--label", "job=nurse"],
    )
    .await;
    let members = succeed(&replica, &["list", "members", ORG]).await;
    let rows: Vec<_> = members.lines().collect();
    assert_eq!(rows.len(), 3, "{members}");
    assert!(
        rows[1].contains(MICHAEL) && rows[1].contains("job=nurse"),
        "{members}"
    );

    let set = [
        "set-role", ORG, MICHAEL, "admin", "--as", OLIVIA, "-o", "json",
    ];
    let changed = objects(&succeed(&replica, &set).await);
    assert_eq!(changed[0]["role"], "ROLE_ADMIN");
    let etag = changed[0]["etag"].as_str().unwrap().to_owned();
    succeed(&replica, &["suspend", "user", MICHAEL]).await;
    assert_eq!(replica.role_of(ORG, MICHAEL).await, None);
    succeed(&replica, &["resume", "user", MICHAEL]).await;
    assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Admin));
    let outdated = ["remove", ORG, MICHAEL, "--as", OLIVIA, "--etag", "1-1-1"];
    let refused = run(&replica, &outdated).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        error(&refused).contains("ETAG_MISMATCH"),
        "{}",
        error(&refused)
    );
    succeed(
        &replica,
        &["remove", ORG, MICHAEL, "--as", OLIVIA, "--etag", &etag],
    )
    .await;
    assert_eq!(replica.role_of(ORG, MICHAEL).await, None);

    let last = run(&replica, &["delete", "user", OLIVIA, "--unless-last-owner"]).await;
    assert!(error(&last).contains("LAST_OWNER"), "{}", error(&last));
    succeed(&replica, &["delete", "organization", ORG]).await;
    succeed(&replica, &["delete", "user", OLIVIA, "--unless-last-owner"]).await;
    let gone = run(&replica, &["get", "user", OLIVIA]).await;
    assert_eq!(gone.status.code(), Some(1));
    assert!(error(&gone).contains("USER_NOT_FOUND"), "{}", error(&gone));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_exits_with_its_answer() {
    let (_backends, replica) = start().await;
    replica.found_olivia_org_with_michael().await;
    for (arguments, answer, code) in [
        (&[MICHAEL][..], "yes: member\n", 0),
        (&[MICHAEL, "--role", "admin"], "no: member\n", 2),
        (&["nobody"], "no: not a member\n", 2),
    ] {
        let output = run(&replica, &[&["check", ORG], arguments].concat()).await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), answer);
        assert_eq!(output.status.code(), Some(code));
    }
    let unreachable = ["check", ORG, MICHAEL, "--server", "http://127.0.0.1:1"];
    assert_eq!(run(&replica, &unreachable).await.status.code(), Some(1));
    let mistaken = ["check", ORG, MICHAEL, "--role", "king"];
    assert_eq!(run(&replica, &mistaken).await.status.code(), Some(64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_nothing_and_a_repeated_id_changes_nothing_again() {
    let (_backends, replica) = start().await;
    replica.found_olivia_org().await;
    let id = uuid::Uuid::new_v4().to_string();
    let add = ["add", ORG, MICHAEL, "--as", OLIVIA, "--request-id", &id];
    let planned = succeed(&replica, &[&add[..], &["--dry-run"]].concat()).await;
    let planned = objects(&planned);
    assert_eq!(planned[0]["method"], "AddUserToOrganization");
    assert_eq!(planned[0]["request"]["requestId"], id);
    assert_eq!(replica.role_of(ORG, MICHAEL).await, None);
    let mistaken = [&add[..], &["--until", "tomorrow", "--dry-run"]].concat();
    assert_eq!(run(&replica, &mistaken).await.status.code(), Some(64));

    let first = succeed(&replica, &add).await;
    let again = succeed(&replica, &add).await;
    assert_eq!(first, again);
    let anew = run(&replica, &add[..5]).await;
    assert!(
        error(&anew).contains("MEMBERSHIP_ALREADY_EXISTS"),
        "{}",
        error(&anew)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_reads_as_many_pages_as_its_limit_needs() {
    const USERS: usize = 260;
    let (_backends, replica) = start().await;
    for number in 0..USERS {
        replica
            .create_user(&format!("user-{number:03}"))
            .await
            .unwrap();
    }
    let list = ["list", "users", "-o", "json", "--limit"];
    for (limit, expected) in [("0", USERS), ("255", 255), ("7", 7)] {
        let output = run(&replica, &[&list[..], &[limit]].concat()).await;
        let users = objects(&String::from_utf8(output.stdout.clone()).unwrap());
        assert_eq!(users.len(), expected);
        assert_eq!(users[6]["username"], "user-006");
        assert_eq!(error(&output).is_empty(), expected == USERS);
    }
    let filter = ["list", "users", "--filter", "username = \"user-00*\""];
    assert_eq!(succeed(&replica, &filter).await.lines().count(), 11);
    assert_eq!(succeed(&replica, &["list", "organizations"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_authenticate_by_a_token_and_never_send_it_unencrypted() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let mut settings = backends.serve_settings();
    settings.server.callers = token_settings(&files, keys);
    let replica = Replica::start(&settings).await;
    let unknown = run(&replica, &["create", "user", OLIVIA]).await;
    assert!(
        error(&unknown).contains("NO_CREDENTIALS"),
        "{}",
        error(&unknown)
    );
    let token = files.write("token", &signer.service_token("operator"));
    let token = ["--token-file", token.to_str().unwrap()];
    succeed(
        &replica,
        &[&["create", "user", OLIVIA], &token[..]].concat(),
    )
    .await;
    let elsewhere = ["get", "user", OLIVIA, "--server", "http://192.0.2.1:1"];
    let refused = run(&replica, &[&elsewhere[..], &token[..]].concat()).await;
    assert_eq!(refused.status.code(), Some(64), "{}", error(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_shell_gets_its_completion() {
    let (_backends, replica) = start().await;
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = succeed(&replica, &["completion", shell]).await;
        assert!(script.contains("set-role"), "{shell}");
    }
}

/// Records of each kind, with all that an import sets.
const RECORDS: &str = r#"{"user": {"username": "olivia", "displayName": "Olivia", "email": "o@example.com"}}
{"user": {"username": "mike", "labels": {"team": "blue"}, "externalId": "m-1", "state": "STATE_SUSPENDED"}}
{"user": {"username": "hannah", "firstName": "Hannah"}}
{"organization": {"organizationName": "acme", "foundingUser": "left long ago", "displayName": "Acme"}}
{"organization": {"organizationName": "omega", "foundingUser": "mike", "state": "STATE_SUSPENDED"}}
{"membership": {"organizationName": "acme", "memberUsername": "hannah", "role": "ROLE_ADMIN", "expireTime": "2100-01-01T00:00:00Z"}}
{"membership": {"organizationName": "acme", "memberUsername": "mike", "role": "ROLE_MEMBER", "labels": {"job": "nurse"}}}
{"membership": {"organizationName": "acme", "memberUsername": "olivia", "role": "ROLE_OWNER", "labels": {"job": "chief"}}}
{"membership": {"organizationName": "omega", "memberUsername": "mike", "role": "ROLE_OWNER"}}
"#;

/// An export without the fields that an import cannot set.
async fn exported(replica: &Replica) -> Vec<Value> {
    let mut records = objects(&succeed(replica, &["export"]).await);
    for record in &mut records {
        for fields in record.as_object_mut().unwrap().values_mut() {
            let fields = fields.as_object_mut().unwrap();
            for name in ["uid", "createTime", "updateTime", "etag", "addingUser"] {
                fields.remove(name);
            }
        }
    }
    records
}

async fn import(replica: &Replica, file: &std::path::Path, arguments: &[&str]) -> Output {
    let file = ["import", "--file", file.to_str().unwrap()];
    run(replica, &[&file[..], arguments].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_imported_elsewhere_is_exported_equally() {
    let files = Files::new();
    let file = files.write("records.ndjson", RECORDS);
    let (_backends, first) = start().await;
    let planned = import(&first, &file, &["--dry-run"]).await;
    let lines = String::from_utf8(planned.stdout).unwrap();
    assert_eq!(lines.matches("would be created").count(), 9, "{lines}");
    assert_eq!(exported(&first).await, [] as [Value; 0]);

    let imported = import(&first, &file, &[]).await;
    assert!(imported.status.success(), "{}", error(&imported));
    let records = exported(&first).await;
    assert_eq!(records.len(), 9);
    // The founding user of the file does not exist: an Owner has founded it instead.
    let acme = records
        .iter()
        .find(|it| it["organization"]["organizationName"] == "acme");
    assert_eq!(acme.unwrap()["organization"]["foundingUser"], "olivia");
    let again = import(&first, &file, &["--at-once", "1", "--rate", "1000"]).await;
    assert!(again.status.success(), "{}", error(&again));
    assert!(
        error(&again).contains("0 created, 9 unchanged"),
        "{}",
        error(&again)
    );

    let export = succeed(&first, &["export"]).await;
    let file = files.write("export.ndjson", &export);
    let (_backends, second) = start().await;
    let imported = import(&second, &file, &[]).await;
    assert!(imported.status.success(), "{}", error(&imported));
    assert_eq!(exported(&second).await, records);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_names_the_lines_that_fail_and_imports_the_others() {
    let files = Files::new();
    let (_backends, replica) = start().await;
    let lines = [
        r#"{"user": {"username": "olivia"}}"#,
        r#"{"user": {"username": "mike", "labels": {"a": "b"}}}"#,
        r#"{"user": {"username": ""}}"#,
        r#"{"organization": {"organizationName": "no-owner", "foundingUser": "olivia"}}"#,
    ];
    replica.create_user("mike").await.unwrap();
    let file = files.write("records.ndjson", &lines.join("\n"));
    let imported = import(&replica, &file, &[]).await;
    assert_eq!(imported.status.code(), Some(1));
    let errors = error(&imported);
    for expected in [
        "line 2: exists, with another first_name, last_name, labels",
        "line 3: INVALID_FIELD",
        "line 4: the organization has no Owner",
        "1 created, 0 unchanged, 3 failed",
    ] {
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
    replica.get_user("olivia").await.unwrap();

    // Nothing of a file with an invalid line is imported.
    let long = format!(r#"{{"user": {{"username": "{}"}}}}"#, "x".repeat(300_000));
    for (line, why) in [
        ("{", "EOF"),
        (r#"{"group": {}}"#, "no kind of record"),
        (r#"{"user": {}, "organization": {}}"#, "one record"),
        (r#"{"user": {"name": "x"}}"#, "name"),
        (r#"{"membership": {}}"#, "line 3: stands after"),
        (&long, "longer"),
    ] {
        let text = format!("{line}\n\n{}\n", r#"{"user": {"username": "hannah"}}"#);
        let file = files.write("invalid.ndjson", &text);
        let refused = import(&replica, &file, &[]).await;
        assert_eq!(refused.status.code(), Some(1), "{line}");
        assert!(error(&refused).contains(why), "{why}: {}", error(&refused));
        replica.get_user("hannah").await.unwrap_err();
    }
}

#[tokio::test]
async fn dev_starts_with_the_records_of_a_file() {
    let files = Files::new();
    let file = files.write("records.ndjson", RECORDS);
    let mut command = command(&["dev", "--listen-addr", "127.0.0.1:0", "--seed"]);
    command.arg(file).stderr(std::process::Stdio::null());
    let server = Server::start(command, "account service", |greeting| {
        greeting.ends_with("seeded\n")
    });
    let mut client = server.client().await;
    let check = account_service::proto::account_v1::CheckMembershipRequest {
        organization_name: "acme".to_owned(),
        username: "hannah".to_owned(),
        ..Default::default()
    };
    let checked = client.check_membership(check).await.unwrap().into_inner();
    assert_eq!(checked.role(), Role::Admin);
}
