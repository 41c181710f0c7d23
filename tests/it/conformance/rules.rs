//! The rules of `docs/permissions.md`, implemented apart from the service: the outcome of
//! each call, and the contents of the table afterwards.

use account_service::proto::account_v1::Role;

/// The relation of a person to the organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// A membership with this role.
    Member(Role),
    /// The same, with an end in the future.
    Expiring(Role),
    /// A membership as an Owner that has expired.
    Expired,
    /// A membership with this role of a deleted user who can be undeleted.
    Undeletable(Role),
    /// A user who is no member.
    Outsider,
    /// A user whose name belonged to an Owner who was deleted.
    Namesake,
    /// A name without a user.
    NoUser,
}

/// A kind of person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Person {
    pub relation: Relation,
    pub is_suspended: bool,
}

/// The state of the organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Organization {
    /// With another Owner besides the acting one.
    Active,
    /// With no other Owner whose role counts.
    WithOneOwner,
    Suspended,
    Deleted,
    /// Deleted, and can be undeleted.
    Undeletable,
    /// Deleted, and its name taken again by another user.
    TakenAgain,
}

pub const ORGANIZATIONS: [Organization; 6] = [
    Organization::Active,
    Organization::WithOneOwner,
    Organization::Suspended,
    Organization::Deleted,
    Organization::Undeletable,
    Organization::TakenAgain,
];
pub const ROLES: [Role; 3] = [Role::Owner, Role::Admin, Role::Member];

/// The organizations that the policy grants the calling service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Grant {
    Every,
    /// The organization, by a prefix of its name.
    ByName,
    /// The organization, by its labels.
    ByLabels,
    /// Other organizations.
    Others,
}

pub const GRANTS: [Grant; 4] = [Grant::Every, Grant::ByName, Grant::ByLabels, Grant::Others];

/// The operation of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Add(Role),
    ChangeRole(Role),
    Remove,
    Transfer,
    /// Changes the labels of a membership.
    Label,
    /// Sets the end of a membership.
    SetEnd,
    /// Removes the end of a membership.
    RemoveEnd,
    Update,
    Delete,
    Undelete,
}

/// The target of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Other(Person),
    /// The actor.
    Oneself,
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    NotGranted,
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
    let relations = ROLES.into_iter().map(Relation::Member).chain([
        Relation::Outsider,
        Relation::Namesake,
        Relation::NoUser,
    ]);
    let people = relations.flat_map(|relation| {
        [false, true].map(|is_suspended| Person {
            relation,
            is_suspended,
        })
    });
    let people =
        people.filter(|person| person.relation != Relation::NoUser || !person.is_suspended);
    let active = [
        Relation::Expiring(Role::Owner),
        Relation::Expiring(Role::Admin),
        Relation::Expired,
        Relation::Undeletable(Role::Owner),
        Relation::Undeletable(Role::Member),
    ];
    people.chain(active.map(|relation| Person {
        relation,
        is_suspended: false,
    }))
}

/// Whether the organization exists.
pub fn exists(organization: Organization) -> bool {
    !matches!(
        organization,
        Organization::Deleted | Organization::Undeletable
    )
}

/// Whether the name of the organization is taken.
pub fn is_taken(organization: Organization) -> bool {
    organization != Organization::Deleted
}

/// Whether the user exists.
pub fn is_user(person: Person) -> bool {
    !matches!(person.relation, Relation::NoUser | Relation::Undeletable(_))
}

/// Whether a grant includes the organization. A deleted organization has no labels, unless it can be
/// undeleted.
pub fn is_granted(grant: Grant, organization: Organization) -> bool {
    match grant {
        Grant::Every | Grant::ByName => true,
        Grant::ByLabels => is_taken(organization),
        Grant::Others => false,
    }
}

/// The role of the membership, whether it counts or not.
pub fn stored_role(organization: Organization, person: Person) -> Option<Role> {
    use Organization::{Active, Suspended, WithOneOwner};
    match person.relation {
        Relation::Member(role) | Relation::Expiring(role)
            if matches!(organization, Active | WithOneOwner | Suspended) =>
        {
            Some(role)
        }
        _ => None,
    }
}

/// The role in the table, also of a deleted user or organization that can be undeleted.
pub fn role_in_table(organization: Organization, person: Person) -> Option<Role> {
    let undeleted = match organization {
        Organization::Undeletable => Organization::Active,
        other => other,
    };
    let relation = match person.relation {
        Relation::Undeletable(role) => Relation::Member(role),
        other => other,
    };
    stored_role(undeleted, Person { relation, ..person })
}

/// Whether the actor is an Owner, or would be after an undeletion of the organization.
fn owns(organization: Organization, actor: Person) -> bool {
    match organization {
        Organization::Undeletable => role(Organization::Active, actor) == Some(Role::Owner),
        other => role(other, actor) == Some(Role::Owner),
    }
}

/// The role that counts.
pub fn role(organization: Organization, person: Person) -> Option<Role> {
    let counts = organization != Organization::Suspended && !person.is_suspended;
    stored_role(organization, person).filter(|_| counts)
}

/// The outcome of a call; `actor` is `None` for the platform.
pub fn outcome(
    grant: Grant,
    organization: Organization,
    actor: Option<Person>,
    operation: Operation,
    target: Target,
) -> Outcome {
    if is_granted(grant, organization) {
        granted_outcome(organization, actor, operation, target)
    } else {
        Outcome::NotGranted
    }
}

/// The outcome of a call by a service whose grant includes the organization.
fn granted_outcome(
    organization: Organization,
    actor: Option<Person>,
    operation: Operation,
    target: Target,
) -> Outcome {
    let person = match (target, actor) {
        (Target::Other(person), _) | (Target::Oneself, Some(person)) => person,
        (Target::Oneself, None) => unreachable!("the platform is no user"),
    };
    let is_self = target == Target::Oneself;
    let acting = actor.and_then(|actor| role(organization, actor));
    let owner = acting == Some(Role::Owner);
    let manager = owner || acting == Some(Role::Admin);
    let is_expiring = matches!(person.relation, Relation::Expiring(_));
    // The ends of the others are not beyond that of an actor: members without one outlast it.
    let actor_expires = actor.is_some_and(|actor| matches!(actor.relation, Relation::Expiring(_)));
    let outlasts = actor_expires && !is_expiring;
    let is_last = is_self && owner && !is_expiring && organization == Organization::WithOneOwner;
    let member = stored_role(organization, person);

    let owns = actor.is_none_or(|actor| owns(organization, actor));

    match operation {
        Operation::Update if actor.is_none() && !exists(organization) => {
            Outcome::OrganizationNotFound
        }
        Operation::Update if manager || actor.is_none() => Outcome::Done,
        Operation::Delete | Operation::Undelete if owns && !is_taken(organization) => {
            Outcome::OrganizationNotFound
        }
        Operation::Delete if owns => Outcome::Done,
        Operation::Undelete if owns && organization == Organization::Undeletable => Outcome::Done,
        Operation::Undelete if owns => Outcome::OrganizationExists,
        Operation::Add(_) | Operation::Transfer if actor_expires => Outcome::NotPermitted,
        Operation::Add(granted) if owner || (manager && granted != Role::Owner) => {
            match (person.relation, member) {
                (Relation::NoUser | Relation::Undeletable(_), _) => Outcome::UserNotFound,
                (_, Some(_)) => Outcome::MembershipExists,
                (_, None) => Outcome::Done,
            }
        }
        Operation::ChangeRole(granted) if owner || (manager && granted != Role::Owner) => {
            match member {
                None => Outcome::MembershipNotFound,
                Some(Role::Owner) if !owner => Outcome::NotPermitted,
                Some(Role::Owner) if is_last && granted != Role::Owner => Outcome::LastOwner,
                // A role with a lower number is higher.
                Some(role) if outlasts && (granted as i32) < role as i32 => Outcome::NotPermitted,
                Some(_) => Outcome::Done,
            }
        }
        Operation::Label | Operation::SetEnd | Operation::RemoveEnd if manager => match member {
            None => Outcome::MembershipNotFound,
            Some(Role::Owner) if !owner => Outcome::NotPermitted,
            Some(_) if is_self && operation == Operation::SetEnd => Outcome::NotPermitted,
            // The new end is beyond those of the actor and of the member.
            Some(_) if actor_expires && is_expiring && operation != Operation::Label => {
                Outcome::NotPermitted
            }
            Some(_) if is_self && is_expiring && operation == Operation::RemoveEnd => {
                Outcome::NotPermitted
            }
            Some(_) => Outcome::Done,
        },
        Operation::Remove if is_last => Outcome::LastOwner,
        Operation::Remove if is_self && acting.is_some() => Outcome::Done,
        Operation::Remove if manager => match role_in_table(organization, person) {
            None => Outcome::MembershipNotFound,
            Some(Role::Owner) if !owner => Outcome::NotPermitted,
            Some(_) => Outcome::Done,
        },
        Operation::Transfer if owner || actor.is_none() => match member {
            None if actor.is_some() => Outcome::MembershipNotFound,
            None if !exists(organization) => Outcome::OrganizationNotFound,
            None if !is_user(person) => Outcome::UserNotFound,
            Some(_) if person.is_suspended && actor.is_some() => Outcome::NewOwnerSuspended,
            None | Some(_) => Outcome::Done,
        },
        _ => Outcome::NotPermitted,
    }
}

/// The stored roles of the target and of the actor after a successful call; `None`: no
/// membership.
pub fn afterwards(
    organization: Organization,
    actor: Option<Person>,
    operation: Operation,
    target: Target,
) -> (Option<Role>, Option<Role>) {
    let before = |person| role_in_table(organization, person);
    let (of_target, of_actor) = match target {
        Target::Other(person) => (before(person), actor.and_then(before)),
        Target::Oneself => (actor.and_then(before), actor.and_then(before)),
    };
    let of_target = match operation {
        Operation::Add(role) | Operation::ChangeRole(role) => Some(role),
        Operation::Remove => None,
        Operation::Transfer => Some(Role::Owner),
        Operation::Label
        | Operation::SetEnd
        | Operation::RemoveEnd
        | Operation::Update
        | Operation::Delete
        | Operation::Undelete => of_target,
    };
    let of_actor = match (operation, target) {
        (_, Target::Oneself) => of_target,
        (Operation::Transfer, Target::Other(_)) if actor.is_some() => Some(Role::Admin),
        _ => of_actor,
    };
    (of_target, of_actor)
}
