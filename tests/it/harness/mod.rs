//! Starts the service with its backends, and says what it does to them.

mod dynamodb_proxy;
pub mod script;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use account_service::{
    boot::{self, App, Tuning},
    config::{CacheSettings, DevSettings, LogFormat, LogSettings, ServeSettings, ServerSettings},
    local::{ANY_PORT, Embedded, momento},
    proto::account_v1::{self as pb, account_service_client::AccountServiceClient},
    service::Accounts,
    setup,
};
use aws_sdk_dynamodb::types::AttributeValue;
use tokio::sync::oneshot;
use tonic::{Status, transport::Channel};

use self::{
    dynamodb_proxy::DynamoDbProxy,
    script::{BESIDE, Script},
};

pub type Client = AccountServiceClient<Channel>;

/// Environment variable with the endpoint of a DynamoDB server to test against
/// instead of the embedded one.
const DYNAMODB_ENDPOINT: &str = "TEST_DYNAMODB_ENDPOINT";
/// The same for Secrets Manager.
const SECRETS_ENDPOINT: &str = "TEST_SECRETS_ENDPOINT";
/// Longest that anything in a test is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The backends: servers that any number of replicas share.
pub struct Backends {
    pub embedded: Embedded,
    /// Sees the DynamoDB calls, by the operation's name and the request's body.
    pub dynamodb: Arc<Script>,
    /// Sees the Momento calls, by the RPC's name and the keys.
    pub momento: Arc<Script>,
    batch_answers: Arc<AtomicUsize>,
    proxy: DynamoDbProxy,
    settings: DevSettings,
}

/// One replica of the service, and a client of it.
pub struct Replica {
    pub addr: std::net::SocketAddr,
    pub client: Client,
    pub channel: Channel,
    accounts: Accounts,
    stop: Option<oneshot::Sender<()>>,
}

impl Backends {
    pub async fn start() -> Self {
        let settings = dev_settings();
        let momento = Arc::new(Script::default());
        let batch_answers = Arc::new(AtomicUsize::new(usize::MAX));
        let gate = Arc::new(MomentoGate {
            script: momento.clone(),
            batch_answers: batch_answers.clone(),
        });
        let embedded = Embedded::start(&settings, gate).await.unwrap();
        embedded.set_up().await.unwrap();
        let dynamodb = Arc::new(Script::default());
        let proxy = DynamoDbProxy::start(embedded.dynamodb_url(), dynamodb.clone()).await;
        Self {
            embedded,
            dynamodb,
            momento,
            batch_answers,
            proxy,
            settings,
        }
    }

    pub fn serve_settings(&self) -> ServeSettings {
        let mut settings = self.embedded.serve_settings(&self.settings);
        settings.backends.dynamodb_endpoint = Some(self.proxy.url());
        settings
    }

    pub async fn replica(&self) -> Replica {
        Replica::start(&self.serve_settings()).await
    }

    /// A replica with its own way to the backends.
    pub async fn isolated(&self, tuning: impl Into<Tuning>) -> Isolated {
        let (dynamodb, momento) = <(Arc<Script>, Arc<Script>)>::default();
        let (way, settings) = self.way(dynamodb.clone(), momento.clone()).await;
        Isolated {
            replica: Replica::start_with(&settings, tuning).await,
            dynamodb,
            momento,
            _way: way,
        }
    }

    /// A way to the backends on which these scripts rule.
    pub async fn way(&self, dynamodb: Arc<Script>, momento: Arc<Script>) -> (Way, ServeSettings) {
        let proxy = DynamoDbProxy::start(self.embedded.dynamodb_url(), dynamodb).await;
        let gate = Arc::new(MomentoGate {
            script: momento,
            batch_answers: self.batch_answers.clone(),
        });
        let server = self.embedded.momento.start_beside(ANY_PORT, gate).await;
        let server = server.unwrap();
        let mut settings = self.serve_settings();
        settings.backends.dynamodb_endpoint = Some(proxy.url());
        settings.backends.momento_secret_id = self.store_secret(&server).await;
        let way = Way {
            _proxy: proxy,
            _momento: server,
        };
        (way, settings)
    }

    /// Stores the secret of another Momento server; returns its name.
    async fn store_secret(&self, server: &momento::Running) -> String {
        use secrecy::ExposeSecret as _;
        let name = format!("momento-{}", uuid::Uuid::new_v4());
        let create = self.secrets_client().create_secret().name(&name);
        let create = create.secret_string(server.secret().expose_secret());
        create.send().await.unwrap();
        name
    }

    /// A client of the table that the service does not know of.
    pub fn table(&self) -> Table {
        Table {
            client: dynamodb_client(&self.embedded.dynamodb_url()),
            name: self.settings.table_name.clone(),
            url: self.embedded.dynamodb_url(),
        }
    }

    /// A replica that shares the cache, but serves another table.
    pub async fn replica_on_another_table(&self) -> Replica {
        let mut settings = self.serve_settings();
        settings.backends.table_name = format!("accounts-{}", uuid::Uuid::new_v4());
        setup::run(&settings.backends, None).await.unwrap();
        Replica::start(&settings).await
    }

    /// Ends every further batch stream of the cache after this many answers.
    pub fn cut_batches_after(&self, answers: usize) {
        self.batch_answers.store(answers, Ordering::SeqCst);
    }

    /// Empties the cache, as an operator would.
    pub async fn flush_cache(&self) {
        let cache = &self.serve_settings().backends.cache_name;
        self.momento_client().flush_cache(cache).await.unwrap();
    }

    /// A client of Secrets Manager that the service does not know of.
    pub fn secrets_client(&self) -> aws_sdk_secretsmanager::Client {
        let settings = self.serve_settings().backends;
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(aws_sdk_secretsmanager::config::BehaviorVersion::latest())
            .region(aws_sdk_secretsmanager::config::Region::new("us-east-1"))
            .credentials_provider(credentials())
            .endpoint_url(settings.secrets_endpoint.unwrap())
            .build();
        aws_sdk_secretsmanager::Client::from_conf(config)
    }

    /// A client of the cache that the service does not know of.
    pub fn momento_client(&self) -> ::momento::CacheClient {
        use secrecy::ExposeSecret as _;
        let secret = self.embedded.momento.secret();
        let secret: serde_json::Value = serde_json::from_str(secret.expose_secret()).unwrap();
        let text = |name: &str| secret[name].as_str().unwrap().to_owned();
        let credential =
            ::momento::CredentialProvider::from_api_key_v2(text("MOMENTO_API_KEY"), "embedded");
        let credential = credential.unwrap();
        ::momento::CacheClient::builder()
            .default_ttl(Duration::from_secs(60))
            .configuration(::momento::cache::configurations::Laptop::latest())
            .credential_provider(credential.insecure_endpoint_override(&text("MOMENTO_ENDPOINT")))
            .build()
            .unwrap()
    }

    pub fn forget_calls(&self) {
        self.dynamodb.forget_calls();
        self.momento.forget_calls();
    }

    /// Every backend call since they were last forgotten, as `2 x Get`.
    pub fn calls(&self) -> Vec<String> {
        let mut calls = self.momento.calls();
        calls.extend(self.dynamodb.calls());
        calls
    }
}

/// A replica whose calls to the backends no other replica's calls are mixed with.
pub struct Isolated {
    pub replica: Replica,
    pub dynamodb: Arc<Script>,
    pub momento: Arc<Script>,
    _way: Way,
}

/// A way to the backends. Gone when dropped.
pub struct Way {
    _proxy: DynamoDbProxy,
    _momento: momento::Running,
}

impl Replica {
    pub async fn start(settings: &ServeSettings) -> Self {
        Self::start_with(settings, settings.cache.to_coherence()).await
    }

    pub async fn start_with(settings: &ServeSettings, tuning: impl Into<Tuning>) -> Self {
        Self::try_start_with(settings, tuning).await.unwrap()
    }

    pub async fn try_start_with(
        settings: &ServeSettings,
        tuning: impl Into<Tuning>,
    ) -> Result<Self, boot::Error> {
        let (listener, addr) = boot::listen(&settings.server).await?;
        let app = Box::pin(App::boot_with(settings, tuning)).await?;
        let accounts = app.accounts().clone();
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(async move {
            app.serve(listener, async {
                let _ = stopped.await;
            })
            .await
            .unwrap();
        });
        let endpoint = Channel::from_shared(format!("http://{addr}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Ok(Self {
            addr,
            client: Client::new(channel.clone()),
            channel,
            accounts,
            stop: Some(stop),
        })
    }

    /// Tells the server to stop, as SIGTERM does.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits until no fill, publication or repair is under way.
    pub async fn settle(&self) {
        tokio::time::timeout(PATIENCE, self.accounts.drain())
            .await
            .unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The backends and one replica.
pub async fn start() -> (Backends, Replica) {
    let backends = Backends::start().await;
    let replica = backends.replica().await;
    (backends, replica)
}

fn dev_settings() -> DevSettings {
    DevSettings {
        data_dir: None,
        dynamodb_endpoint: std::env::var(DYNAMODB_ENDPOINT).ok(),
        table_name: format!("accounts-{}", uuid::Uuid::new_v4()),
        secrets_endpoint: std::env::var(SECRETS_ENDPOINT).ok(),
        server: ServerSettings {
            listen_addr: ANY_PORT,
            drain_timeout_ms: Duration::from_secs(10),
            watch_patience_ms: Duration::from_secs(2),
            // Its calls would be counted.
            clean_up_rate: 0,
            metrics_addr: None,
        },
        cache: CacheSettings {
            // Long, so that a busy machine does not change what is counted.
            cache_read_timeout_ms: PATIENCE,
            membership_ttl_s: Duration::from_secs(60),
            profile_ttl_s: Duration::from_secs(300),
            absent_ttl_s: Duration::from_secs(10),
            // Its calls would be counted, and hide what the protocol lacks.
            stream_invalidator: false,
        },
        log: LogSettings {
            log: "warn".to_owned(),
            log_format: LogFormat::Text,
        },
    }
}

struct MomentoGate {
    script: Arc<Script>,
    batch_answers: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl momento::Gate for MomentoGate {
    async fn pass(&self, call: momento::Call, keys: &[&[u8]]) -> Result<momento::Fate, Status> {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| String::from_utf8_lossy(key))
            .collect();
        let keys = keys.join(" ");
        let beside = if keys.ends_with("/probe") { BESIDE } else { "" };
        match self.script.meet(&format!("{beside}{call:?}"), &keys).await {
            script::Fate::Served => {
                let answers = self.batch_answers.load(Ordering::SeqCst);
                Ok(momento::Fate::Cut(answers))
            }
            script::Fate::Unanswered => Ok(momento::Fate::Unanswered),
            script::Fate::ServedTwice => Ok(momento::Fate::ServedTwice),
            script::Fate::Cut(answers) => Ok(momento::Fate::Cut(answers)),
            script::Fate::Slow(delay) => Ok(momento::Fate::Slow(delay)),
            _ => Err(Status::unavailable("refused by the test")),
        }
    }
}

/// The table, written and read past the service.
pub struct Table {
    pub client: aws_sdk_dynamodb::Client,
    name: String,
    url: String,
}

impl Table {
    /// Puts an item of text attributes.
    pub async fn put(&self, attributes: &[(&str, &str)]) {
        let item = attributes.iter().map(|(name, text)| {
            let text = AttributeValue::S((*text).to_owned());
            ((*name).to_owned(), text)
        });
        let put = self.client.put_item().table_name(&self.name);
        put.set_item(Some(item.collect())).send().await.unwrap();
    }

    /// Ends the table's stream: the servers that run beside tests take the
    /// longer for a write the more their stream holds.
    pub async fn end_stream(&self) {
        let stream = aws_sdk_dynamodb::types::StreamSpecification::builder();
        let stream = stream.stream_enabled(false).build().unwrap();
        let table = self.client.update_table().table_name(&self.name);
        table.stream_specification(stream).send().await.unwrap();
    }

    /// Puts many items of text attributes.
    pub async fn put_many(&self, items: Vec<Vec<(&str, String)>>) {
        use aws_sdk_dynamodb::types::{PutRequest, WriteRequest};
        use futures_util::StreamExt as _;
        let write = |items: &[Vec<(&str, String)>]| {
            let requests = items.iter().map(|item| {
                let item = item.iter();
                let item =
                    item.map(|(name, text)| ((*name).to_owned(), AttributeValue::S(text.clone())));
                let put = PutRequest::builder().set_item(Some(item.collect()));
                WriteRequest::builder()
                    .put_request(put.build().unwrap())
                    .build()
            });
            let write = self.client.batch_write_item();
            write.request_items(&self.name, requests.collect()).send()
        };
        let batches: Vec<_> = items.chunks(25).map(write).collect();
        let mut written = futures_util::stream::iter(batches).buffer_unordered(4);
        while let Some(written) = written.next().await {
            let unprocessed = written.unwrap().unprocessed_items.unwrap_or_default();
            assert!(unprocessed.is_empty());
        }
    }

    /// Changes a text attribute of an item.
    pub async fn set_text(&self, pk: &str, sk: &str, name: &str, text: &str) {
        let value = |text: &str| AttributeValue::S(text.to_owned());
        let update = self.client.update_item().table_name(&self.name);
        let update = update.key("PK", value(pk)).key("SK", value(sk));
        let update = update
            .update_expression("SET #name = :text")
            .expression_attribute_names("#name", name)
            .expression_attribute_values(":text", value(text));
        update.send().await.unwrap();
    }

    /// The names of the table's stream and of its first shard.
    pub async fn stream_and_shard(&self) -> (String, String) {
        let table = self.client.describe_table().table_name(&self.name);
        let table = table.send().await.unwrap().table.unwrap();
        let arn = table.latest_stream_arn.unwrap();
        let config = aws_sdk_dynamodbstreams::Config::builder()
            .behavior_version(aws_sdk_dynamodbstreams::config::BehaviorVersion::latest())
            .region(aws_sdk_dynamodbstreams::config::Region::new("us-east-1"))
            .credentials_provider(credentials())
            .endpoint_url(&self.url)
            .build();
        let streams = aws_sdk_dynamodbstreams::Client::from_conf(config);
        let described = streams.describe_stream().stream_arn(&arn).send().await;
        let description = described.unwrap().stream_description.unwrap();
        (arn, description.shards()[0].shard_id().unwrap().to_owned())
    }

    /// All items with a partition key, by sort key.
    pub async fn partition(&self, pk: &str) -> BTreeMap<String, HashMap<String, AttributeValue>> {
        let query = self.client.query().table_name(&self.name);
        let query = query
            .consistent_read(true)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(pk.to_owned()));
        let items = query.into_paginator().items().send();
        let items = items.collect::<Result<Vec<_>, _>>().await.unwrap();
        let by_sort_key = |item: HashMap<_, AttributeValue>| {
            let sk = item["SK"].as_s().unwrap().clone();
            (sk, item)
        };
        items.into_iter().map(by_sort_key).collect()
    }

    /// Puts an item.
    pub async fn put_item(&self, item: HashMap<String, AttributeValue>) {
        let put = self.client.put_item().table_name(&self.name);
        put.set_item(Some(item)).send().await.unwrap();
    }

    /// Deletes an item.
    pub async fn delete(&self, pk: &str, sk: &str) {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let delete = self.client.delete_item().table_name(&self.name);
        let delete = delete.key("PK", text(pk)).key("SK", text(sk));
        delete.send().await.unwrap();
    }

    /// Drops an index, and waits until it is gone.
    pub async fn drop_index(&self, name: &str) {
        use aws_sdk_dynamodb::types::{
            DeleteGlobalSecondaryIndexAction as Delete, GlobalSecondaryIndexUpdate,
        };
        let delete = Delete::builder().index_name(name).build().unwrap();
        let update = GlobalSecondaryIndexUpdate::builder().delete(delete).build();
        let table = self.client.update_table().table_name(&self.name);
        let table = table.global_secondary_index_updates(update);
        table.send().await.unwrap();
        let has_index = async || {
            let table = self.client.describe_table().table_name(&self.name);
            let table = table.send().await.unwrap().table.unwrap();
            let mut indexes = table.global_secondary_indexes().iter();
            indexes.any(|index| index.index_name() == Some(name))
        };
        while has_index().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Deletes the first change after a cursor from the log of changes.
    pub async fn expire_first_logged(&self, cursor: &str) {
        let (log, after) = cursor.split_once('-').unwrap();
        let number: u64 = after.parse::<u64>().unwrap() + 1;
        let pk = format!("CHANGELOG#{log}#{}", number / 1000);
        self.delete(&pk, &format!("{number:020}")).await;
    }

    /// How many items have sort keys, under a partition key, that begin like this.
    pub async fn count(&self, pk: &str, sk: &str) -> usize {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let query = self.client.query().table_name(&self.name);
        let query = query
            .key_condition_expression("PK = :pk AND begins_with(SK, :sk)")
            .expression_attribute_values(":pk", text(pk))
            .expression_attribute_values(":sk", text(sk));
        let items = query.into_paginator().items().send();
        items.collect::<Result<Vec<_>, _>>().await.unwrap().len()
    }

    /// A number attribute of an item.
    pub async fn number(&self, pk: &str, sk: &str, name: &str) -> Option<u64> {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let get = self.client.get_item().table_name(&self.name);
        let get = get.key("PK", text(pk)).key("SK", text(sk));
        let item = get.consistent_read(true).send().await.unwrap().item?;
        item.get(name)?.as_n().ok()?.parse().ok()
    }

    /// The attribute with the time at which items expire.
    pub async fn expiring_attribute(&self) -> Option<String> {
        let describe = self.client.describe_time_to_live().table_name(&self.name);
        let described = describe.send().await.unwrap();
        described.time_to_live_description?.attribute_name
    }

    /// The names of an item's attributes, sorted; `None` if there is no item.
    pub async fn attributes_of(&self, pk: &str, sk: &str) -> Option<Vec<String>> {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let get = self.client.get_item().table_name(&self.name);
        let get = get.key("PK", text(pk)).key("SK", text(sk));
        let item = get.consistent_read(true).send().await.unwrap().item?;
        let mut names: Vec<_> = item.into_keys().collect();
        names.sort();
        Some(names)
    }
}

fn credentials() -> aws_sdk_dynamodb::config::Credentials {
    aws_sdk_dynamodb::config::Credentials::new("embedded", "embedded", None, None, "test")
}

fn dynamodb_client(url: &str) -> aws_sdk_dynamodb::Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
        .region(aws_sdk_dynamodb::config::Region::new("us-east-1"))
        .credentials_provider(credentials())
        .endpoint_url(url)
        .build();
    aws_sdk_dynamodb::Client::from_conf(config)
}

/// The calls of the story, short enough for tests.
impl Replica {
    pub async fn create_user(&self, username: &str) -> Result<pb::User, Status> {
        let request = pb::CreateUserRequest {
            username: username.to_owned(),
            first_name: "First".to_owned(),
            last_name: "Last".to_owned(),
            ..pb::CreateUserRequest::default()
        };
        let reply = self.client.clone().create_user(request).await?;
        Ok(reply.into_inner().user.unwrap())
    }

    pub async fn get_user(&self, username: &str) -> Result<(pb::User, pb::Source), Status> {
        let request = pb::GetUserRequest {
            username: username.to_owned(),
            consistency: None,
        };
        let reply = self.client.clone().get_user(request).await?.into_inner();
        Ok((reply.user.clone().unwrap(), reply.source()))
    }

    pub async fn delete_user(&self, username: &str) -> Result<pb::User, Status> {
        let request = pb::DeleteUserRequest {
            username: username.to_owned(),
            ..pb::DeleteUserRequest::default()
        };
        let reply = self.client.clone().delete_user(request).await?;
        Ok(reply.into_inner().user.unwrap())
    }

    pub async fn create_organization(
        &self,
        name: &str,
        founder: &str,
    ) -> Result<pb::Organization, Status> {
        let request = pb::CreateOrganizationRequest {
            organization_name: name.to_owned(),
            founding_user: founder.to_owned(),
            ..pb::CreateOrganizationRequest::default()
        };
        let reply = self.client.clone().create_organization(request).await?;
        Ok(reply.into_inner().organization.unwrap())
    }

    pub async fn get_organization(
        &self,
        name: &str,
    ) -> Result<(pb::Organization, pb::Source), Status> {
        let request = pb::GetOrganizationRequest {
            organization_name: name.to_owned(),
            consistency: None,
        };
        let reply = self.client.clone().get_organization(request).await?;
        let reply = reply.into_inner();
        Ok((reply.organization.clone().unwrap(), reply.source()))
    }

    pub async fn add(
        &self,
        organization: &str,
        member: &str,
        role: pb::Role,
        adding_user: &str,
    ) -> Result<pb::Membership, Status> {
        let request = pb::AddUserToOrganizationRequest {
            organization_name: organization.to_owned(),
            member_username: member.to_owned(),
            role: role.into(),
            adding_user: adding_user.to_owned(),
            ..pb::AddUserToOrganizationRequest::default()
        };
        let reply = self
            .client
            .clone()
            .add_user_to_organization(request)
            .await?;
        Ok(reply.into_inner().membership.unwrap())
    }

    pub async fn get_membership(
        &self,
        organization: &str,
        member: &str,
    ) -> Result<(pb::Membership, pb::Source), Status> {
        let request = pb::GetMembershipRequest {
            organization_name: organization.to_owned(),
            member_username: member.to_owned(),
            consistency: None,
        };
        let reply = self.client.clone().get_membership(request).await?;
        let reply = reply.into_inner();
        Ok((reply.membership.clone().unwrap(), reply.source()))
    }

    pub async fn change_role(
        &self,
        organization: &str,
        member: &str,
        role: pb::Role,
        acting_user: &str,
    ) -> Result<pb::Membership, Status> {
        let request = pb::ChangeMemberRoleRequest {
            organization_name: organization.to_owned(),
            member_username: member.to_owned(),
            role: role.into(),
            acting_user: acting_user.to_owned(),
            ..pb::ChangeMemberRoleRequest::default()
        };
        let reply = self.client.clone().change_member_role(request).await?;
        Ok(reply.into_inner().membership.unwrap())
    }

    pub async fn remove(
        &self,
        organization: &str,
        member: &str,
        acting_user: &str,
    ) -> Result<pb::Membership, Status> {
        let request = pb::RemoveUserFromOrganizationRequest {
            organization_name: organization.to_owned(),
            member_username: member.to_owned(),
            acting_user: acting_user.to_owned(),
            ..pb::RemoveUserFromOrganizationRequest::default()
        };
        let mut client = self.client.clone();
        let reply = client.remove_user_from_organization(request).await?;
        Ok(reply.into_inner().membership.unwrap())
    }

    pub async fn check(
        &self,
        organization: &str,
        username: &str,
    ) -> Result<pb::CheckMembershipResponse, Status> {
        let request = pb::CheckMembershipRequest {
            organization_name: organization.to_owned(),
            username: username.to_owned(),
            ..pb::CheckMembershipRequest::default()
        };
        Ok(self
            .client
            .clone()
            .check_membership(request)
            .await?
            .into_inner())
    }

    /// The role that a check answers; `None` if not a member.
    pub async fn role_of(&self, organization: &str, username: &str) -> Option<pb::Role> {
        let reply = self.check(organization, username).await.unwrap();
        assert_eq!(reply.is_member, reply.role() != pb::Role::Unspecified);
        assert_eq!(reply.is_member, reply.satisfied);
        reply.is_member.then(|| reply.role())
    }

    /// Users `oliviaowner` and `membermichael`, and `olivia-org`, founded by
    /// `oliviaowner`.
    pub async fn found_olivia_org(&self) {
        self.create_user("oliviaowner").await.unwrap();
        self.create_user("membermichael").await.unwrap();
        self.create_organization("olivia-org", "oliviaowner")
            .await
            .unwrap();
    }

    /// As [`Self::found_olivia_org`], and `membermichael` is a Member.
    pub async fn found_olivia_org_with_michael(&self) {
        self.found_olivia_org().await;
        self.add(
            "olivia-org",
            "membermichael",
            pb::Role::Member,
            "oliviaowner",
        )
        .await
        .unwrap();
        self.settle().await;
    }
}

/// Asserts the code and the `google.rpc.ErrorInfo` reason of an error.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: tonic::Code,
    reason: &str,
) -> tonic_types::ErrorDetails {
    use tonic_types::StatusExt as _;
    let status = result.unwrap_err();
    let details = status.get_error_details();
    let info = details.error_info();
    assert_eq!(
        (status.code(), info.map(|info| info.reason.as_str())),
        (code, Some(reason)),
        "{status:?}"
    );
    assert_eq!(info.map(|info| info.domain.as_str()), Some("account.v1"));
    details
}
