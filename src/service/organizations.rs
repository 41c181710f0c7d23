//! Organizations: create, get.

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    Accounts, Error, Freshness, Refusal, Source, new_uid,
    snapshot::{Snapshot, keys_of_member, transaction},
    store_failed,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Key, Membership, Organization, OrganizationName, Record, Role, Stamp, Timestamp, Uid,
        Username,
    },
    store::{self, Step, StrongReads},
};

/// An organization to create.
#[derive(Debug, Clone)]
pub struct NewOrganization {
    /// The name.
    pub organization_name: OrganizationName,
    /// The user who founds it and becomes its Owner.
    pub founding_user: Username,
}

impl Accounts {
    /// Creates an organization and its founder's Owner membership, both or
    /// neither.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::OrganizationExists`].
    pub async fn create_organization(
        &self,
        new: NewOrganization,
        deadline: Instant,
    ) -> Result<Organization, Error> {
        let change = CreateOrganization {
            new,
            uid: new_uid(),
            stamp: Stamp::created(Timestamp::now()),
        };
        self.apply(change, deadline).await
    }

    /// Returns an organization.
    ///
    /// # Errors
    /// [`Refusal::OrganizationNotFound`].
    pub async fn get_organization(
        &self,
        name: OrganizationName,
        freshness: Freshness,
    ) -> Result<(Organization, Source), Error> {
        let key = Key::Organization(name.clone());
        let answer = self.coherence.read(&[key], freshness).await;
        let answer = answer.map_err(store_failed)?;
        let organization = answer.records.into_iter().flatten().next();
        organization
            .and_then(Record::into_organization)
            .map(|organization| (organization, answer.source))
            .ok_or(Error::Refused(Refusal::OrganizationNotFound(name)))
    }
}

struct CreateOrganization {
    new: NewOrganization,
    uid: Option<Uid>,
    stamp: Stamp,
}

impl CreateOrganization {
    fn keys(&self) -> [Key; 3] {
        keys_of_member(&self.new.organization_name, &self.new.founding_user)
    }
}

#[async_trait]
impl Change for CreateOrganization {
    type Output = Organization;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        let [_, organization, membership] = self.keys();
        vec![organization, membership]
    }

    fn may_publish(&self) -> bool {
        true
    }

    async fn decide(
        &self,
        table: &dyn StrongReads,
    ) -> Result<Verdict<Organization, Refusal>, store::Error> {
        let NewOrganization {
            organization_name,
            founding_user,
        } = &self.new;
        let [user_key, _, membership_key] = self.keys();
        let found = Snapshot::read(table, self.keys()).await?;
        let Some(founder) = found.user(founding_user) else {
            return Ok(Verdict::Refuse {
                refusal: Refusal::UserNotFound(founding_user.clone()),
                reveals: vec![user_key],
                upholds: Vec::new(),
            });
        };
        if found.organization(organization_name).is_some() {
            return Ok(Verdict::Refuse {
                refusal: Refusal::OrganizationExists(organization_name.clone()),
                reveals: Vec::new(),
                upholds: Vec::new(),
            });
        }
        let organization = Organization {
            organization_name: organization_name.clone(),
            founding_user: founding_user.to_string(),
            uid: self.uid.clone(),
            stamp: self.stamp,
        };
        let membership = Record::Membership(Membership {
            organization_name: organization_name.clone(),
            member_username: founding_user.clone(),
            role: Role::Owner,
            adding_user: Some(founding_user.to_string()),
            organization_uid: self.uid.clone(),
            member_uid: founder.uid.clone(),
            stamp: self.stamp,
        });
        let record = Record::Organization(organization.clone());
        let writes = vec![
            Step::Put {
                record: record.clone(),
                found: None,
            },
            // What is there was left by an earlier incarnation of the name.
            Step::Put {
                record: membership.clone(),
                found: found.record(&membership_key).cloned(),
            },
        ];
        Ok(Verdict::Commit(Plan {
            steps: transaction(writes, vec![found.still(user_key.clone())]),
            publish: vec![record, membership],
            upholds: found.record(&user_key).cloned().into_iter().collect(),
            output: organization,
        }))
    }
}
