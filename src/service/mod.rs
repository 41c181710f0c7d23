//! The use cases, over the coherent table, independent of proto, AWS and Momento. The records
//! that guard a write are read strongly, and are conditions of the write's transaction.

mod actor;
mod batch_get;
mod checks;
mod counts;
mod deletions;
mod erasures;
mod idempotency;
mod last_owner;
mod list_filter;
mod lists;
mod membership_changes;
mod membership_updates;
mod memberships;
mod organization_changes;
mod organizations;
mod other_owners;
mod ownership;
mod page_token;
mod purge;
mod read_set;
mod scope;
mod unique_values;
mod users;
mod watch;

use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

pub use self::batch_get::Batch;
pub use self::page_token::NoPageToken;
pub use self::watch::{
    ChangeBatch, ChangeFilter, Cursor, MAX_CHANGES, NoCursor, Start, WatchError, Watcher,
};
pub use checks::{Check, CheckResult};
pub use counts::Counts;
pub use deletions::{OrganizationToDelete, OrganizationToUndelete, UserToDelete, UserToUndelete};
pub use erasures::UserToErase;
pub use list_filter::MembershipFilter;
pub use lists::{Page, PageRequest, ProfileList};
pub use memberships::{MemberToAdd, MemberToRemove, MembershipToUpdate, RoleToChange};
pub use organizations::{NewOrganization, OrganizationEdit, OrganizationToEdit};
pub use ownership::{Owners, OwnershipToTransfer};
pub use unique_values::{OrganizationIdentity, UserIdentity};
pub use users::{NewUser, UserEdit, UserToEdit};

use self::{
    idempotency::{Once, Repeatable, StoredResult},
    page_token::PageTokens,
    scope::Scoped,
    watch::ChangeLog,
};
use crate::{
    coherence::{Change, Coherence, ReadPath, WriteError, WritePath},
    domain::{
        Actor, ErasureId, Etag, Key, OrganizationName, OrganizationScope, Origin, Record, Request,
        ServiceName, Stamp, Uid, Username,
    },
    store::{self, DynamoDb},
};

/// Most memberships that a batch or a list reads at once, with their users and organizations. Each of
/// these three records has up to 12 KiB.
pub const MEMBERSHIPS_AT_ONCE: u16 = 100;

/// The use cases of the account service, independent of the protocol.
#[derive(Clone)]
pub struct Accounts {
    table: DynamoDb,
    reads: Arc<ReadPath>,
    writes: Arc<WritePath>,
    change_log: Arc<ChangeLog>,
    page_tokens: Arc<PageTokens>,
}

/// The call of a change.
#[derive(Debug, Clone)]
pub struct Call {
    /// The calling service. `None`: callers have no names, or a user called.
    pub caller: Option<ServiceName>,
    /// The request, if it has a `request_id`.
    pub request: Option<Request>,
    /// The organizations that the caller may change.
    pub scope: OrganizationScope,
    /// The deadline.
    pub deadline: Instant,
    /// The permit of the call, which the change holds until it has ended.
    pub permit: Option<HeldPermit>,
}

/// A refusal by a rule of the account model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The user name is taken.
    UserExists(Username),
    /// The organization's name is taken.
    OrganizationExists(OrganizationName),
    /// The user is a member already.
    MembershipExists(OrganizationName, Username),
    /// Another user has the e-mail address.
    EmailExists,
    /// No user has the e-mail address.
    EmailNotFound,
    /// Another user or organization has the external id.
    ExternalIdExists,
    /// No user or organization has the external id.
    ExternalIdNotFound,
    /// No user or organization has the uid.
    UidNotFound,
    /// There is no such erasure.
    ErasureNotFound(ErasureId),
    /// Not all memberships of the user or the organization are counted.
    CountIncomplete,
    /// A field of a user has an invalid value: its name, and the reason.
    InvalidUser(&'static str, String),
    /// The same for an organization.
    InvalidOrganization(&'static str, String),
    /// A field of a membership has an invalid value: its path in the request, and the reason.
    InvalidMembership(&'static str, String),
    /// There is no such user.
    UserNotFound(Username),
    /// There is no such organization.
    OrganizationNotFound(OrganizationName),
    /// The user is not a member.
    MembershipNotFound(OrganizationName, Username),
    /// The caller may neither read nor change this organization.
    OrganizationNotGranted(OrganizationName),
    /// The acting user is not permitted. It reveals nothing.
    NotPermitted,
    /// These organizations would be left without an Owner: some of them, at least one.
    LastOwner(Vec<OrganizationName>),
    /// The user is an Owner of more organizations than this.
    TooManyOrganizations(usize),
    /// The new Owner is suspended.
    NewOwnerSuspended(Username),
    /// The record has another version than the etag.
    EtagMismatch,
    /// Another request has the same id.
    RequestIdReused,
    /// The page token is not of this list.
    NoPageToken,
}

/// Reason why a use case failed.
pub type Error = WriteError<Refusal>;

pub use crate::coherence::{Freshness, HeldPermit, Source};

impl Accounts {
    /// Serves the accounts of a table. Does no I/O.
    #[must_use]
    pub fn new(table: DynamoDb, coherence: &Coherence) -> Self {
        Self {
            reads: coherence.reads.clone(),
            writes: coherence.writes.clone(),
            change_log: Arc::new(ChangeLog::new(table.clone())),
            page_tokens: Arc::new(PageTokens::new(table.clone())),
            table,
        }
    }

    /// Reads one record.
    async fn get<T>(
        &self,
        key: Key,
        from_record: impl FnOnce(Record) -> Option<T>,
        freshness: Freshness,
    ) -> Result<Option<(T, Source)>, Error> {
        let result = self.reads.read(&[key], freshness).await;
        let result = result.map_err(store_failed)?;
        let source = result.source;
        let record = result.into_records().flatten().next();
        Ok(record.and_then(from_record).map(|found| (found, source)))
    }

    async fn apply<C>(&self, change: C, actor: Actor, call: Call) -> Result<C::Output, Error>
    where
        C: Repeatable + Change<Refusal = Refusal, Output: StoredResult + Sync>,
    {
        let Call {
            caller,
            request,
            scope,
            deadline,
            permit,
        } = call;
        let origin = Origin {
            actor,
            caller,
            request_id: request.as_ref().map(|request| request.id.clone()),
        };
        match request {
            None => {
                let change = Scoped { change, scope };
                self.writes.apply(change, origin, deadline, permit).await
            }
            Some(request) => {
                let change = Once::new(change, request);
                let change = Scoped { change, scope };
                self.writes.apply(change, origin, deadline, permit).await
            }
        }
    }
}

fn store_failed(error: store::Error) -> Error {
    Error::Store(error)
}

/// Whether a record has the version of the etag.
fn is_version(etag: Option<&Etag>, stamp: &Stamp) -> bool {
    etag.is_none_or(|etag| *etag == stamp.etag())
}

fn new_uid() -> Option<Uid> {
    Uid::from_text(&Uuid::new_v4().to_string())
}
