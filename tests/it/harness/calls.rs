//! Short methods of `Replica` for common calls.

use std::time::{Duration, SystemTime};

use account_service::proto::account_v1 as pb;
use tonic::Status;

use super::Replica;

/// The consistency of a read whose response may be this old.
pub fn no_older_than(staleness: Duration) -> pb::ReadConsistency {
    let staleness = staleness.try_into().unwrap();
    pb::ReadConsistency {
        requirement: Some(pb::read_consistency::Requirement::MaxStaleness(staleness)),
    }
}

/// The time after this span.
pub fn from_now(span: Duration) -> prost_types::Timestamp {
    (SystemTime::now() + span).into()
}

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

    /// Deletes an organization as the platform.
    pub async fn delete_organization(&self, name: &str) {
        let request = pb::DeleteOrganizationRequest {
            organization_name: name.to_owned(),
            actor: Some(pb::delete_organization_request::Actor::AsPlatform(true)),
            ..pb::DeleteOrganizationRequest::default()
        };
        let mut client = self.client.clone();
        client.delete_organization(request).await.unwrap();
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
        self.add_until(organization, member, role, adding_user, None)
            .await
    }

    /// Adds a member whose membership ends at a time, or does not end.
    pub async fn add_until(
        &self,
        organization: &str,
        member: &str,
        role: pb::Role,
        adding_user: &str,
        expire_time: Option<prost_types::Timestamp>,
    ) -> Result<pb::Membership, Status> {
        let request = pb::AddUserToOrganizationRequest {
            organization_name: organization.to_owned(),
            member_username: member.to_owned(),
            role: role.into(),
            adding_user: adding_user.to_owned(),
            expire_time,
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

    /// Changes the fields in the mask.
    pub async fn update_membership(
        &self,
        organization: &str,
        member: &str,
        update: pb::Membership,
        mask: &[&str],
        acting_user: &str,
    ) -> Result<pb::Membership, Status> {
        let request = pb::UpdateMembershipRequest {
            membership: Some(pb::Membership {
                organization_name: organization.to_owned(),
                member_username: member.to_owned(),
                ..update
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: mask.iter().map(ToString::to_string).collect(),
            }),
            acting_user: acting_user.to_owned(),
            ..pb::UpdateMembershipRequest::default()
        };
        let reply = self.client.clone().update_membership(request).await?;
        Ok(reply.into_inner().membership.unwrap())
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

    /// Transfers ownership as this user, or as the platform if it is `None`.
    pub async fn transfer(
        &self,
        organization: &str,
        new_owner: &str,
        acting_user: Option<&str>,
    ) -> Result<pb::TransferOwnershipResponse, Status> {
        use pb::transfer_ownership_request::Actor;
        let actor = acting_user.map(|name| Actor::ActingUser(name.to_owned()));
        let request = pb::TransferOwnershipRequest {
            organization_name: organization.to_owned(),
            new_owner: new_owner.to_owned(),
            actor: Some(actor.unwrap_or(Actor::AsPlatform(true))),
            ..pb::TransferOwnershipRequest::default()
        };
        let reply = self.client.clone().transfer_ownership(request).await?;
        Ok(reply.into_inner())
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

    pub async fn get_users(&self, names: &[impl AsRef<str>]) -> pb::BatchGetUsersResponse {
        let request = pb::BatchGetUsersRequest {
            usernames: names.iter().map(|name| name.as_ref().to_owned()).collect(),
            consistency: None,
        };
        let reply = self.client.clone().batch_get_users(request).await;
        reply.unwrap().into_inner()
    }

    /// The role that a check returns; `None` if the user is not a member.
    pub async fn role_of(&self, organization: &str, username: &str) -> Option<pb::Role> {
        let reply = self.check(organization, username).await.unwrap();
        assert_eq!(reply.is_member, reply.role() != pb::Role::Unspecified);
        assert_eq!(reply.is_member, reply.satisfied);
        reply.is_member.then(|| reply.role())
    }

    /// Creates users `oliviaowner` and `membermichael`, and `olivia-org`, founded by
    /// `oliviaowner`.
    pub async fn found_olivia_org(&self) {
        self.create_user("oliviaowner").await.unwrap();
        self.create_user("membermichael").await.unwrap();
        self.create_organization("olivia-org", "oliviaowner")
            .await
            .unwrap();
    }

    /// As [`Self::found_olivia_org`], and adds `membermichael` as a Member.
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
