//! The commands for people: calls of the contract, with their responses as tables or as JSON.

use http::uri::PathAndQuery;
use serde_json::{Map, Value, json};
use tonic::{Status, client::Grpc, transport::Channel};
use uuid::Uuid;

use super::{
    Ending,
    connection::{self, ConnectionError},
    contract::{self, Contract, DynamicCodec, SERVICE},
    say,
    table::{field_of, printable, table},
    typed::{DEADLINE, describe_status, with_retries},
};
use crate::config::{
    ConnectionSettings, CreateCommand, DeleteCommand, GetCommand, ListCommand, ListSettings,
    MemberArg, OutputFormat, ProfileFields, ReadSettings, ResourceCommand, ResumeCommand, RoleArg,
    SuspendCommand, UserArg, VersionArg, WriteSettings, Writing,
};

/// Most entries of a page.
const PAGE: usize = 250;

/// The failure of a command.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// There is no connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A value of the command line does not fit the contract, or a response does not.
    #[error("{0}")]
    Value(String),
    /// The server rejects the call.
    #[error("{}", describe_status(.0))]
    Rejected(Box<Status>),
}

impl ResourceError {
    /// The status of a rejection.
    fn status(&self) -> Option<&Status> {
        match self {
            Self::Rejected(status) => Some(status),
            _ => None,
        }
    }
}

/// A call of the service.
#[derive(Debug)]
struct ContractCall {
    method: &'static str,
    /// The request, as JSON.
    request: Value,
}

impl ContractCall {
    fn new(method: &'static str, request: Value) -> Self {
        Self { method, request }
    }
}

/// What a command does.
enum Work {
    Read(ContractCall, ReadSettings),
    List(ContractCall, ListSettings),
    Check(ContractCall, ReadSettings),
    Write(ContractCall, WriteSettings),
}

/// Runs a command.
///
/// # Errors
/// See [`ResourceError`].
pub async fn run(command: ResourceCommand) -> Result<Ending, ResourceError> {
    match work(command) {
        Work::Read(call, settings) => {
            let response = Server::connect(&settings.connection)
                .await?
                .call(&call)
                .await?;
            print(settings.output, &response);
        }
        Work::List(call, settings) => list(call, &settings).await?,
        Work::Check(call, settings) => {
            let response = Server::connect(&settings.connection)
                .await?
                .call(&call)
                .await?;
            return Ok(print_check(settings.output, &response));
        }
        Work::Write(mut call, settings) => {
            let id = settings.request_id.unwrap_or_else(Uuid::new_v4);
            call.request["requestId"] = id.to_string().into();
            if settings.dry_run {
                let contract = Contract::read().map_err(ResourceError::Value)?;
                encode(&contract, &call)?;
                say(&format!(
                    "{}\n",
                    json!({"method": call.method, "request": call.request})
                ));
                return Ok(Ending::Done);
            }
            let connection = &settings.read.connection;
            let response = Server::connect(connection).await?.call(&call).await?;
            print(settings.read.output, &response);
        }
    }
    Ok(Ending::Done)
}

fn work(command: ResourceCommand) -> Work {
    match command {
        ResourceCommand::Get(GetCommand::User(get)) => {
            let request = json!({"username": get.subject.username});
            Work::Read(ContractCall::new("GetUser", request), get.read)
        }
        ResourceCommand::Get(GetCommand::Organization(get)) => {
            let request = json!({"organizationName": get.subject.organization});
            Work::Read(ContractCall::new("GetOrganization", request), get.read)
        }
        ResourceCommand::Get(GetCommand::Member(get)) => Work::Read(
            ContractCall::new("GetMembership", member(&get.subject)),
            get.read,
        ),
        ResourceCommand::List(command) => list_work(command),
        ResourceCommand::Check(check) => {
            let request = json!({
                "organizationName": check.member.organization.organization,
                "username": check.member.user.username,
                "minimumRole": role(check.role),
            });
            Work::Check(ContractCall::new("CheckMembership", request), check.read)
        }
        ResourceCommand::Create(command) => create_work(command),
        ResourceCommand::Add(add) => {
            let mut request = member(&add.member);
            request["role"] = role(add.role).into();
            request["addingUser"] = add.actor.acting_user.into();
            request["expireTime"] = add.until.into();
            request["labels"] = labels(add.labels);
            Work::Write(
                ContractCall::new("AddUserToOrganization", request),
                add.write,
            )
        }
        ResourceCommand::Remove(remove) => {
            let mut request = member(&remove.member.subject);
            request["actingUser"] = remove.actor.acting_user.into();
            write("RemoveUserFromOrganization", request, remove.member)
        }
        ResourceCommand::SetRole(set) => {
            let mut request = member(&set.member.subject);
            request["role"] = role(set.role).into();
            request["actingUser"] = set.actor.acting_user.into();
            write("ChangeMemberRole", request, set.member)
        }
        ResourceCommand::Suspend(SuspendCommand::User(suspend)) => {
            let mut request = user(&suspend.subject.user);
            request["unlessLastOwner"] = suspend.subject.unless_last_owner.into();
            write("SuspendUser", request, suspend)
        }
        ResourceCommand::Suspend(SuspendCommand::Organization(suspend)) => {
            let request = json!({"organizationName": suspend.subject.organization});
            write("SuspendOrganization", request, suspend)
        }
        ResourceCommand::Resume(ResumeCommand::User(resume)) => {
            write("ResumeUser", user(&resume.subject), resume)
        }
        ResourceCommand::Resume(ResumeCommand::Organization(resume)) => {
            let request = json!({"organizationName": resume.subject.organization});
            write("ResumeOrganization", request, resume)
        }
        ResourceCommand::Delete(DeleteCommand::User(delete)) => {
            let mut request = user(&delete.subject.user);
            request["unlessLastOwner"] = delete.subject.unless_last_owner.into();
            write("DeleteUser", request, delete)
        }
        ResourceCommand::Delete(DeleteCommand::Organization {
            organization,
            acting_user,
        }) => {
            let mut request = json!({"organizationName": organization.subject.organization});
            match acting_user {
                Some(user) => request["actingUser"] = user.into(),
                None => request["asPlatform"] = true.into(),
            }
            write("DeleteOrganization", request, organization)
        }
    }
}

fn list_work(command: ListCommand) -> Work {
    let (method, mut request, settings) = match command {
        ListCommand::Users(list) => ("ListUsers", json!({"orderBy": "username"}), list),
        ListCommand::Organizations(list) => (
            "ListOrganizations",
            json!({"orderBy": "organization_name"}),
            list,
        ),
        ListCommand::Members(listing) => (
            "ListOrganizationMembers",
            json!({"organizationName": listing.of.organization}),
            listing.list,
        ),
        ListCommand::Memberships(listing) => {
            ("ListUserOrganizations", user(&listing.of), listing.list)
        }
    };
    request["filter"] = settings.filter.clone().into();
    Work::List(ContractCall::new(method, request), settings)
}

fn create_work(command: CreateCommand) -> Work {
    let (method, mut request, fields, settings) = match command {
        CreateCommand::User {
            user: of,
            email,
            fields,
            write,
        } => {
            let mut request = user(&of);
            request["email"] = email.into();
            ("CreateUser", request, fields, write)
        }
        CreateCommand::Organization {
            organization,
            founder,
            fields,
            write,
        } => {
            let request = json!({
                "organizationName": organization.organization,
                "foundingUser": founder,
            });
            ("CreateOrganization", request, fields, write)
        }
    };
    let ProfileFields {
        display_name,
        external_id,
        labels: of_profile,
    } = fields;
    request["displayName"] = display_name.into();
    request["externalId"] = external_id.into();
    request["labels"] = labels(of_profile);
    Work::Write(ContractCall::new(method, request), settings)
}

fn write<T: clap::Args>(method: &'static str, mut request: Value, writing: Writing<T>) -> Work {
    let VersionArg { etag } = writing.version;
    request["etag"] = etag.into();
    Work::Write(ContractCall::new(method, request), writing.write)
}

fn user(UserArg { username }: &UserArg) -> Value {
    json!({"username": username})
}

fn member(of: &MemberArg) -> Value {
    json!({
        "organizationName": of.organization.organization,
        "memberUsername": of.user.username,
    })
}

fn labels(labels: Vec<(String, String)>) -> Value {
    let labels = labels.into_iter().map(|(key, value)| (key, value.into()));
    Value::Object(labels.collect::<Map<_, _>>())
}

fn role(role: RoleArg) -> &'static str {
    match role {
        RoleArg::Owner => "ROLE_OWNER",
        RoleArg::Admin => "ROLE_ADMIN",
        RoleArg::Member => "ROLE_MEMBER",
    }
}

/// The connection to a server.
struct Server {
    contract: Contract,
    client: Grpc<Channel>,
    settings: ConnectionSettings,
}

impl Server {
    async fn connect(settings: &ConnectionSettings) -> Result<Self, ResourceError> {
        connection::assert_secure(settings)?;
        Ok(Self {
            contract: Contract::read().map_err(ResourceError::Value)?,
            client: Grpc::new(connection::connect(settings).await?),
            settings: settings.clone(),
        })
    }

    /// Makes a call, with further attempts while the server is unavailable. Returns the response, as JSON.
    async fn call(&mut self, call: &ContractCall) -> Result<Value, ResourceError> {
        with_retries(async || self.attempt(call).await, ResourceError::status).await
    }

    async fn attempt(&mut self, call: &ContractCall) -> Result<Value, ResourceError> {
        let (path, message, codec) = encode(&self.contract, call)?;
        let mut request = connection::authorized(&self.settings, message)?;
        request.set_timeout(DEADLINE);
        let rejected = |status| ResourceError::Rejected(Box::new(status));
        let lost = |error: tonic::transport::Error| rejected(Status::from_error(error.into()));
        self.client.ready().await.map_err(lost)?;
        let response = self.client.unary(request, path, codec).await;
        let response = response.map_err(rejected)?.into_inner();
        contract::to_json(&response).map_err(ResourceError::Value)
    }
}

/// The path of a call, its request, and the codec of its messages.
fn encode(
    contract: &Contract,
    call: &ContractCall,
) -> Result<(PathAndQuery, prost_reflect::DynamicMessage, DynamicCodec), ResourceError> {
    let method = contract.method(call.method).map_err(ResourceError::Value)?;
    let path = format!("/{SERVICE}/{}", call.method);
    let path = path
        .parse()
        .map_err(|_| ResourceError::Value(format!("{path} is not a path")))?;
    let message = contract::from_json(method.input(), call.request.clone());
    let response = method.output();
    Ok((
        path,
        message.map_err(ResourceError::Value)?,
        DynamicCodec { response },
    ))
}

fn print(output: OutputFormat, response: &Value) {
    let Some(field) = field_of(response) else {
        return say(&format!("{response}\n"));
    };
    let resource = response[field].clone();
    match output {
        OutputFormat::Json => say(&format!("{resource}\n")),
        OutputFormat::Table => say(&table(field, &[resource])),
    }
}

/// Reads the pages of a list, and prints them: JSON page by page, a table as a whole.
async fn list(mut call: ContractCall, settings: &ListSettings) -> Result<(), ResourceError> {
    let limit = if settings.limit == 0 {
        usize::MAX
    } else {
        settings.limit
    };
    let mut server = Server::connect(&settings.read.connection).await?;
    let (mut field, mut rows, mut count) = (String::new(), Vec::new(), 0);
    let is_cut = loop {
        call.request["pageSize"] = (limit - count).min(PAGE).into();
        let mut response = server.call(&call).await?;
        if let Some(name) = field_of(&response) {
            field = name.to_owned();
        }
        let page = match response.get_mut(&field).map(Value::take) {
            Some(Value::Array(page)) => page,
            _ => Vec::new(),
        };
        count += page.len();
        match settings.read.output {
            OutputFormat::Json => page.iter().for_each(|it| say(&format!("{it}\n"))),
            OutputFormat::Table => rows.extend(page),
        }
        let token = response["nextPageToken"].as_str().unwrap_or_default();
        if token.is_empty() {
            break false;
        }
        if count >= limit {
            break true;
        }
        call.request["pageToken"] = token.into();
    };
    if settings.read.output == OutputFormat::Table && count > 0 {
        say(&table(&field, &rows));
    }
    if is_cut {
        eprintln!("there may be more: --limit 0 shows all");
    }
    Ok(())
}

fn print_check(output: OutputFormat, response: &Value) -> Ending {
    let is_yes = response["satisfied"].as_bool().unwrap_or_default();
    match output {
        OutputFormat::Json => say(&format!("{response}\n")),
        OutputFormat::Table => {
            let role = response["role"].as_str().unwrap_or_default();
            let role = role.trim_start_matches("ROLE_").to_lowercase();
            let answer = match (is_yes, role.as_str()) {
                (true, role) => format!("yes: {role}"),
                (false, "") => "no: not a member".to_owned(),
                (false, role) => format!("no: {role}"),
            };
            say(&format!("{}\n", printable(&answer)));
        }
    }
    if is_yes { Ending::Done } else { Ending::No }
}
