//! The use cases, over the coherent table. Knows no proto, AWS or Momento. What
//! guards a write is read strongly and repeated as a condition of the write's
//! transaction.

mod batch_get;
mod checks;
mod idempotency;
mod lists;
mod memberships;
mod organizations;
mod ownership;
mod page_token;
mod read_set;
mod users;
mod watch;

use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

pub use self::batch_get::Batch;
pub use self::page_token::NoPageToken;
pub use self::watch::{
    ChangeFilter, Changed, Changes, Cursor, MAX_CHANGES, NoCursor, Start, WatchError, Watcher,
};
pub use checks::{Check, CheckResult};
pub use lists::{Listings, Page, PageRequest};
pub use memberships::{MemberToAdd, MemberToRemove, RoleToChange};
pub use organizations::{
    NewOrganization, OrganizationEdit, OrganizationToDelete, OrganizationToEdit,
};
pub use ownership::{Owners, OwnershipToTransfer};
pub use users::{NewUser, UserEdit, UserToDelete, UserToEdit};

use self::idempotency::{Once, Outcome, Repeatable};
use crate::{
    coherence::{Change, Coherence, WriteError},
    domain::{Actor, Etag, OrganizationName, Origin, Request, ServiceName, Stamp, Uid, Username},
    store,
};

/// The account service, whatever the protocol it is served over.
#[derive(Clone)]
pub struct Accounts {
    coherence: Coherence,
    changes: Arc<Changes>,
    listings: Arc<Listings>,
}

/// What comes with every change.
#[derive(Debug, Clone)]
pub struct Call {
    /// The service that called; `None`: callers have no names, or a user called.
    pub caller: Option<ServiceName>,
    /// The request, if it is to have its effect once, however often it is sent.
    pub request: Option<Request>,
    /// When it has to be answered.
    pub deadline: Instant,
    /// The permit of the call, which the change holds until it has ended.
    pub permit: Option<HeldPermit>,
}

/// A rule of the account model stands against what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The user's name is taken.
    UserExists(Username),
    /// The organization's name is taken.
    OrganizationExists(OrganizationName),
    /// The user is a member already.
    MembershipExists(OrganizationName, Username),
    /// Another user has the e-mail address.
    EmailExists,
    /// No user has the e-mail address.
    EmailNotFound,
    /// The field of a user cannot be changed like this, and why not.
    InvalidUser(&'static str, String),
    /// The same for an organization.
    InvalidOrganization(&'static str, String),
    /// There is no such user.
    UserNotFound(Username),
    /// There is no such organization.
    OrganizationNotFound(OrganizationName),
    /// The user is not a member.
    MembershipNotFound(OrganizationName, Username),
    /// The acting user may not do this. Says nothing of what exists.
    NotPermitted,
    /// The organization would be left without an Owner.
    LastOwner(OrganizationName),
    /// The user who was to become Owner is suspended.
    NewOwnerSuspended(Username),
    /// The record is of another version than the one that was to be changed.
    EtagMismatch,
    /// Another request has the same name.
    RequestIdReused,
    /// The page token is none of this list.
    NoPageToken,
}

/// Why a use case did not succeed.
pub type Error = WriteError<Refusal>;

/// An answer to a read, with where it came from.
pub use crate::coherence::{Freshness, HeldPermit, Source};

impl Accounts {
    /// Serves the accounts of a table.
    #[must_use]
    pub fn new(coherence: Coherence, changes: Changes, listings: Listings) -> Self {
        Self {
            coherence,
            changes: Arc::new(changes),
            listings: Arc::new(listings),
        }
    }

    /// Waits until no write, fill or repair is under way.
    pub async fn drain(&self) {
        self.coherence.drain().await;
    }

    async fn apply<C>(&self, change: C, actor: Actor, call: Call) -> Result<C::Output, Error>
    where
        C: Repeatable + Change<Refusal = Refusal, Output: Outcome + Sync>,
    {
        let Call {
            caller,
            request,
            deadline,
            permit,
        } = call;
        let origin = Origin {
            actor,
            caller,
            request_id: request.as_ref().map(|request| request.id.clone()),
        };
        match request {
            None => self.coherence.apply(change, origin, deadline, permit).await,
            Some(request) => {
                let once = Once::new(change, request);
                self.coherence.apply(once, origin, deadline, permit).await
            }
        }
    }
}

fn store_failed(error: store::Error) -> Error {
    Error::Store(error)
}

/// Whether a record is of the version that is to be changed.
fn is_version(etag: Option<&Etag>, stamp: &Stamp) -> bool {
    etag.is_none_or(|etag| *etag == stamp.etag())
}

fn new_uid() -> Option<Uid> {
    Uid::from_text(&Uuid::new_v4().to_string())
}
