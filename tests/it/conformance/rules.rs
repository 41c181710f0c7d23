//! The rules of `docs/permissions.md`, written down once more and apart from the
//! service: what each call answers, and what the table holds afterwards.

use account_service::proto::account_v1::Role;

/// What binds a person to the organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bond {
    /// A membership with this role.
    Member(Role),
    /// A user, and no member.
    Outsider,
    /// A user whose name belonged to an Owner who was deleted.
    Namesake,
    /// No user.
    Nobody,
}

/// A kind of person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Person {
    pub bond: Bond,
    pub is_suspended: bool,
}

/// The state of the organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Organization {
    /// With an Owner beside each one who acts.
    Active,
    /// With no other Owner whose role counts.
    WithOneOwner,
    Suspended,
    Deleted,
    /// Deleted, and its name taken again by somebody else.
    TakenAgain,
}

pub const ORGANIZATIONS: [Organization; 5] = [
    Organization::Active,
    Organization::WithOneOwner,
    Organization::Suspended,
    Organization::Deleted,
    Organization::TakenAgain,
];
pub const ROLES: [Role; 3] = [Role::Owner, Role::Admin, Role::Member];

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Add(Role),
    ChangeRole(Role),
    Remove,
    Transfer,
    Update,
    Delete,
}

/// On whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Other(Person),
    /// The actor.
    Oneself,
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    NotPermitted,
    UserNotFound,
    MembershipNotFound,
    OrganizationNotFound,
    MembershipExists,
    OrganizationExists,
    UserExists,
    LastOwner,
    NewOwnerSuspended,
}

/// Every kind of person.
pub fn people() -> impl Iterator<Item = Person> {
    let bonds =
        ROLES
            .into_iter()
            .map(Bond::Member)
            .chain([Bond::Outsider, Bond::Namesake, Bond::Nobody]);
    bonds
        .flat_map(|bond| [false, true].map(|is_suspended| Person { bond, is_suspended }))
        .filter(|person| person.bond != Bond::Nobody || !person.is_suspended)
}

/// Whether there is an organization.
pub fn exists(organization: Organization) -> bool {
    organization != Organization::Deleted
}

/// The role of the membership that is there, whether it counts or not.
pub fn stored_role(organization: Organization, person: Person) -> Option<Role> {
    use Organization::{Active, Suspended, WithOneOwner};
    match person.bond {
        Bond::Member(role) if matches!(organization, Active | WithOneOwner | Suspended) => {
            Some(role)
        }
        _ => None,
    }
}

/// The role that counts.
pub fn role(organization: Organization, person: Person) -> Option<Role> {
    let counts = organization != Organization::Suspended && !person.is_suspended;
    stored_role(organization, person).filter(|_| counts)
}

/// What is answered; `actor` is `None` for the platform.
pub fn answer(
    organization: Organization,
    actor: Option<Person>,
    operation: Operation,
    target: Target,
) -> Answer {
    let person = match (target, actor) {
        (Target::Other(person), _) | (Target::Oneself, Some(person)) => person,
        (Target::Oneself, None) => unreachable!("the platform is nobody"),
    };
    let is_self = target == Target::Oneself;
    let acting = actor.and_then(|actor| role(organization, actor));
    let owner = acting == Some(Role::Owner);
    let manager = owner || acting == Some(Role::Admin);
    let is_last = is_self && owner && organization == Organization::WithOneOwner;
    let member = stored_role(organization, person);

    match operation {
        Operation::Update | Operation::Delete if actor.is_none() && !exists(organization) => {
            Answer::OrganizationNotFound
        }
        Operation::Update if manager || actor.is_none() => Answer::Done,
        Operation::Delete if owner || actor.is_none() => Answer::Done,
        Operation::Add(granted) if owner || (manager && granted != Role::Owner) => {
            match (person.bond, member) {
                (Bond::Nobody, _) => Answer::UserNotFound,
                (_, Some(_)) => Answer::MembershipExists,
                (_, None) => Answer::Done,
            }
        }
        Operation::ChangeRole(granted) if owner || (manager && granted != Role::Owner) => {
            match member {
                None => Answer::MembershipNotFound,
                Some(Role::Owner) if !owner => Answer::NotPermitted,
                Some(Role::Owner) if is_last && granted != Role::Owner => Answer::LastOwner,
                Some(_) => Answer::Done,
            }
        }
        Operation::Remove if is_last => Answer::LastOwner,
        Operation::Remove if is_self && acting.is_some() => Answer::Done,
        Operation::Remove if manager => match member {
            None => Answer::MembershipNotFound,
            Some(Role::Owner) if !owner => Answer::NotPermitted,
            Some(_) => Answer::Done,
        },
        Operation::Transfer if owner || actor.is_none() => match member {
            None if actor.is_some() => Answer::MembershipNotFound,
            None if !exists(organization) => Answer::OrganizationNotFound,
            None if person.bond == Bond::Nobody => Answer::UserNotFound,
            Some(_) if person.is_suspended && actor.is_some() => Answer::NewOwnerSuspended,
            None | Some(_) => Answer::Done,
        },
        _ => Answer::NotPermitted,
    }
}

/// The stored role of the target, and of the actor, after what was done; `None`:
/// no membership.
pub fn afterwards(
    organization: Organization,
    actor: Option<Person>,
    operation: Operation,
    target: Target,
) -> (Option<Role>, Option<Role>) {
    let before = |person| stored_role(organization, person);
    let (of_target, of_actor) = match target {
        Target::Other(person) => (before(person), actor.and_then(before)),
        Target::Oneself => (actor.and_then(before), actor.and_then(before)),
    };
    let of_target = match operation {
        Operation::Add(role) | Operation::ChangeRole(role) => Some(role),
        Operation::Remove => None,
        Operation::Transfer => Some(Role::Owner),
        Operation::Update | Operation::Delete => of_target,
    };
    let of_actor = match (operation, target) {
        (_, Target::Oneself) => of_target,
        (Operation::Transfer, Target::Other(_)) if actor.is_some() => Some(Role::Admin),
        _ => of_actor,
    };
    (of_target, of_actor)
}
