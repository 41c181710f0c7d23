//! Transfers of ownership, each in one transaction.

use async_trait::async_trait;

use super::{
    Accounts, Call, Error, Refusal,
    idempotency::Repeatable,
    memberships::{NewMember, not_a_member},
    read_set::{ReadSet, keys_around, keys_of_member, transaction},
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Actor, Key, Labels, Membership, OrganizationName, Record, Role, Stamp, Standing, State,
        TRANSFERS_OWNERSHIP, Timestamp, Username,
    },
    store::{self, DynamoDb, Step},
};

/// A transfer of ownership.
#[derive(Debug, Clone)]
pub struct OwnershipToTransfer {
    /// The organization.
    pub organization_name: OrganizationName,
    /// The member who becomes an Owner; for the platform, any user.
    pub new_owner: Username,
    /// The acting Owner, or the platform.
    pub actor: Actor,
}

/// The new and the previous owner.
#[derive(Debug)]
pub struct Owners {
    /// The membership of the new owner.
    pub new: Standing,
    /// The membership of the acting Owner.
    pub previous: Option<Standing>,
}

impl Accounts {
    /// Makes a member an Owner, and the acting Owner an Admin. The platform makes any user
    /// an Owner.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::MembershipNotFound`],
    /// [`Refusal::NewOwnerSuspended`]; to the platform [`Refusal::OrganizationNotFound`],
    /// [`Refusal::UserNotFound`].
    pub async fn transfer_ownership(
        &self,
        ownership: OwnershipToTransfer,
        call: Call,
    ) -> Result<Owners, Error> {
        let actor = ownership.actor.clone();
        let change = TransferOwnership {
            ownership,
            now: Timestamp::now(),
        };
        self.apply(change, actor, call).await
    }
}

struct TransferOwnership {
    ownership: OwnershipToTransfer,
    now: Timestamp,
}

impl TransferOwnership {
    /// Adds a user as an Owner. With it, the platform repairs an organization without an
    /// Owner.
    fn add_owner(&self, found: &ReadSet) -> Verdict<Owners, Refusal> {
        let OwnershipToTransfer {
            organization_name,
            new_owner,
            ..
        } = &self.ownership;
        let keys = keys_around(organization_name, new_owner);
        let Some(organization) = found.organization(organization_name) else {
            let refusal = Refusal::OrganizationNotFound(organization_name.clone());
            return found.refuse(keys, refusal);
        };
        let Some(user) = found.user(new_owner) else {
            return found.refuse(keys, Refusal::UserNotFound(new_owner.clone()));
        };
        let new = NewMember {
            organization,
            user,
            role: Role::Owner,
            expire_time: None,
            labels: Labels::default(),
            adding_user: None,
        };
        let (step, standing) = new.join(found, Stamp::created(self.now));
        let conditions = keys.map(|key| found.still(key)).into();
        Verdict::Commit(Plan {
            steps: transaction(vec![step], conditions),
            publish: vec![Record::Membership(standing.membership.clone())],
            premises: found.profiles(),
            output: Owners {
                new: standing,
                previous: None,
            },
        })
    }

    /// The acting Owner, unless it is the new owner.
    fn previous_owner(&self) -> Option<&Username> {
        match &self.ownership.actor {
            Actor::User(username) if *username != self.ownership.new_owner => Some(username),
            _ => None,
        }
    }

    /// The membership with this role. That of an Owner does not expire.
    fn with_role(&self, membership: &Membership, role: Role) -> Membership {
        let mut changed = membership.clone();
        changed.role = Some(role);
        if role == Role::Owner {
            changed.expire_time = None;
        }
        if changed != *membership {
            changed.stamp = membership.stamp.changed(self.now);
        }
        changed
    }
}

impl Repeatable for TransferOwnership {
    fn self_revoking_actor(&self) -> Option<&Username> {
        self.ownership.actor.user()
    }
}

#[async_trait]
impl Change for TransferOwnership {
    type Output = Owners;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        let organization = &self.ownership.organization_name;
        let owners = [Some(&self.ownership.new_owner), self.previous_owner()];
        let owners = owners.into_iter().flatten();
        owners
            .map(|owner| Key::Membership(organization.clone(), owner.clone()))
            .collect()
    }

    fn may_publish(&self) -> bool {
        true
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<Owners, Refusal>, store::Error> {
        let OwnershipToTransfer {
            organization_name,
            new_owner,
            actor,
        } = &self.ownership;
        let of_new_owner = keys_of_member(organization_name, new_owner);
        let keys = [actor.keys(organization_name), of_new_owner.into()].concat();
        let found = ReadSet::read(table, keys).await?;
        if !actor.has(TRANSFERS_OWNERSHIP, &found, organization_name)
            || !actor.grants_without_end(&found, organization_name)
        {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        }
        let Some(new) = found.member_to_change(organization_name, new_owner) else {
            return Ok(match actor {
                Actor::User(_) => not_a_member(&found, organization_name, new_owner),
                Actor::Platform => self.add_owner(&found),
            });
        };
        let previous = self
            .previous_owner()
            .and_then(|owner| found.member_to_change(organization_name, owner));
        // All users, and the organization: the result shows both memberships.
        let premises = found.profiles();
        // After a transfer from an Owner, the organization must have an Owner who can act.
        if new.state == State::Suspended && previous.is_some() {
            return Ok(Verdict::Refuse {
                refusal: Refusal::NewOwnerSuspended(new_owner.clone()),
                absent: Vec::new(),
                premises,
            });
        }
        Ok(self.transfer(&found, new, previous.as_ref(), premises))
    }
}

impl TransferOwnership {
    /// Makes the new owner an Owner, and the previous one an Admin.
    fn transfer(
        &self,
        found: &ReadSet,
        new: Standing,
        previous: Option<&Standing>,
        premises: Vec<Record>,
    ) -> Verdict<Owners, Refusal> {
        let OwnershipToTransfer {
            organization_name,
            new_owner,
            actor,
        } = &self.ownership;
        let changes = [
            Some((&new, Role::Owner)),
            previous.map(|previous| (previous, Role::Admin)),
        ];
        let mut updates = Vec::new();
        let mut publish = Vec::new();
        let mut standings = Vec::new();
        for (standing, role) in changes.into_iter().flatten() {
            let membership = self.with_role(&standing.membership, role);
            let record = Record::Membership(membership.clone());
            if membership != standing.membership {
                updates.push(Step::Update {
                    found: Record::Membership(standing.membership.clone()),
                    record: record.clone(),
                });
                // Only grants are published.
                publish.extend((role == Role::Owner).then_some(record));
            }
            standings.push(Standing {
                membership,
                state: standing.state,
            });
        }
        let mut standings = standings.into_iter();
        let output = Owners {
            new: standings.next().unwrap_or(new),
            previous: standings.next(),
        };
        if updates.is_empty() {
            return Verdict::Keep { output, premises };
        }
        let mut conditions = actor.conditions(found, organization_name);
        conditions.extend(found.still_counts(organization_name, new_owner));
        Verdict::Commit(Plan {
            steps: transaction(updates, conditions),
            publish,
            premises,
            output,
        })
    }
}
