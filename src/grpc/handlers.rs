//! The handlers: each parses a request, calls a use case and encodes the result.

use tonic::{Request, Response, Status};

use super::{
    AccountService, WatchResponses, convert,
    deadline::{self, Deadline},
    memory_budget::{RecordCount, Requester, Reservation},
    middleware, status,
    watch::Begin,
    write_request::{self, RunningChange},
};
use crate::{
    auth::Caller,
    domain::{OrganizationScope, State},
    proto::account_v1::{self as pb, account_service_server::AccountService as AccountRpc},
    service::{Call, Counts, Error, OrganizationToEdit, ProfileList, UserToEdit},
};

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

impl AccountService {
    /// Runs a use case within the memory budget. The memory of its records is reserved until the
    /// reservation is dropped.
    async fn reserve<T>(
        &self,
        records: RecordCount,
        caller: &Requester,
        deadline: Deadline,
        use_case: impl Future<Output = Result<T, Error>>,
    ) -> Result<(T, Reservation), Status> {
        let reservation = self
            .memory_budget
            .reserve(records, caller, deadline)
            .await?;
        Ok((deadline.bound(use_case).await?, reservation))
    }
}

/// The organizations that the caller of a read may read.
pub(super) fn scope_of<T>(request: &Request<T>) -> Result<OrganizationScope, Status> {
    let caller = request.extensions().get::<Caller>();
    let caller = caller.ok_or_else(status::no_caller)?;
    Ok(caller.organizations().clone())
}

type RpcResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl AccountRpc for AccountService {
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
        let identity = convert::user_identity(&request)?;
        let freshness = convert::freshness(request.consistency)?;
        let (user, source) = deadline
            .bound(self.accounts.look_up_user(identity, freshness))
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
        let use_case = self.accounts.get_users(names, freshness);
        let (batch, _reservation) = self.reserve(records, &caller, deadline, use_case).await?;
        Ok(Response::new(pb::BatchGetUsersResponse {
            users: convert::bounded(batch.found.iter().map(convert::user))?,
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
        let user = convert::user_in_state(
            &request.username,
            &request.etag,
            State::Suspended,
            request.unless_last_owner,
        )?;
        let user = Some(self.edit_user(user, change, call).await?);
        Ok(Response::new(pb::SuspendUserResponse { user }))
    }

    async fn resume_user(
        &self,
        request: Request<pb::ResumeUserRequest>,
    ) -> RpcResult<pb::ResumeUserResponse> {
        let (request, change, call) = write_request::open(request)?;
        let user = convert::user_in_state(&request.username, &request.etag, State::Active, false)?;
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

    async fn undelete_user(
        &self,
        request: Request<pb::UndeleteUserRequest>,
    ) -> RpcResult<pb::UndeleteUserResponse> {
        let (request, change, call) = write_request::open(request)?;
        let user = convert::user_to_undelete(&request)?;
        let user = change.run(self.accounts.undelete_user(user, call)).await?;
        Ok(Response::new(pb::UndeleteUserResponse {
            user: Some(convert::user(&user)),
        }))
    }

    async fn erase_user(
        &self,
        request: Request<pb::EraseUserRequest>,
    ) -> RpcResult<pb::EraseUserResponse> {
        let (request, change, call) = write_request::open(request)?;
        let user = convert::user_to_erase(&request)?;
        let erasure = change.run(self.accounts.erase_user(user, call)).await?;
        Ok(Response::new(pb::EraseUserResponse {
            erasure: Some(convert::erasure(&erasure)),
        }))
    }

    async fn get_erasure(
        &self,
        request: Request<pb::GetErasureRequest>,
    ) -> RpcResult<pb::GetErasureResponse> {
        let deadline = deadline::of(&request);
        let id = convert::erasure_id(&request.into_inner().erasure_id)?;
        let erasure = deadline.bound(self.accounts.get_erasure(id)).await?;
        Ok(Response::new(pb::GetErasureResponse {
            erasure: Some(convert::erasure(&erasure)),
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
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let name = convert::organization_name("organization_name", &request.organization_name)?;
        let freshness = convert::freshness(request.consistency)?;
        let (organization, source) = deadline
            .bound(self.accounts.get_organization(&scope, name, freshness))
            .await?;
        Ok(Response::new(pb::GetOrganizationResponse {
            organization: Some(convert::organization(&organization)),
            source: convert::source(source).into(),
        }))
    }

    async fn lookup_organization(
        &self,
        request: Request<pb::LookupOrganizationRequest>,
    ) -> RpcResult<pb::LookupOrganizationResponse> {
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let identity = convert::organization_identity(&request)?;
        let freshness = convert::freshness(request.consistency)?;
        let look_up = self
            .accounts
            .look_up_organization(&scope, identity, freshness);
        let (organization, source) = deadline.bound(look_up).await?;
        Ok(Response::new(pb::LookupOrganizationResponse {
            organization: Some(convert::organization(&organization)),
            source: convert::source(source).into(),
        }))
    }

    async fn batch_get_organizations(
        &self,
        request: Request<pb::BatchGetOrganizationsRequest>,
    ) -> RpcResult<pb::BatchGetOrganizationsResponse> {
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let names = convert::organization_names(&request.organization_names)?;
        let freshness = convert::freshness(request.consistency)?;
        let records = RecordCount::Profiles(names.len());
        let use_case = self.accounts.get_organizations(&scope, names, freshness);
        let (batch, _reservation) = self.reserve(records, &caller, deadline, use_case).await?;
        Ok(Response::new(pb::BatchGetOrganizationsResponse {
            organizations: convert::bounded(batch.found.iter().map(convert::organization))?,
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

    async fn undelete_organization(
        &self,
        request: Request<pb::UndeleteOrganizationRequest>,
    ) -> RpcResult<pb::UndeleteOrganizationResponse> {
        let (request, change, call) = write_request::open(request)?;
        let organization = convert::organization_to_undelete(&request)?;
        let undelete = self.accounts.undelete_organization(organization, call);
        let organization = change.run(undelete).await?;
        Ok(Response::new(pb::UndeleteOrganizationResponse {
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
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let (organization, member) =
            convert::membership_names(&request.organization_name, &request.member_username)?;
        let freshness = convert::freshness(request.consistency)?;
        let (membership, source) = deadline
            .bound(
                self.accounts
                    .get_membership(&scope, organization, member, freshness),
            )
            .await?;
        Ok(Response::new(pb::GetMembershipResponse {
            membership: Some(convert::membership(&membership)),
            source: convert::source(source).into(),
        }))
    }

    async fn update_membership(
        &self,
        request: Request<pb::UpdateMembershipRequest>,
    ) -> RpcResult<pb::UpdateMembershipResponse> {
        let (request, change, call) = write_request::open(request)?;
        let membership = convert::membership_to_update(&request)?;
        let membership = change
            .run(self.accounts.update_membership(membership, call))
            .await?;
        Ok(Response::new(pb::UpdateMembershipResponse {
            membership: Some(convert::membership(&membership)),
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
        let profiles = ProfileList {
            names: convert::name_filter(&request.filter, "username")?,
            is_ordered: convert::is_ordered(&request.order_by, "username")?,
            show_deleted: request.show_deleted,
        };
        let page = convert::page(
            request.page_size,
            request.page_token,
            convert::MAX_PROFILES_PAGE,
        )?;
        let records = RecordCount::Profiles(page.size.into());
        let use_case = self.accounts.list_users(&profiles, page);
        let (page, _reservation) = self.reserve(records, &caller, deadline, use_case).await?;
        Ok(Response::new(pb::ListUsersResponse {
            users: page.entries.iter().map(convert::user).collect(),
            next_page_token: page.next_token,
        }))
    }

    async fn list_organizations(
        &self,
        request: Request<pb::ListOrganizationsRequest>,
    ) -> RpcResult<pb::ListOrganizationsResponse> {
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let profiles = ProfileList {
            names: convert::name_filter(&request.filter, "organization_name")?,
            is_ordered: convert::is_ordered(&request.order_by, "organization_name")?,
            show_deleted: request.show_deleted,
        };
        let page = convert::page(
            request.page_size,
            request.page_token,
            convert::MAX_PROFILES_PAGE,
        )?;
        let records = RecordCount::Profiles(page.size.into());
        let use_case = self.accounts.list_organizations(&scope, &profiles, page);
        let (page, _reservation) = self.reserve(records, &caller, deadline, use_case).await?;
        Ok(Response::new(pb::ListOrganizationsResponse {
            organizations: page.entries.iter().map(convert::organization).collect(),
            next_page_token: page.next_token,
        }))
    }

    async fn list_organization_members(
        &self,
        request: Request<pb::ListOrganizationMembersRequest>,
    ) -> RpcResult<pb::ListOrganizationMembersResponse> {
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let name = convert::organization_name("organization_name", &request.organization_name)?;
        let filter = convert::membership_filter(&request.filter, "member_username")?;
        let page = convert::page(
            request.page_size,
            request.page_token,
            convert::MAX_MEMBERSHIPS_PAGE,
        )?;
        let records = RecordCount::Memberships(page.size.into());
        let use_case = self.accounts.list_members(&scope, name, &filter, page);
        let (page, _reservation) = self.reserve(records, &caller, deadline, use_case).await?;
        Ok(Response::new(pb::ListOrganizationMembersResponse {
            memberships: page.entries.iter().map(convert::membership).collect(),
            next_page_token: page.next_token,
        }))
    }

    async fn list_user_organizations(
        &self,
        request: Request<pb::ListUserOrganizationsRequest>,
    ) -> RpcResult<pb::ListUserOrganizationsResponse> {
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let user = convert::username("username", &request.username)?;
        let filter = convert::membership_filter(&request.filter, "organization_name")?;
        let page = convert::page(
            request.page_size,
            request.page_token,
            convert::MAX_MEMBERSHIPS_PAGE,
        )?;
        let records = RecordCount::Memberships(page.size.into());
        let only = request.last_owner_only;
        let use_case = self
            .accounts
            .list_memberships(&scope, user, &filter, only, page);
        let (page, _reservation) = self.reserve(records, &caller, deadline, use_case).await?;
        Ok(Response::new(pb::ListUserOrganizationsResponse {
            memberships: page.entries.iter().map(convert::membership).collect(),
            next_page_token: page.next_token,
        }))
    }

    async fn count_organization_members(
        &self,
        request: Request<pb::CountOrganizationMembersRequest>,
    ) -> RpcResult<pb::CountOrganizationMembersResponse> {
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let name = convert::organization_name("organization_name", &request.organization_name)?;
        let count = self.accounts.count_members(&scope, name);
        let Counts { counts, cursor } = deadline.bound(count).await?;
        Ok(Response::new(pb::CountOrganizationMembersResponse {
            owner_count: counts.owners,
            admin_count: counts.admins,
            member_count: counts.members,
            total_count: counts.total(),
            cursor: cursor.to_string(),
        }))
    }

    async fn count_user_organizations(
        &self,
        request: Request<pb::CountUserOrganizationsRequest>,
    ) -> RpcResult<pb::CountUserOrganizationsResponse> {
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let username = convert::username("username", &request.username)?;
        let count = self.accounts.count_organizations(username);
        let Counts { counts, cursor } = deadline.bound(count).await?;
        Ok(Response::new(pb::CountUserOrganizationsResponse {
            organization_count: counts.total(),
            cursor: cursor.to_string(),
        }))
    }

    type WatchChangesStream = WatchResponses;

    async fn watch_changes(
        &self,
        request: Request<pb::WatchChangesRequest>,
    ) -> RpcResult<WatchResponses> {
        let begin = Begin::of(request.extensions());
        let flow = middleware::flow_of(request.extensions());
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let (start, filter) = convert::watch(&request.into_inner(), scope)?;
        if let Some(organization) = &filter.organization {
            let granted = self.accounts.require_in_scope(&filter.scope, organization);
            deadline.bound(granted).await?;
        }
        let permit = self.watchers.try_acquire(flow);
        let permit = permit.ok_or_else(status::too_many_watchers)?;
        let watcher = self.accounts.watch(start, filter).await;
        let watcher = watcher.map_err(status::watch_failed)?;
        let stream = WatchResponses::start(watcher, permit, self.watch.clone(), begin);
        Ok(Response::new(stream))
    }

    async fn check_membership(
        &self,
        request: Request<pb::CheckMembershipRequest>,
    ) -> RpcResult<pb::CheckMembershipResponse> {
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let request = request.into_inner();
        let freshness = convert::freshness(request.consistency)?;
        let mut check = convert::check(
            "",
            &request.organization_name,
            &request.username,
            request.minimum_role,
        )?;
        check.with_labels = request.with_labels;
        let (result, source) = deadline
            .bound(self.accounts.check(&scope, check, freshness))
            .await?;
        Ok(Response::new(convert::check_response(&result, source)))
    }

    async fn batch_check_memberships(
        &self,
        request: Request<pb::BatchCheckMembershipsRequest>,
    ) -> RpcResult<pb::BatchCheckMembershipsResponse> {
        let scope = scope_of(&request)?;
        let deadline = deadline::of(&request);
        let caller = Requester::of(request.extensions());
        let request = request.into_inner();
        let freshness = convert::freshness(request.consistency)?;
        let checks = convert::checks(&request.checks)?;
        let records = RecordCount::Memberships(checks.len());
        let use_case = self.accounts.check_batch(&scope, &checks, freshness);
        let ((results, source), _reservation) =
            self.reserve(records, &caller, deadline, use_case).await?;
        Ok(Response::new(pb::BatchCheckMembershipsResponse {
            results: results.iter().map(convert::check_result).collect(),
            source: convert::source(source).into(),
        }))
    }
}
