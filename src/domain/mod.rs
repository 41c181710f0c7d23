//! The account model: names, users, organizations, memberships and rules. Depends on no other
//! module.

mod counts;
mod email;
mod erasure;
mod external_id;
mod labels;
mod membership;
mod name_match;
mod names;
mod organization;
mod organization_scope;
mod origin;
mod orphans;
mod record;
mod rules;
mod soft_deletion;
mod state;
mod unique;
mod user;

pub use self::orphans::Orphans;
pub use counts::{CountUpdate, MemberCounts};
pub use email::{EMAIL_MAX_LEN, Email};
pub use erasure::{
    ErasedUser, Erasure, ErasureId, ErasurePhase, Pseudonymization, REMAINDERS, Remainder,
};
pub use external_id::{EXTERNAL_ID_MAX_BYTES, ExternalId};
pub use labels::{LABEL_KEY_MAX_LEN, LabelError, Labels, MAX_LABELS};
pub use membership::{ExpireTime, Membership, Role, Standing};
pub use name_match::NameMatch;
pub use names::{
    EXISTING_NAME_MAX_BYTES, FREE_TEXT_MAX_BYTES, FreeText, NEW_NAME_MAX_LEN, NameError,
    OrganizationName, Username,
};
pub use organization::Organization;
pub use organization_scope::{InScope, OrganizationRule, OrganizationScope};
pub use origin::{Actor, Digest, Made, NoRequestId, Origin, Request, RequestId, ServiceName};
pub use record::{
    ChangeKind, Etag, Key, ProfileId, ProfileName, Record, RecordChange, Stamp, Timestamp,
    UID_MAX_BYTES, Uid,
};
pub use rules::{
    DELETES_ORGANIZATION, TRANSFERS_OWNERSHIP, UPDATES_ORGANIZATION, effective_membership, may_add,
    may_change_role, may_remove, may_update_membership, outlasts, standing_membership,
};
pub use soft_deletion::{MAX_UNDELETE_WINDOW, Purge, SoftDeletion, UndeleteWindow};
pub use state::State;
pub use unique::UniqueValue;
pub use user::User;
