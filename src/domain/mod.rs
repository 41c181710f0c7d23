//! The account model: names, users, organizations, memberships, and who may do
//! what. Depends on the standard library only.

mod membership;
mod names;
mod organization;
mod record;
mod rules;
mod user;

pub use membership::{Membership, Role, UnknownRole};
pub use names::{
    EXISTING_NAME_MAX_LEN, NEW_NAME_MAX_LEN, NameError, OrganizationName, PERSON_NAME_MAX_BYTES,
    PersonName, Username,
};
pub use organization::Organization;
pub use record::{Key, Record, Stamp, Timestamp, Uid};
pub use rules::{effective_membership, may_add, may_change_role, may_remove};
pub use user::User;
