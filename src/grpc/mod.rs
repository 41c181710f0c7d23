//! The gRPC handlers: each parses a request, calls a use case and renders the result. No
//! room below knows gRPC.

mod convert;
mod deadline;
mod health;
mod memory_budget;
mod methods;
mod middleware;
mod reflection;
mod share_limit;
mod status;
mod watch;
mod write_request;

use std::sync::Arc;

use tonic::{Request, Response, Status};

pub use deadline::{DEFAULT_DEADLINE, LongestCall};
pub use health::Readiness;
pub use methods::methods;
pub use middleware::{
    AuthLayer, ConcurrencyLimitLayer, FastPathLayer, HEAVY_CALL_CPU, MetricsLayer,
    with_error_details,
};
pub use reflection::{reflection_v1, reflection_v1alpha};
pub use status::{DOMAIN, Reason};
pub use watch::{WatchLimits, WatchStream};

use crate::{
    cache::MomentoClient,
    coherence::{Coherence, CoherenceSettings},
    domain::State,
    proto::account_v1::{
        self as pb,
        account_service_server::{self, AccountServiceServer},
    },
    service::{Accounts, Call, OrganizationToEdit, UserToEdit},
    store::DynamoDb,
};

use self::{
    memory_budget::{MemoryBudget, RecordCount, Requester},
    middleware::FlowKey,
    share_limit::ShareLimit,
    watch::Begin,
    write_request::RunningChange,
};

/// Largest request of a batch that is read, in bytes. The largest sensible one, 1000
/// checks of the longest names, has some 270 kB.
pub const MAX_BATCH_REQUEST_BYTES: usize = 1024 * 1024;
/// Largest other request that is read, in bytes. The largest sensible one, a user with
/// all labels there may be, has some 12 kB.
pub const MAX_REQUEST_BYTES: usize = 32 * 1024;
/// Largest sum of the records in an answer, in bytes. With what is around them, an
/// answer stays below the 4 MiB that clients take by default.
pub const MAX_ANSWER_BYTES: usize = 3840 * 1024;

/// WatchChanges streams of one replica.
const MAX_WATCHERS: usize = 100;
/// WatchChanges streams of one caller in a replica; of a connection, where callers
/// have no names.
const MAX_WATCHERS_PER_CALLER: usize = 25;

/// The settings of the service.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    /// The coherent cache.
    pub coherence: CoherenceSettings,
    /// Bounds of WatchChanges streams.
    pub watch: WatchLimits,
}

/// The gRPC service, with the one DynamoDB client and the one Momento client of the process.
/// Clones share them.
#[derive(Clone)]
pub struct AccountService {
    table: DynamoDb,
    cache: MomentoClient,
    coherence: Coherence,
    accounts: Accounts,
    watch: WatchLimits,
    watchers: Arc<ShareLimit<FlowKey>>,
    memory_budget: Arc<MemoryBudget>,
}

impl AccountService {
    /// Serves the accounts in `table`, cached in `cache`. Does no I/O.
    #[must_use]
    pub fn new(table: DynamoDb, cache: MomentoClient, settings: ServiceSettings) -> Self {
        let coherence = Coherence::new(&table, &cache, &settings.coherence);
        Self {
            accounts: Accounts::new(table.clone(), &coherence),
            coherence,
            table,
            cache,
            watch: settings.watch,
            watchers: ShareLimit::new(MAX_WATCHERS, MAX_WATCHERS_PER_CALLER),
            memory_budget: Arc::new(MemoryBudget::new()),
        }
    }

    /// The DynamoDB client.
    #[must_use]
    pub fn table(&self) -> &DynamoDb {
        &self.table
    }

    /// The Momento client.
    #[must_use]
    pub fn cache(&self) -> &MomentoClient {
        &self.cache
    }

    /// The coherent cache, for the loops that run beside calls.
    #[must_use]
    pub fn coherence(&self) -> &Coherence {
        &self.coherence
    }

    /// The service for a tonic server, with the limits of batches.
    #[must_use]
    pub fn into_server(self) -> AccountServiceServer<Self> {
        AccountServiceServer::new(self).max_decoding_message_size(MAX_BATCH_REQUEST_BYTES)
    }
}

impl AccountService {
    async fn edit_user(
        &self,
        user: UserToEdit,
        change: RunningChange,
        call: Call,
    ) -> Result<pb::User, Status> {
        let edit = self.accounts.edit_user(user, call);
        change.run(edit).await.map(|user| convert::user(&user))
    }

    async fn edit_organization(
        &self,
        organization: OrganizationToEdit,
        change: RunningChange,
        call: Call,
    ) -> Result<pb::Organization, Status> {
        let edit = self.accounts.edit_organization(organization, call);
        let organization = change.run(edit).await?;
        Ok(convert::organization(&organization))
    }
}

type RpcResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl account_service_server::AccountService for AccountService {
    async fn create_user(
        &self,
        request: Request<pb::CreateUserRequest>,
    ) -> RpcResult<pb::CreateUserResponse> {
        let (request, change, call) = write_request::open(request)?;
        let new = convert::new_user(&request)?;
        let user = change.run(self.accounts.create_user(new, call)).await?;
        Ok(Response::new(pb::CreateUserResponse {
            user: Some(convert::user(&user)),
        }))
    }

    async fn get_user(
        &self,
        request: Request<pb::GetUserRequest>,
    ) -> RpcResult<pb::GetUserResponse> {
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let username = convert::username("username", &request.username)?;
        let freshness = convert::freshness(request.consistency)?;
        let (user, source) = deadline
            .bound(self.accounts.get_user(username, freshness))
            .await?;
        Ok(Response::new(pb::GetUserResponse {
            user: Some(convert::user(&user)),
            source: convert::source(source).into(),
        }))
    }

    async fn lookup_user(
        &self,
        request: Request<pb::LookupUserRequest>,
    ) -> RpcResult<pb::LookupUserResponse> {
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let email = convert::wanted_email(&request.email)?;
        let freshness = convert::freshness(request.consistency)?;
        let (user, source) = deadline
            .bound(self.accounts.look_up_user(email, freshness))
            .await?;
        Ok(Response::new(pb::LookupUserResponse {
            user: Some(convert::user(&user)),
            source: convert::source(source).into(),
        }))
    }

    async fn batch_get_users(
        &self,
        request: Request<pb::BatchGetUsersRequest>,
    ) -> RpcResult<pb::BatchGetUsersResponse> {
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let names = convert::usernames(&request.usernames)?;
        let freshness = convert::freshness(request.consistency)?;
        let records = RecordCount::Profiles(names.len());
        let _reservation = self
            .memory_budget
            .reserve(records, &caller, deadline)
            .await?;
        let batch = deadline
            .bound(self.accounts.get_users(names, freshness))
            .await?;
        Ok(Response::new(pb::BatchGetUsersResponse {
            users: convert::answer(batch.found.iter().map(convert::user))?,
            not_found: batch.not_found.iter().map(ToString::to_string).collect(),
            source: convert::source(batch.source).into(),
        }))
    }

    async fn update_user(
        &self,
        request: Request<pb::UpdateUserRequest>,
    ) -> RpcResult<pb::UpdateUserResponse> {
        let (request, change, call) = write_request::open(request)?;
        let user = convert::user_to_update(&request)?;
        let user = Some(self.edit_user(user, change, call).await?);
        Ok(Response::new(pb::UpdateUserResponse { user }))
    }

    async fn suspend_user(
        &self,
        request: Request<pb::SuspendUserRequest>,
    ) -> RpcResult<pb::SuspendUserResponse> {
        let (request, change, call) = write_request::open(request)?;
        let user = convert::user_in_state(&request.username, &request.etag, State::Suspended)?;
        let user = Some(self.edit_user(user, change, call).await?);
        Ok(Response::new(pb::SuspendUserResponse { user }))
    }

    async fn resume_user(
        &self,
        request: Request<pb::ResumeUserRequest>,
    ) -> RpcResult<pb::ResumeUserResponse> {
        let (request, change, call) = write_request::open(request)?;
        let user = convert::user_in_state(&request.username, &request.etag, State::Active)?;
        let user = Some(self.edit_user(user, change, call).await?);
        Ok(Response::new(pb::ResumeUserResponse { user }))
    }

    async fn delete_user(
        &self,
        request: Request<pb::DeleteUserRequest>,
    ) -> RpcResult<pb::DeleteUserResponse> {
        let (request, change, call) = write_request::open(request)?;
        let user = convert::user_to_delete(&request)?;
        let user = change.run(self.accounts.delete_user(user, call)).await?;
        Ok(Response::new(pb::DeleteUserResponse {
            user: Some(convert::user(&user)),
        }))
    }

    async fn create_organization(
        &self,
        request: Request<pb::CreateOrganizationRequest>,
    ) -> RpcResult<pb::CreateOrganizationResponse> {
        let (request, change, call) = write_request::open(request)?;
        let new = convert::new_organization(&request)?;
        let organization = change
            .run(self.accounts.create_organization(new, call))
            .await?;
        Ok(Response::new(pb::CreateOrganizationResponse {
            organization: Some(convert::organization(&organization)),
        }))
    }

    async fn get_organization(
        &self,
        request: Request<pb::GetOrganizationRequest>,
    ) -> RpcResult<pb::GetOrganizationResponse> {
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let name = convert::organization_name("organization_name", &request.organization_name)?;
        let freshness = convert::freshness(request.consistency)?;
        let (organization, source) = deadline
            .bound(self.accounts.get_organization(name, freshness))
            .await?;
        Ok(Response::new(pb::GetOrganizationResponse {
            organization: Some(convert::organization(&organization)),
            source: convert::source(source).into(),
        }))
    }

    async fn batch_get_organizations(
        &self,
        request: Request<pb::BatchGetOrganizationsRequest>,
    ) -> RpcResult<pb::BatchGetOrganizationsResponse> {
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let names = convert::organization_names(&request.organization_names)?;
        let freshness = convert::freshness(request.consistency)?;
        let records = RecordCount::Profiles(names.len());
        let _reservation = self
            .memory_budget
            .reserve(records, &caller, deadline)
            .await?;
        let batch = deadline
            .bound(self.accounts.get_organizations(names, freshness))
            .await?;
        Ok(Response::new(pb::BatchGetOrganizationsResponse {
            organizations: convert::answer(batch.found.iter().map(convert::organization))?,
            not_found: batch.not_found.iter().map(ToString::to_string).collect(),
            source: convert::source(batch.source).into(),
        }))
    }

    async fn update_organization(
        &self,
        request: Request<pb::UpdateOrganizationRequest>,
    ) -> RpcResult<pb::UpdateOrganizationResponse> {
        let (request, change, call) = write_request::open(request)?;
        let organization = convert::organization_to_update(&request)?;
        let organization = Some(self.edit_organization(organization, change, call).await?);
        Ok(Response::new(pb::UpdateOrganizationResponse {
            organization,
        }))
    }

    async fn suspend_organization(
        &self,
        request: Request<pb::SuspendOrganizationRequest>,
    ) -> RpcResult<pb::SuspendOrganizationResponse> {
        let (request, change, call) = write_request::open(request)?;
        let organization = convert::organization_in_state(
            &request.organization_name,
            &request.etag,
            State::Suspended,
        )?;
        let organization = Some(self.edit_organization(organization, change, call).await?);
        Ok(Response::new(pb::SuspendOrganizationResponse {
            organization,
        }))
    }

    async fn resume_organization(
        &self,
        request: Request<pb::ResumeOrganizationRequest>,
    ) -> RpcResult<pb::ResumeOrganizationResponse> {
        let (request, change, call) = write_request::open(request)?;
        let organization = convert::organization_in_state(
            &request.organization_name,
            &request.etag,
            State::Active,
        )?;
        let organization = Some(self.edit_organization(organization, change, call).await?);
        Ok(Response::new(pb::ResumeOrganizationResponse {
            organization,
        }))
    }

    async fn transfer_ownership(
        &self,
        request: Request<pb::TransferOwnershipRequest>,
    ) -> RpcResult<pb::TransferOwnershipResponse> {
        let (request, change, call) = write_request::open(request)?;
        let ownership = convert::ownership_to_transfer(&request)?;
        let owners = change
            .run(self.accounts.transfer_ownership(ownership, call))
            .await?;
        Ok(Response::new(pb::TransferOwnershipResponse {
            new_owner: Some(convert::membership(&owners.new)),
            previous_owner: owners.previous.as_ref().map(convert::membership),
        }))
    }

    async fn delete_organization(
        &self,
        request: Request<pb::DeleteOrganizationRequest>,
    ) -> RpcResult<pb::DeleteOrganizationResponse> {
        let (request, change, call) = write_request::open(request)?;
        let organization = convert::organization_to_delete(&request)?;
        let organization = change
            .run(self.accounts.delete_organization(organization, call))
            .await?;
        Ok(Response::new(pb::DeleteOrganizationResponse {
            organization: Some(convert::organization(&organization)),
        }))
    }

    async fn add_user_to_organization(
        &self,
        request: Request<pb::AddUserToOrganizationRequest>,
    ) -> RpcResult<pb::AddUserToOrganizationResponse> {
        let (request, change, call) = write_request::open(request)?;
        let member = convert::member_to_add(&request)?;
        let membership = change.run(self.accounts.add_member(member, call)).await?;
        Ok(Response::new(pb::AddUserToOrganizationResponse {
            membership: Some(convert::membership(&membership)),
        }))
    }

    async fn get_membership(
        &self,
        request: Request<pb::GetMembershipRequest>,
    ) -> RpcResult<pb::GetMembershipResponse> {
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let (organization, member) =
            convert::membership_names(&request.organization_name, &request.member_username)?;
        let freshness = convert::freshness(request.consistency)?;
        let (membership, source) = deadline
            .bound(
                self.accounts
                    .get_membership(organization, member, freshness),
            )
            .await?;
        Ok(Response::new(pb::GetMembershipResponse {
            membership: Some(convert::membership(&membership)),
            source: convert::source(source).into(),
        }))
    }

    async fn change_member_role(
        &self,
        request: Request<pb::ChangeMemberRoleRequest>,
    ) -> RpcResult<pb::ChangeMemberRoleResponse> {
        let (request, change, call) = write_request::open(request)?;
        let role = convert::role_to_change(&request)?;
        let membership = change.run(self.accounts.change_role(role, call)).await?;
        Ok(Response::new(pb::ChangeMemberRoleResponse {
            membership: Some(convert::membership(&membership)),
        }))
    }

    async fn remove_user_from_organization(
        &self,
        request: Request<pb::RemoveUserFromOrganizationRequest>,
    ) -> RpcResult<pb::RemoveUserFromOrganizationResponse> {
        let (request, change, call) = write_request::open(request)?;
        let member = convert::member_to_remove(&request)?;
        let membership = change
            .run(self.accounts.remove_member(member, call))
            .await?;
        Ok(Response::new(pb::RemoveUserFromOrganizationResponse {
            membership: Some(convert::membership(&membership)),
        }))
    }

    async fn list_users(
        &self,
        request: Request<pb::ListUsersRequest>,
    ) -> RpcResult<pb::ListUsersResponse> {
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let page = convert::page(
            request.page_size,
            request.page_token,
            convert::MAX_PROFILES_PAGE,
        )?;
        let records = RecordCount::Profiles(page.size.into());
        let _reservation = self
            .memory_budget
            .reserve(records, &caller, deadline)
            .await?;
        let page = deadline.bound(self.accounts.list_users(page)).await?;
        Ok(Response::new(pb::ListUsersResponse {
            users: page.entries.iter().map(convert::user).collect(),
            next_page_token: page.next_token,
        }))
    }

    async fn list_organizations(
        &self,
        request: Request<pb::ListOrganizationsRequest>,
    ) -> RpcResult<pb::ListOrganizationsResponse> {
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let page = convert::page(
            request.page_size,
            request.page_token,
            convert::MAX_PROFILES_PAGE,
        )?;
        let records = RecordCount::Profiles(page.size.into());
        let _reservation = self
            .memory_budget
            .reserve(records, &caller, deadline)
            .await?;
        let page = deadline
            .bound(self.accounts.list_organizations(page))
            .await?;
        Ok(Response::new(pb::ListOrganizationsResponse {
            organizations: page.entries.iter().map(convert::organization).collect(),
            next_page_token: page.next_token,
        }))
    }

    async fn list_organization_members(
        &self,
        request: Request<pb::ListOrganizationMembersRequest>,
    ) -> RpcResult<pb::ListOrganizationMembersResponse> {
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let name = convert::organization_name("organization_name", &request.organization_name)?;
        let page = convert::page(
            request.page_size,
            request.page_token,
            convert::MAX_MEMBERSHIPS_PAGE,
        )?;
        let records = RecordCount::Memberships(page.size.into());
        let _reservation = self
            .memory_budget
            .reserve(records, &caller, deadline)
            .await?;
        let page = deadline
            .bound(self.accounts.list_members(name, page))
            .await?;
        Ok(Response::new(pb::ListOrganizationMembersResponse {
            memberships: page.entries.iter().map(convert::membership).collect(),
            next_page_token: page.next_token,
        }))
    }

    async fn list_user_organizations(
        &self,
        request: Request<pb::ListUserOrganizationsRequest>,
    ) -> RpcResult<pb::ListUserOrganizationsResponse> {
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let user = convert::username("username", &request.username)?;
        let page = convert::page(
            request.page_size,
            request.page_token,
            convert::MAX_MEMBERSHIPS_PAGE,
        )?;
        let records = RecordCount::Memberships(page.size.into());
        let _reservation = self
            .memory_budget
            .reserve(records, &caller, deadline)
            .await?;
        let page = deadline
            .bound(self.accounts.list_memberships(user, page))
            .await?;
        Ok(Response::new(pb::ListUserOrganizationsResponse {
            memberships: page.entries.iter().map(convert::membership).collect(),
            next_page_token: page.next_token,
        }))
    }

    type WatchChangesStream = WatchStream;

    async fn watch_changes(
        &self,
        request: Request<pb::WatchChangesRequest>,
    ) -> RpcResult<WatchStream> {
        let begin = Begin::of(request.extensions());
        let flow = middleware::flow_of(request.extensions());
        let (start, filter) = convert::watch(&request.into_inner())?;
        let place = self.watchers.try_acquire(flow);
        let place = place.ok_or_else(status::too_many_watchers)?;
        let watcher = self.accounts.watch(start, filter).await;
        let watcher = watcher.map_err(status::watch_failed)?;
        let stream = WatchStream::start(watcher, place, self.watch.clone(), begin);
        Ok(Response::new(stream))
    }

    async fn check_membership(
        &self,
        request: Request<pb::CheckMembershipRequest>,
    ) -> RpcResult<pb::CheckMembershipResponse> {
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let freshness = convert::freshness(request.consistency)?;
        let check = convert::check(
            "",
            &request.organization_name,
            &request.username,
            request.minimum_role,
        )?;
        let (result, source) = deadline
            .bound(self.accounts.check(check, freshness))
            .await?;
        let result = convert::check_result(result);
        Ok(Response::new(pb::CheckMembershipResponse {
            is_member: result.is_member,
            role: result.role,
            satisfied: result.satisfied,
            source: convert::source(source).into(),
        }))
    }

    async fn batch_check_memberships(
        &self,
        request: Request<pb::BatchCheckMembershipsRequest>,
    ) -> RpcResult<pb::BatchCheckMembershipsResponse> {
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let freshness = convert::freshness(request.consistency)?;
        let checks = convert::checks(&request.checks)?;
        let records = RecordCount::Memberships(checks.len());
        let _reservation = self
            .memory_budget
            .reserve(records, &caller, deadline)
            .await?;
        let (results, source) = deadline
            .bound(self.accounts.check_batch(&checks, freshness))
            .await?;
        Ok(Response::new(pb::BatchCheckMembershipsResponse {
            results: results.into_iter().map(convert::check_result).collect(),
            source: convert::source(source).into(),
        }))
    }
}
