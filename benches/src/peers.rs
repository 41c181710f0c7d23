//! The measured servers: the service, the bare echo as the limit, and alternatives to the
//! service. All have the same memberships, and get the same checks.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use account_service::proto::account_v1::{
    self as pb, Role, account_service_client::AccountServiceClient,
};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    load::{Target, framed},
    processes::{MEASURED, Process, REST},
};

const USERS: usize = 50;
const ORGANIZATIONS: usize = 20;
/// Longest start of a server.
const PATIENCE: Duration = Duration::from_secs(20);
const SPICEDB_KEY: &str = "bench";

/// The user and the organization of each check. The first user founds all organizations. The
/// checks are for the other users, which are members of all organizations.
fn checks() -> impl Iterator<Item = (String, String)> {
    (0..ORGANIZATIONS).flat_map(|organization| {
        let user = move |user| (user_name(user), organization_name(organization));
        (1..USERS).map(user)
    })
}

fn user_name(number: usize) -> String {
    format!("user-{number:04}")
}

fn organization_name(number: usize) -> String {
    format!("organization-{number:04}")
}

fn bodies<M: Message>(message: impl Fn(String, String) -> M) -> Rc<Vec<Bytes>> {
    let mut bodies: Vec<_> = checks()
        .map(|(user, organization)| framed(&message(user, organization)))
        .collect();
    fastrand::Rng::with_seed(1).shuffle(&mut bodies);
    Rc::new(bodies)
}

/// The paths of the programs.
#[derive(Debug, Clone, clap::Args)]
pub struct Programs {
    /// The service.
    #[arg(long, default_value = "target/account-service")]
    pub service: PathBuf,
    /// The bare echo.
    #[arg(long, default_value = "target/echo/release/echo")]
    pub echo: PathBuf,
    /// The backends.
    #[arg(long, default_value = "target/bench/release/backends")]
    pub backends: PathBuf,
    /// Replicas in one process.
    #[arg(long, default_value = "target/bench/release/replicas")]
    pub replicas: PathBuf,
    /// SpiceDB. Skipped if it is missing.
    #[arg(long, default_value = "target/peers/bin/spicedb")]
    pub spicedb: PathBuf,
    /// OpenFGA. Skipped if it is missing.
    #[arg(long, default_value = "target/peers/bin/openfga")]
    pub openfga: PathBuf,
    /// The folder of the peer in Node.js. Skipped if it is not installed.
    #[arg(long, default_value = "benches/node")]
    pub node: PathBuf,
    /// Folder for the output of callgrind, if the service and the echo run under it.
    #[arg(skip)]
    pub callgrind: Option<PathBuf>,
}

impl Programs {
    /// Starts a program on a processor.
    fn start(
        &self,
        processor: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> Result<Process> {
        let Some(file) = &self.callgrind else {
            return Process::start(processor, program, arguments, environment);
        };
        let file = format!("--callgrind-out-file={}", file.display());
        let program = program.to_str().context("no name")?;
        let under = ["--tool=callgrind", &file, program];
        let arguments = [&under, arguments].concat();
        Process::start(processor, Path::new("valgrind"), &arguments, environment)
    }
}

/// The backends, and the environment variables with their addresses.
#[derive(Debug)]
pub struct Backends {
    /// The process.
    pub process: Process,
    environment: Vec<(String, String)>,
}

impl Backends {
    /// Starts them with these delays, in microseconds.
    pub fn start(programs: &Programs, cache_us: u32, table_us: u32) -> Result<Self> {
        Self::start_on(programs, cache_us, table_us, 1)
    }

    /// Starts them on a number of threads. With several, no connection waits for another one,
    /// as if there were enough processors for all.
    pub fn start_on(
        programs: &Programs,
        cache_us: u32,
        table_us: u32,
        threads: u32,
    ) -> Result<Self> {
        let arguments = [
            format!("--cache-us={cache_us}"),
            format!("--table-us={table_us}"),
            format!("--threads={threads}"),
        ];
        Self::start_with(programs, &arguments.each_ref().map(String::as_str))
    }

    /// Starts them with counters of received and sent bytes.
    pub fn start_metered(programs: &Programs) -> Result<Self> {
        Self::start_with(programs, &["--meter"])
    }

    fn start_with(programs: &Programs, arguments: &[&str]) -> Result<Self> {
        let mut process = Process::start(REST, &programs.backends, arguments, &[])?;
        let mut environment = Vec::new();
        loop {
            let line = process.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once('=').context("no environment")?;
            environment.push((name.to_owned(), value.to_owned()));
        }
        let more = [
            ("AWS_ACCESS_KEY_ID", "embedded"),
            ("AWS_SECRET_ACCESS_KEY", "bench"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        environment.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Ok(Self {
            process,
            environment,
        })
    }

    /// The environment for a server that uses them, with more variables.
    pub fn environment(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let more = more
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.environment.iter().cloned().chain(more).collect()
    }
}

/// A measured server.
#[derive(Debug)]
pub struct Subject {
    /// Its name in tables.
    pub name: &'static str,
    /// Its process.
    pub process: Process,
    /// The call of a check.
    pub target: Target,
}

/// A free address.
pub fn free_address() -> Result<String> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(free.local_addr()?.to_string())
}

fn check(username: String, organization_name: String) -> pb::CheckMembershipRequest {
    pb::CheckMembershipRequest {
        organization_name,
        username,
        minimum_role: Role::Member.into(),
        ..pb::CheckMembershipRequest::default()
    }
}

/// The expected response to each check.
pub fn yes(source: pb::Source) -> Bytes {
    framed(&pb::CheckMembershipResponse {
        is_member: true,
        role: Role::Member.into(),
        satisfied: true,
        source: source.into(),
        ..pb::CheckMembershipResponse::default()
    })
}

/// The bare echo.
pub fn echo(programs: &Programs) -> Result<Subject> {
    let mut process = programs.start(MEASURED, &programs.echo, &[], &[])?;
    Ok(Subject {
        name: "bare tonic echo",
        target: Target {
            addr: process.after("serving on")?,
            path: "/bench.echo.Echo/Check".to_owned(),
            headers: Vec::new(),
            bodies: bodies(check),
            responses: Vec::new(),
        },
        process,
    })
}

/// The service over these backends, with more environment variables. One without a value is unset.
pub fn service(programs: &Programs, backends: &Backends, more: &[(&str, &str)]) -> Result<Subject> {
    // No entry must expire during a run.
    let usual = [
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("LOG", "warn"),
        ("MEMBERSHIP_TTL_S", "3600"),
        ("PROFILE_TTL_S", "3600"),
        ("PEER_ADDR", "127.0.0.1:0"),
        // The check of each record is warm only after it was read once.
        ("CACHE_OPERATIONS_PER_SECOND", "0"),
    ];
    let mut environment = backends.environment(&usual);
    for (name, value) in more {
        environment.retain(|(usual, _)| usual != name);
        if !value.is_empty() {
            environment.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    let mut process = programs.start(MEASURED, &programs.service, &["serve"], &environment)?;
    Ok(Subject {
        name: "account-service",
        target: service_target(process.after("serving on")?),
        process,
    })
}

/// The call of a check, for the service at this address.
pub fn service_target(addr: String) -> Target {
    Target {
        addr,
        path: "/account.v1.AccountService/CheckMembership".to_owned(),
        headers: Vec::new(),
        bodies: bodies(check),
        responses: vec![yes(pb::Source::Memory)],
    }
}

/// More replicas in one process, which shares the processor of the load generator and of the backends.
pub fn other_replicas(programs: &Programs, backends: &Backends, count: usize) -> Result<Process> {
    let environment = backends.environment(&[("PEER_ADDR", "127.0.0.1:0"), ("LOG", "warn")]);
    let count = count.to_string();
    let mut process = Process::start(REST, &programs.replicas, &[&count], &environment)?;
    process.after("serving")?;
    Ok(process)
}

/// Changes of the roles of all members, to admin and then back.
pub fn role_changes(addr: String) -> Target {
    let roles = [Role::Admin, Role::Member];
    let bodies = roles.into_iter().flat_map(|role| {
        checks().map(move |(member_username, organization_name)| {
            framed(&pb::ChangeMemberRoleRequest {
                organization_name,
                member_username,
                role: role.into(),
                acting_user: user_name(0),
                ..pb::ChangeMemberRoleRequest::default()
            })
        })
    });
    Target {
        addr,
        path: "/account.v1.AccountService/ChangeMemberRole".to_owned(),
        headers: Vec::new(),
        bodies: Rc::new(bodies.collect()),
        responses: Vec::new(),
    }
}

/// A call with many checks, which keeps the service busy. Without `asks_backends`, the last check
/// is invalid, and the call sends no request to a backend.
pub fn flood_target(addr: String, asks_backends: bool) -> Target {
    let mut checks: Vec<_> = checks()
        .map(|(username, organization_name)| pb::MembershipCheck {
            organization_name,
            username,
            ..pb::MembershipCheck::default()
        })
        .collect();
    if !asks_backends {
        checks.push(pb::MembershipCheck::default());
    }
    let request = pb::BatchCheckMembershipsRequest {
        checks,
        consistency: None,
    };
    Target {
        addr,
        path: "/account.v1.AccountService/BatchCheckMemberships".to_owned(),
        headers: Vec::new(),
        bodies: Rc::new(vec![framed(&request)]),
        responses: Vec::new(),
    }
}

/// Writes all users, organizations and memberships through the service.
pub async fn seed(addr: &str) -> Result<()> {
    let mut client = AccountServiceClient::connect(format!("http://{addr}")).await?;
    for user in 0..USERS {
        let request = pb::CreateUserRequest {
            username: user_name(user),
            first_name: "Olivia".to_owned(),
            last_name: "Smith".to_owned(),
            email: format!("{}@example.com", user_name(user)),
            ..pb::CreateUserRequest::default()
        };
        client.create_user(request).await?;
    }
    for organization in 0..ORGANIZATIONS {
        let request = pb::CreateOrganizationRequest {
            organization_name: organization_name(organization),
            founding_user: user_name(0),
            ..pb::CreateOrganizationRequest::default()
        };
        client.create_organization(request).await?;
    }
    for (member_username, organization_name) in checks() {
        let request = pb::AddUserToOrganizationRequest {
            organization_name,
            member_username,
            role: Role::Member.into(),
            adding_user: user_name(0),
            ..pb::AddUserToOrganizationRequest::default()
        };
        client.add_user_to_organization(request).await?;
    }
    Ok(())
}

/// The same logic in Node.js, over the same backends.
pub fn node(programs: &Programs, backends: &Backends) -> Result<Option<Subject>> {
    if !programs.node.join("node_modules").exists() {
        return Ok(None);
    }
    let environment = backends.environment(&[("NODE_ENV", "production")]);
    let server = programs.node.join("server.mjs");
    let server = server.to_str().context("no UTF-8")?;
    let mut process = Process::start(MEASURED, Path::new("node"), &[server], &environment)?;
    Ok(Some(Subject {
        name: "Node.js, grpc-js",
        target: Target {
            responses: vec![yes(pb::Source::Cache)],
            ..service_target(process.after("serving on")?)
        },
        process,
    }))
}

/// Waits for a listener at an address.
fn listening(addr: &str) -> Result<()> {
    let began = Instant::now();
    while std::net::TcpStream::connect(addr).is_err() {
        if began.elapsed() > PATIENCE {
            bail!("no server listens on {addr}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

mod spicedb_api {
    //! The few messages of `authzed.api.v1` that a check needs.

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ObjectReference {
        #[prost(string, tag = "1")]
        pub object_type: String,
        #[prost(string, tag = "2")]
        pub object_id: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SubjectReference {
        #[prost(message, optional, tag = "1")]
        pub object: Option<ObjectReference>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CheckPermissionRequest {
        #[prost(message, optional, tag = "2")]
        pub resource: Option<ObjectReference>,
        #[prost(string, tag = "3")]
        pub permission: String,
        #[prost(message, optional, tag = "4")]
        pub subject: Option<SubjectReference>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct WriteSchemaRequest {
        #[prost(string, tag = "1")]
        pub schema: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Relationship {
        #[prost(message, optional, tag = "1")]
        pub resource: Option<ObjectReference>,
        #[prost(string, tag = "2")]
        pub relation: String,
        #[prost(message, optional, tag = "3")]
        pub subject: Option<SubjectReference>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct RelationshipUpdate {
        /// 2: write, also if it exists.
        #[prost(int32, tag = "1")]
        pub operation: i32,
        #[prost(message, optional, tag = "2")]
        pub relationship: Option<Relationship>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct WriteRelationshipsRequest {
        #[prost(message, repeated, tag = "1")]
        pub updates: Vec<RelationshipUpdate>,
    }
}

/// The same roles in SpiceDB's schema, without suspension.
const SPICEDB_SCHEMA: &str = "
definition user {}
definition organization {
  relation owner: user
  relation admin: user
  relation member: user
  permission at_least_member = owner + admin + member
}";

/// SpiceDB, in memory.
pub async fn spicedb(programs: &Programs) -> Result<Option<Subject>> {
    use spicedb_api as api;

    if !programs.spicedb.exists() {
        return Ok(None);
    }
    let addr = free_address()?;
    let (dispatch, metrics) = (free_address()?, free_address()?);
    let arguments = [
        "serve",
        "--datastore-engine=memory",
        "--grpc-preshared-key",
        SPICEDB_KEY,
        "--grpc-addr",
        &addr,
        "--dispatch-cluster-addr",
        &dispatch,
        "--metrics-addr",
        &metrics,
        "--telemetry-endpoint=",
        "--grpc-max-conn-age=1h",
        "--skip-release-check",
        "--log-level=error",
    ];
    let process = Process::start(MEASURED, &programs.spicedb, &arguments, &[])?;
    listening(&addr)?;
    let object = |object_type: &str, object_id: String| {
        Some(api::ObjectReference {
            object_type: object_type.to_owned(),
            object_id,
        })
    };
    let subject = |user: String| {
        Some(api::SubjectReference {
            object: object("user", user),
        })
    };
    let target = |method: &str, bodies| Target {
        addr: addr.clone(),
        path: format!("/authzed.api.v1.{method}"),
        headers: vec![("authorization".to_owned(), format!("Bearer {SPICEDB_KEY}"))],
        bodies,
        responses: Vec::new(),
    };
    let schema = api::WriteSchemaRequest {
        schema: SPICEDB_SCHEMA.to_owned(),
    };
    let schema = Rc::new(vec![framed(&schema)]);
    once(target("SchemaService/WriteSchema", schema)).await?;
    let updates = checks().map(|(user, organization)| api::RelationshipUpdate {
        operation: 2,
        relationship: Some(api::Relationship {
            resource: object("organization", organization),
            relation: "member".to_owned(),
            subject: subject(user),
        }),
    });
    let write = api::WriteRelationshipsRequest {
        updates: updates.collect(),
    };
    let write = Rc::new(vec![framed(&write)]);
    once(target("PermissionsService/WriteRelationships", write)).await?;
    let check = |user, organization| api::CheckPermissionRequest {
        resource: object("organization", organization),
        permission: "at_least_member".to_owned(),
        subject: subject(user),
    };
    Ok(Some(Subject {
        name: "SpiceDB, in memory",
        target: target("PermissionsService/CheckPermission", bodies(check)),
        process,
    }))
}

async fn once(target: Target) -> Result<()> {
    let caller = crate::load::Caller::connect(target, 1).await?;
    let response = caller.call().await?;
    anyhow::ensure!(response.code == Code::Ok, "rejected");
    Ok(())
}

#[derive(Clone, PartialEq, prost::Message)]
struct FgaTupleKey {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(string, tag = "2")]
    relation: String,
    #[prost(string, tag = "3")]
    object: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FgaCheckRequest {
    #[prost(string, tag = "1")]
    store_id: String,
    #[prost(message, optional, tag = "2")]
    tuple_key: Option<FgaTupleKey>,
    #[prost(string, tag = "4")]
    authorization_model_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FgaCheckResponse {
    #[prost(bool, tag = "1")]
    allowed: bool,
}

/// OpenFGA, in memory, with its caches of checks.
pub fn openfga(programs: &Programs) -> Result<Option<Subject>> {
    if !programs.openfga.exists() {
        return Ok(None);
    }
    let (addr, http) = (free_address()?, free_address()?);
    let arguments = [
        "run",
        "--datastore-engine=memory",
        "--playground-enabled=false",
        "--metrics-enabled=false",
        "--log-level=error",
        "--check-query-cache-enabled=true",
        "--check-query-cache-ttl=1h",
        "--check-iterator-cache-enabled=true",
        "--grpc-addr",
        &addr,
        "--http-addr",
        &http,
    ];
    let process = Process::start(MEASURED, &programs.openfga, &arguments, &[])?;
    listening(&addr)?;
    listening(&http)?;
    let post = |path: &str, body: Value| -> Result<Value> {
        let mut response = ureq::post(format!("http://{http}{path}")).send_json(body)?;
        Ok(response.body_mut().read_json()?)
    };
    let text = |value: &Value, name: &str| -> Result<String> {
        Ok(value[name].as_str().context("no id")?.to_owned())
    };
    let store = text(&post("/stores", json!({ "name": "bench" }))?, "id")?;
    let direct = json!({ "this": {} });
    let of_role = json!({ "directly_related_user_types": [{ "type": "user" }] });
    let computed = |relation: &str| json!({ "computedUserset": { "relation": relation } });
    let roles = ["owner", "admin", "member"];
    let model = json!({
        "schema_version": "1.1",
        "type_definitions": [
            { "type": "user" },
            {
                "type": "organization",
                "relations": {
                    "owner": direct, "admin": direct, "member": direct,
                    "at_least_member": { "union": { "child": roles.map(computed) } },
                },
                "metadata": { "relations": {
                    "owner": of_role, "admin": of_role, "member": of_role,
                    "at_least_member": {},
                } },
            },
        ],
    });
    let model = post(&format!("/stores/{store}/authorization-models"), model)?;
    let model = text(&model, "authorization_model_id")?;
    let tuples: Vec<_> = checks()
        .map(|(user, organization)| {
            json!({
                "user": format!("user:{user}"),
                "relation": "member",
                "object": format!("organization:{organization}"),
            })
        })
        .collect();
    for tuples in tuples.chunks(50) {
        let write = json!({ "writes": { "tuple_keys": tuples } });
        post(&format!("/stores/{store}/write"), write)?;
    }
    let check = |user: String, organization: String| FgaCheckRequest {
        store_id: store.clone(),
        tuple_key: Some(FgaTupleKey {
            user: format!("user:{user}"),
            relation: "at_least_member".to_owned(),
            object: format!("organization:{organization}"),
        }),
        authorization_model_id: model.clone(),
    };
    Ok(Some(Subject {
        name: "OpenFGA, in memory",
        target: Target {
            addr,
            path: "/openfga.v1.OpenFGAService/Check".to_owned(),
            headers: Vec::new(),
            bodies: bodies(check),
            responses: vec![framed(&FgaCheckResponse { allowed: true })],
        },
        process,
    }))
}
