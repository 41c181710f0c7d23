//! What all changes have in common: a deadline, somebody on whose behalf they are
//! made and, where the caller names the request, that it has its effect once.

use prost::Message;
use sha2::{Digest as _, Sha256};
use tonic::{Request, Status};

use super::{
    deadline::{self, Deadline, Repetition},
    fairness::Place,
    status,
};
use crate::{
    callers::Caller,
    domain::{self, Fingerprint, RequestId},
    proto::account_v1 as pb,
    service::{Call, Held},
};

/// A request that changes something.
pub(super) trait Mutation: Message {
    /// The RPC's name.
    const RPC: &'static str;

    /// The caller's name for the request; empty, if there is none.
    fn request_id(&self) -> &str;

    /// On whose behalf.
    fn acting(&self) -> Acting<'_>;
}

/// On whose behalf a request asks for something.
pub(super) enum Acting<'a> {
    /// A user.
    User(&'a str),
    /// The platform, where the request may also name a user.
    Platform,
    /// Nobody: who may call the method may do this.
    Nobody,
}

macro_rules! mutations {
    ($($rpc:literal $request:ident $acting:expr,)+) => {
        /// The RPCs that change something.
        pub(super) const RPCS: &[&str] = &[$($rpc),+];

        $(impl Mutation for pb::$request {
            const RPC: &'static str = $rpc;

            fn request_id(&self) -> &str {
                &self.request_id
            }

            fn acting(&self) -> Acting<'_> {
                let acting: fn(&Self) -> Acting<'_> = $acting;
                acting(self)
            }
        })+
    };
}

/// The same `oneof` in several messages, each with a type of its own.
macro_rules! actor {
    ($actor:path) => {
        |request| {
            use $actor as Actor;
            match &request.actor {
                Some(Actor::ActingUser(user)) => Acting::User(user),
                Some(Actor::AsPlatform(true)) => Acting::Platform,
                Some(Actor::AsPlatform(false)) | None => Acting::Nobody,
            }
        }
    };
}

mutations! {
    "CreateUser" CreateUserRequest |_| Acting::Nobody,
    "UpdateUser" UpdateUserRequest |_| Acting::Nobody,
    "SuspendUser" SuspendUserRequest |_| Acting::Nobody,
    "ResumeUser" ResumeUserRequest |_| Acting::Nobody,
    "DeleteUser" DeleteUserRequest |_| Acting::Nobody,
    "CreateOrganization" CreateOrganizationRequest |it| Acting::User(&it.founding_user),
    "UpdateOrganization" UpdateOrganizationRequest actor!(pb::update_organization_request::Actor),
    "SuspendOrganization" SuspendOrganizationRequest |_| Acting::Nobody,
    "ResumeOrganization" ResumeOrganizationRequest |_| Acting::Nobody,
    "TransferOwnership" TransferOwnershipRequest actor!(pb::transfer_ownership_request::Actor),
    "DeleteOrganization" DeleteOrganizationRequest actor!(pb::delete_organization_request::Actor),
    "AddUserToOrganization" AddUserToOrganizationRequest |it| Acting::User(&it.adding_user),
    "ChangeMemberRole" ChangeMemberRoleRequest |it| Acting::User(&it.acting_user),
    "RemoveUserFromOrganization" RemoveUserFromOrganizationRequest |it| Acting::User(&it.acting_user),
}

/// The message of a request that changes something, and what comes with it. The
/// caller may act for whom it names.
pub(super) fn open<M: Mutation>(request: Request<M>) -> Result<(M, Deadline, Call), Status> {
    let deadline = deadline::of(&request);
    let (_, extensions, message) = request.into_parts();
    let caller = extensions.get::<Caller>().ok_or_else(status::no_caller)?;
    let may_act = match message.acting() {
        Acting::User(username) => caller.may_act_for(username),
        Acting::Platform => caller.may_act_as_platform(),
        Acting::Nobody => true,
    };
    if !may_act {
        return Err(status::may_not_act(caller, M::RPC));
    }
    let place = extensions.get::<Place>();
    let request = named_request(&message)?;
    let deadline = deadline.with(match request {
        Some(_) => Repetition::Safe,
        None => Repetition::Unsafe,
    });
    let call = Call {
        request,
        deadline: deadline.instant(),
        place: place.map(|Place(pass)| -> Held { pass.clone() }),
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
