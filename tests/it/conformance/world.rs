//! An organization in one state, with every kind of member and outsider, created by the
//! service alone.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use account_service::proto::account_v1::{self as pb, Role};
use aws_sdk_dynamodb::types::AttributeValue;
use tokio::time::sleep;

use super::rules::{ORGANIZATIONS, Organization, Person, Relation, Target, people};
use crate::harness::{Replica, Table, from_now};

/// Items by sort key.
pub type Items = BTreeMap<String, HashMap<String, AttributeValue>>;

/// The items of an organization and of its members in the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub organization: Items,
    pub members: Items,
}

pub struct World {
    pub state: Organization,
    pub organization: String,
    /// The end of memberships that expire after the calls.
    end: prost_types::Timestamp,
}

/// The life of memberships that expire before the calls.
const SHORT: Duration = Duration::from_secs(2);

/// The time for which deletions can be undone.
pub const UNDELETE_WINDOW: prost_types::Duration = prost_types::Duration {
    seconds: 24 * 3600,
    nanos: 0,
};

/// The label of the organization that grants by labels match.
pub const LABEL: (&str, &str) = ("region", "eu");

/// Most attempts to add a member before its membership expires.
const MAX_ATTEMPTS: usize = 20;

/// Waits until the memberships with a short life have expired.
pub async fn until_expired() {
    sleep(SHORT + Duration::from_secs(1)).await;
}

/// One of two persons of a kind: the actor or the target.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    Actor,
    Target,
}

impl World {
    fn new(state: Organization) -> Self {
        let number = ORGANIZATIONS.iter().position(|it| *it == state).unwrap();
        Self {
            state,
            organization: format!("org-{number}"),
            end: from_now(Duration::from_secs(3600)),
        }
    }

    /// The name of a person of this kind.
    pub fn name(&self, part: Part, person: Person) -> String {
        let Person {
            relation,
            is_suspended,
        } = person;
        let kind = match relation {
            Relation::Member(role) => format!("{role:?}"),
            Relation::Expiring(role) => format!("expiring-{role:?}"),
            Relation::Undeletable(role) => format!("undeletable-{role:?}"),
            _ => format!("{relation:?}"),
        };
        let state = if is_suspended { "suspended" } else { "active" };
        format!("{}.{part:?}.{kind}.{state}", self.organization).to_lowercase()
    }

    pub fn target_name(&self, actor: Option<Person>, target: Target) -> String {
        match (target, actor) {
            (Target::Other(person), _) => self.name(Part::Target, person),
            (Target::Oneself, Some(actor)) => self.name(Part::Actor, actor),
            (Target::Oneself, None) => unreachable!("the platform is no user"),
        }
    }

    /// All targets, except the actor.
    pub fn others(&self) -> impl Iterator<Item = Person> {
        people().filter(|person| self.is_there(Part::Target, *person))
    }

    fn is_there(&self, part: Part, person: Person) -> bool {
        let is_owner = person.relation == Relation::Member(Role::Owner) && !person.is_suspended;
        let is_another_owner = is_owner && matches!(part, Part::Target);
        !(is_another_owner && self.state == Organization::WithOneOwner)
    }

    /// Creates the world.
    pub async fn make(state: Organization, service: &Replica) -> Self {
        let world = Self::new(state);
        let founder = Person {
            relation: Relation::Member(Role::Owner),
            is_suspended: false,
        };
        let founder = world.name(Part::Actor, founder);
        let organization = &world.organization;
        service.create_user(&founder).await.unwrap();
        world.found(service, &founder).await;
        for part in [Part::Actor, Part::Target] {
            for person in people().filter(|person| world.is_there(part, *person)) {
                let name = world.name(part, person);
                if name != founder {
                    world.join(service, person, &name, &founder).await;
                }
            }
        }
        let mut client = service.client.clone();
        match state {
            Organization::Active | Organization::WithOneOwner => {}
            Organization::Suspended => {
                let suspend = pb::SuspendOrganizationRequest {
                    organization_name: organization.clone(),
                    ..pb::SuspendOrganizationRequest::default()
                };
                client.suspend_organization(suspend).await.unwrap();
            }
            Organization::Deleted | Organization::Undeletable | Organization::TakenAgain => {
                let is_undeletable = state == Organization::Undeletable;
                let delete = pb::DeleteOrganizationRequest {
                    organization_name: organization.clone(),
                    actor: Some(pb::delete_organization_request::Actor::AsPlatform(true)),
                    undelete_window: is_undeletable.then_some(UNDELETE_WINDOW),
                    ..pb::DeleteOrganizationRequest::default()
                };
                client.delete_organization(delete).await.unwrap();
            }
        }
        if state == Organization::TakenAgain {
            let other = format!("{organization}.somebody-else");
            service.create_user(&other).await.unwrap();
            world.found(service, &other).await;
        }
        world
    }

    async fn found(&self, service: &Replica, founder: &str) {
        let (key, value) = LABEL;
        let request = pb::CreateOrganizationRequest {
            organization_name: self.organization.clone(),
            founding_user: founder.to_owned(),
            labels: [(key.to_owned(), value.to_owned())].into(),
            ..pb::CreateOrganizationRequest::default()
        };
        let mut client = service.client.clone();
        client.create_organization(request).await.unwrap();
    }

    async fn join(&self, service: &Replica, person: Person, name: &str, founder: &str) {
        if person.relation == Relation::NoUser {
            return;
        }
        service.create_user(name).await.unwrap();
        let role = match person.relation {
            Relation::Member(role) | Relation::Expiring(role) | Relation::Undeletable(role) => {
                Some(role)
            }
            Relation::Namesake | Relation::Expired => Some(Role::Owner),
            Relation::Outsider | Relation::NoUser => None,
        };
        let end = || match person.relation {
            Relation::Expiring(_) => Some(self.end),
            Relation::Expired => Some(from_now(SHORT)),
            _ => None,
        };
        if let Some(role) = role {
            let request = || pb::AddUserToOrganizationRequest {
                organization_name: self.organization.clone(),
                member_username: name.to_owned(),
                role: role.into(),
                adding_user: founder.to_owned(),
                expire_time: end(),
                ..pb::AddUserToOrganizationRequest::default()
            };
            let mut client = service.client.clone();
            let mut added = client.add_user_to_organization(request()).await;
            // On a busy machine, a short life may have ended before the call.
            for _ in 0..MAX_ATTEMPTS {
                if added.is_err() {
                    added = client.add_user_to_organization(request()).await;
                }
            }
            added.unwrap();
        }
        if person.relation == Relation::Namesake {
            service.delete_user(name).await.unwrap();
            service.create_user(name).await.unwrap();
        }
        if let Relation::Undeletable(_) = person.relation {
            let delete = pb::DeleteUserRequest {
                username: name.to_owned(),
                undelete_window: Some(UNDELETE_WINDOW),
                ..pb::DeleteUserRequest::default()
            };
            service.client.clone().delete_user(delete).await.unwrap();
        }
        if person.is_suspended {
            let suspend = pb::SuspendUserRequest {
                username: name.to_owned(),
                ..pb::SuspendUserRequest::default()
            };
            let suspended = service.client.clone().suspend_user(suspend).await;
            suspended.unwrap();
        }
    }

    fn partitions(&self) -> [String; 2] {
        ["ORG#", "ORGMEMBERS#"].map(|kind| format!("{kind}{}", self.organization))
    }

    pub async fn stored(&self, table: &Table) -> Stored {
        let [organization, members] = self.partitions();
        let mut members = table.partition(&members).await;
        // The table may have removed an expired item, or not.
        members.retain(|_, item| !has_expired(item));
        Stored {
            organization: table.partition(&organization).await,
            members,
        }
    }

    /// Restores the contents of the table, past the service. No write depends on cached
    /// records.
    pub async fn restore(&self, table: &Table, before: &Stored, after: &Stored) {
        let [organization, members] = self.partitions();
        let parts = [
            (organization, &before.organization, &after.organization),
            (members, &before.members, &after.members),
        ];
        for (pk, before, after) in parts {
            for (sk, item) in before {
                if after.get(sk) != Some(item) {
                    table.put_item(item.clone()).await;
                }
            }
            for sk in after.keys().filter(|sk| !before.contains_key(*sk)) {
                table.delete(&pk, sk).await;
            }
        }
    }
}

impl Stored {
    /// The stored role of a member.
    pub fn role(&self, name: &str) -> Option<&str> {
        let item = self.members.get(&sort_key(name))?;
        Some(item.get("role")?.as_s().unwrap())
    }

    /// Whether a membership has an end.
    pub fn has_end(&self, name: &str) -> bool {
        let item = self.members.get(&sort_key(name));
        item.is_some_and(|item| item.contains_key("expireTime"))
    }

    /// All except these members.
    pub fn without(&self, names: &[&str]) -> Self {
        let mut others = self.clone();
        for name in names {
            others.members.remove(&sort_key(name));
        }
        others
    }
}

fn has_expired(item: &HashMap<String, AttributeValue>) -> bool {
    item.get("expireTime").is_some_and(|end| {
        let end: i64 = end.as_n().unwrap().parse().unwrap();
        end <= from_now(Duration::ZERO).seconds
    })
}

fn sort_key(name: &str) -> String {
    format!("MEMBER#{name}")
}
