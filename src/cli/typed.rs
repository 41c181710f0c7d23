//! A client of the contract for commands that make many calls.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::{
    connection::{self, ConnectionError},
    table::printable,
};
use crate::{
    config::ConnectionSettings,
    proto::account_v1::{self as pb, account_service_client::AccountServiceClient},
};

/// Longest attempt of a call.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// Pauses before the next attempts, unless the server requests longer ones. Changes have a `request_id`, so that
/// they have their effect once.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_max_delay(Duration::from_secs(1))
    .with_max_times(4)
    .with_jitter();
/// Longest pause that a server may request.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The service rejects a call: its reason and message.
#[derive(Debug, thiserror::Error)]
#[error("{}", describe_status(.0))]
pub struct CallError(pub Box<Status>);

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self(Box::new(status))
    }
}

/// The reason and the message of a status, without characters that a terminal would obey.
pub fn describe_status(status: &Status) -> String {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    let reason = reason.unwrap_or_else(|| format!("{:?}", status.code()));
    printable(&format!("{reason}: {}", status.message()))
}

/// Makes attempts until one succeeds or fails for good. `status` is the status of a failed attempt.
///
/// # Errors
/// That of the last attempt.
pub async fn with_retries<T, E>(
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
    status: impl Fn(&E) -> Option<&Status>,
) -> Result<T, E> {
    let mut pauses = PAUSES.build();
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(failed) = status(&error) else {
            return Err(error);
        };
        let pause = match failed.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => pauses.next(),
            _ => None,
        };
        let Some(pause) = pause else {
            return Err(error);
        };
        let details = failed.get_error_details();
        let requested = details.retry_info().and_then(|info| info.retry_delay);
        tokio::time::sleep(pause.max(requested.unwrap_or_default().min(LONGEST_PAUSE))).await;
    }
}

/// The client. Each call has several attempts.
#[derive(Debug, Clone)]
pub struct Client {
    calls: AccountServiceClient<Channel>,
    settings: ConnectionSettings,
}

impl Client {
    /// Connects to the server.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub async fn connect(settings: &ConnectionSettings) -> Result<Self, ConnectionError> {
        connection::assert_secure(settings)?;
        Ok(Self {
            calls: AccountServiceClient::new(connection::connect(settings).await?),
            settings: settings.clone(),
        })
    }
}

macro_rules! calls {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        impl Client {
            $(
                /// The call of this name.
                ///
                /// # Errors
                /// The service rejects it.
                pub async fn $name(&self, request: &pb::$request) -> Result<pb::$response, CallError> {
                    let attempt = async || {
                        let request = connection::authorized(&self.settings, request.clone());
                        let request = request.map_err(|error| Status::unauthenticated(error.to_string()));
                        let mut request = request?;
                        request.set_timeout(DEADLINE);
                        let response = self.calls.clone().$name(request).await?;
                        Ok::<_, CallError>(response.into_inner())
                    };
                    with_retries(attempt, |error| Some(&*error.0)).await
                }
            )*
        }
    };
}

calls! {
    create_user(CreateUserRequest) -> CreateUserResponse;
    get_user(GetUserRequest) -> GetUserResponse;
    suspend_user(SuspendUserRequest) -> SuspendUserResponse;
    list_users(ListUsersRequest) -> ListUsersResponse;
    create_organization(CreateOrganizationRequest) -> CreateOrganizationResponse;
    get_organization(GetOrganizationRequest) -> GetOrganizationResponse;
    suspend_organization(SuspendOrganizationRequest) -> SuspendOrganizationResponse;
    list_organizations(ListOrganizationsRequest) -> ListOrganizationsResponse;
    add_user_to_organization(AddUserToOrganizationRequest) -> AddUserToOrganizationResponse;
    get_membership(GetMembershipRequest) -> GetMembershipResponse;
    update_membership(UpdateMembershipRequest) -> UpdateMembershipResponse;
    list_organization_members(ListOrganizationMembersRequest) -> ListOrganizationMembersResponse;
}
