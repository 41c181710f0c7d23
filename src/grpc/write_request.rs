//! The common parts of all changes: a deadline, an actor, a line in the audit log and, for a
//! request with a `request_id`, idempotency.

use futures_util::FutureExt as _;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Request, Status};

use super::{
    convert,
    deadline::{self, Deadline},
    middleware::SharedPermit,
    status::{self, Repetition},
};
use crate::{
    auth::{Caller, Name},
    domain::{self, Digest, OrganizationName, RequestId, ServiceName, Username},
    proto::account_v1 as pb,
    service::{Call, Error},
};

/// Target of the audit log's lines: see `docs/callers.md`.
const AUDIT: &str = "audit";

/// The request of a change.
pub(super) trait Mutation: Message + Clone {
    /// The RPC's name.
    const RPC: &'static str;

    /// The `request_id`. Empty: none.
    fn request_id(&self) -> &str;

    /// The actor.
    fn acting(&self) -> Acting<'_>;

    /// The changed organization and user, by name. Empty: none.
    fn resource(&self) -> [&str; 2];

    /// Whether the caller must be permitted to act on behalf of the platform, also if a user acts.
    fn requires_platform(&self) -> bool;

    /// Brings equivalent requests into one form.
    fn normalize(&mut self);
}

/// The actor of a request.
pub(super) enum Acting<'a> {
    /// A user.
    User(&'a str),
    /// The platform, in a request that could name a user.
    Platform,
    /// The message cannot name an actor: the policy grants or denies the method itself.
    Unnamed,
}

macro_rules! mutations {
    ($($rpc:literal $request:ident {
        acting: $acting:expr,
        resource: $resource:expr,
        $(requires_platform: $requires_platform:expr,)?
        $(normalize: $normalize:expr,)?
    })+) => {
        /// The RPCs that change something.
        #[cfg(test)]
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

            fn resource(&self) -> [&str; 2] {
                let resource: fn(&Self) -> [&str; 2] = $resource;
                resource(self)
            }

            fn requires_platform(&self) -> bool {
                $(
                    let requires_platform: fn(&Self) -> bool = $requires_platform;
                    if requires_platform(self) {
                        return true;
                    }
                )?
                false
            }

            fn normalize(&mut self) {
                self.request_id.make_ascii_lowercase();
                $(
                    let normalize: fn(&mut Self) = $normalize;
                    normalize(self);
                )?
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
                Some(Actor::AsPlatform(false)) | None => Acting::Unnamed,
            }
        }
    };
}

mutations! {
    "CreateUser" CreateUserRequest {
        acting: |_| Acting::Unnamed,
        resource: |it| ["", &it.username],
    }
    "UpdateUser" UpdateUserRequest {
        acting: |_| Acting::Unnamed,
        resource: |it| ["", it.user.as_ref().map_or("", |user| &user.username)],
        normalize: convert::normalize_user,
    }
    "SuspendUser" SuspendUserRequest {
        acting: |_| Acting::Unnamed,
        resource: |it| ["", &it.username],
    }
    "ResumeUser" ResumeUserRequest {
        acting: |_| Acting::Unnamed,
        resource: |it| ["", &it.username],
    }
    "DeleteUser" DeleteUserRequest {
        acting: |_| Acting::Unnamed,
        resource: |it| ["", &it.username],
    }
    "UndeleteUser" UndeleteUserRequest {
        acting: |_| Acting::Unnamed,
        resource: |it| ["", &it.username],
    }
    "EraseUser" EraseUserRequest {
        acting: |_| Acting::Unnamed,
        resource: |it| ["", &it.username],
    }
    "CreateOrganization" CreateOrganizationRequest {
        acting: |it| Acting::User(&it.founding_user),
        resource: |it| [&it.organization_name, ""],
        requires_platform: |it| !it.external_id.is_empty(),
    }
    "UpdateOrganization" UpdateOrganizationRequest {
        acting: actor!(pb::update_organization_request::Actor),
        resource: |it| {
            let organization = it.organization.as_ref();
            [organization.map_or("", |it| &it.organization_name), ""]
        },
        normalize: convert::normalize_organization,
    }
    "SuspendOrganization" SuspendOrganizationRequest {
        acting: |_| Acting::Unnamed,
        resource: |it| [&it.organization_name, ""],
    }
    "ResumeOrganization" ResumeOrganizationRequest {
        acting: |_| Acting::Unnamed,
        resource: |it| [&it.organization_name, ""],
    }
    "TransferOwnership" TransferOwnershipRequest {
        acting: actor!(pb::transfer_ownership_request::Actor),
        resource: |it| [&it.organization_name, &it.new_owner],
    }
    "DeleteOrganization" DeleteOrganizationRequest {
        acting: actor!(pb::delete_organization_request::Actor),
        resource: |it| [&it.organization_name, ""],
    }
    "UndeleteOrganization" UndeleteOrganizationRequest {
        acting: actor!(pb::undelete_organization_request::Actor),
        resource: |it| [&it.organization_name, ""],
    }
    "AddUserToOrganization" AddUserToOrganizationRequest {
        acting: |it| Acting::User(&it.adding_user),
        resource: |it| [&it.organization_name, &it.member_username],
    }
    "UpdateMembership" UpdateMembershipRequest {
        acting: |it| Acting::User(&it.acting_user),
        resource: |it| {
            let membership = it.membership.as_ref();
            membership.map_or(["", ""], |it| [&it.organization_name, &it.member_username])
        },
        normalize: convert::normalize_membership,
    }
    "ChangeMemberRole" ChangeMemberRoleRequest {
        acting: |it| Acting::User(&it.acting_user),
        resource: |it| [&it.organization_name, &it.member_username],
    }
    "RemoveUserFromOrganization" RemoveUserFromOrganizationRequest {
        acting: |it| Acting::User(&it.acting_user),
        resource: |it| [&it.organization_name, &it.member_username],
    }
}

/// Authorizes a change for its actor. Returns its message, and the call for the use case.
pub(super) fn open<M: Mutation>(request: Request<M>) -> Result<(M, RunningChange, Call), Status> {
    let deadline = deadline::of(&request);
    let (_, extensions, message) = request.into_parts();
    let caller = extensions.get::<Caller>().ok_or_else(status::no_caller)?;
    let audit = Audit::begin(&message, caller);
    let may_act = match message.acting() {
        Acting::User(username) => caller.may_act_for(username),
        Acting::Platform => caller.may_act_as_platform(),
        Acting::Unnamed => true,
    };
    if !may_act || message.requires_platform() && !caller.may_act_as_platform() {
        return Err(status::may_not_act(caller, M::RPC));
    }
    let permit = extensions.get::<SharedPermit>();
    let request = named_request(&message, caller)?;
    let deadline = deadline.with(match request {
        Some(_) => Repetition::Safe,
        None => Repetition::Unsafe,
    });
    let call = Call {
        caller: match &caller.name {
            Some(Name::Service(name)) => Some(ServiceName::new(name.clone())),
            Some(Name::Subject(_)) | None => None,
        },
        request,
        scope: caller.organizations().clone(),
        deadline: deadline.instant(),
        permit: permit.map(SharedPermit::hold),
    };
    Ok((message, RunningChange { deadline, audit }, call))
}

/// A running change.
#[derive(Debug)]
pub(super) struct RunningChange {
    deadline: Deadline,
    audit: Audit,
}

impl RunningChange {
    /// Waits for a use case until the deadline, and writes the line of the audit log.
    pub(super) fn run<T>(
        self,
        use_case: impl Future<Output = Result<T, Error>>,
    ) -> impl Future<Output = Result<T, Status>> {
        let Self { deadline, audit } = self;
        // The logged code if the client does not wait for the end.
        let mut line = Line {
            audit,
            code: Code::Cancelled,
        };
        deadline.bound(use_case).inspect(move |result| {
            line.end(result.as_ref().err().map_or(Code::Ok, Status::code));
        })
    }
}

/// The audit log's fields of a change. Users are named by the beginning of a digest.
#[derive(Debug)]
struct Audit {
    rpc: &'static str,
    caller: Option<Name>,
    acting_user: Option<Name>,
    organization: Option<OrganizationName>,
    user: Option<Name>,
}

impl Audit {
    fn begin<M: Mutation>(message: &M, caller: &Caller) -> Self {
        let user = |name: &str| {
            let name = Username::parse_existing(name).ok()?;
            Some(Name::Subject(name.as_str().into()))
        };
        let [organization, member] = message.resource();
        Self {
            rpc: M::RPC,
            caller: caller.name.clone(),
            acting_user: match message.acting() {
                Acting::User(name) => user(name),
                Acting::Platform | Acting::Unnamed => None,
            },
            organization: OrganizationName::parse_existing(organization).ok(),
            user: user(member),
        }
    }
}

/// A line of the audit log, written when this is dropped.
struct Line {
    audit: Audit,
    code: Code,
}

impl Line {
    fn end(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Self { audit, code } = self;
        tracing::info!(
            target: AUDIT,
            rpc = audit.rpc,
            caller = audit.caller.as_ref().map(display),
            acting_user = audit.acting_user.as_ref().map(display),
            organization = audit.organization.as_ref().map(OrganizationName::as_str),
            user = audit.user.as_ref().map(display),
            ?code,
            "change"
        );
    }
}

/// The request with its fingerprint: the digest of its normal form.
fn named_request<M: Mutation>(
    message: &M,
    caller: &Caller,
) -> Result<Option<domain::Request>, Status> {
    if message.request_id().is_empty() {
        return Ok(None);
    }
    let id = RequestId::parse(message.request_id())
        .map_err(|error| status::invalid_field("request_id", error.to_string()))?;
    let mut message = message.clone();
    message.normalize();
    let scope = caller.name.as_ref().map(|name| {
        let (kind, name) = match name {
            Name::Service(name) => ("service", name),
            Name::Subject(name) => ("user", name),
        };
        digest(&[kind.as_bytes(), &[0], name.as_bytes()])
    });
    Ok(Some(domain::Request {
        id,
        scope,
        // The encoding is canonical: fields in order, maps by their keys.
        fingerprint: digest(&[M::RPC.as_bytes(), &message.encode_to_vec()]),
    }))
}

fn digest(parts: &[&[u8]]) -> Digest {
    let mut sha256 = Sha256::new();
    for part in parts {
        sha256.update(part);
    }
    let digits = sha256.finalize();
    let digits = digits.iter().map(|byte| format!("{byte:02x}"));
    Digest::from_text(digits.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(mut request: pb::UpdateUserRequest) -> pb::UpdateUserRequest {
        request.normalize();
        request
    }

    #[test]
    fn equivalent_updates_have_one_normal_form() {
        let update = |paths: &[&str], state: i32| {
            let mask = prost_types::FieldMask {
                paths: paths.iter().map(ToString::to_string).collect(),
            };
            pb::UpdateUserRequest {
                user: Some(pb::User {
                    username: "olivia".to_owned(),
                    first_name: "Olivia".to_owned(),
                    email: "o@example.com".to_owned(),
                    state,
                    ..pb::User::default()
                }),
                update_mask: Some(mask),
                request_id: "9B2F1D0C-5A7E-4C58-8D0E-6F1A2B3C4D5E".to_owned(),
            }
        };
        let one = normal(update(&["first_name", "email"], 0));
        assert_eq!(one.request_id, "9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5e");
        let without_mask = pb::UpdateUserRequest {
            update_mask: None,
            ..update(&[], 0)
        };
        for same in [
            update(&["email", "first_name", "email"], 2),
            update(&[], 0),
            without_mask,
        ] {
            assert_eq!(normal(same), one);
        }
        for other in [update(&["email"], 0), update(&["*"], 0)] {
            assert_ne!(normal(other), one);
        }
    }
}
