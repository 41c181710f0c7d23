//! What all changes have in common: a deadline and, where the caller names the
//! request, that it has its effect once.

use prost::Message;
use sha2::{Digest as _, Sha256};
use tonic::{Request, Status};

use super::{
    deadline::{self, Deadline},
    status,
};
use crate::{
    domain::{self, Fingerprint, RequestId},
    proto::account_v1 as pb,
    service::Call,
};

/// A request that changes something.
pub(super) trait Mutation: Message {
    /// The RPC's name.
    const RPC: &'static str;

    /// The caller's name for the request; empty, if there is none.
    fn request_id(&self) -> &str;
}

macro_rules! mutations {
    ($($rpc:literal $request:ident,)+) => {
        $(impl Mutation for pb::$request {
            const RPC: &'static str = $rpc;

            fn request_id(&self) -> &str {
                &self.request_id
            }
        })+
    };
}

mutations! {
    "CreateUser" CreateUserRequest,
    "UpdateUser" UpdateUserRequest,
    "SuspendUser" SuspendUserRequest,
    "ResumeUser" ResumeUserRequest,
    "DeleteUser" DeleteUserRequest,
    "CreateOrganization" CreateOrganizationRequest,
    "UpdateOrganization" UpdateOrganizationRequest,
    "SuspendOrganization" SuspendOrganizationRequest,
    "ResumeOrganization" ResumeOrganizationRequest,
    "TransferOwnership" TransferOwnershipRequest,
    "DeleteOrganization" DeleteOrganizationRequest,
    "AddUserToOrganization" AddUserToOrganizationRequest,
    "ChangeMemberRole" ChangeMemberRoleRequest,
    "RemoveUserFromOrganization" RemoveUserFromOrganizationRequest,
}

/// The message of a request that changes something, and what comes with it.
pub(super) fn open<M: Mutation>(request: Request<M>) -> Result<(M, Deadline, Call), Status> {
    let deadline = deadline::of(request.metadata());
    let message = request.into_inner();
    let call = Call {
        request: named_request(&message)?,
        deadline: deadline.instant(),
    };
    Ok((message, deadline, call))
}

fn named_request<M: Mutation>(message: &M) -> Result<Option<domain::Request>, Status> {
    if message.request_id().is_empty() {
        return Ok(None);
    }
    let id = RequestId::parse(message.request_id())
        .map_err(|error| status::invalid_field("request_id", error.to_string()))?;
    // The encoding is canonical: fields in order, maps by their keys.
    let digest = Sha256::new()
        .chain_update(M::RPC)
        .chain_update(message.encode_to_vec())
        .finalize();
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    Ok(Some(domain::Request {
        id,
        fingerprint: Fingerprint::from_text(digits.collect()),
    }))
}
