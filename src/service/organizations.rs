//! Organizations: create, get, update, suspend, resume.

use async_trait::async_trait;

use super::{
    Accounts, Call, Error, Freshness, Refusal, Source,
    idempotency::Repeatable,
    memberships::NewMember,
    new_uid,
    organization_changes::EditOrganization,
    read_set::{ReadSet, keys_of_member, transaction},
    scope::{not_granted, require},
    unique_values::claims,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Actor, Etag, ExternalId, FreeText, Key, Labels, Organization, OrganizationName,
        OrganizationScope, Record, Role, Stamp, State, Timestamp, Uid, Username,
    },
    store::{self, DynamoDb, Step},
};

/// An organization to create.
#[derive(Debug, Clone)]
pub struct NewOrganization {
    /// The name.
    pub organization_name: OrganizationName,
    /// The founding user, who becomes its Owner.
    pub founding_user: Username,
    /// Name to show.
    pub display_name: FreeText,
    /// The id in another system.
    pub external_id: Option<ExternalId>,
    /// Labels.
    pub labels: Labels,
}

/// An organization to change.
#[derive(Debug, Clone)]
pub struct OrganizationToEdit {
    /// The name.
    pub organization_name: OrganizationName,
    /// The actor.
    pub actor: Actor,
    /// The version to change. `None`: any.
    pub etag: Option<Etag>,
    /// The change.
    pub edit: OrganizationEdit,
}

/// A change of an organization.
#[derive(Debug, Clone)]
pub enum OrganizationEdit {
    /// Descriptive fields. `None` leaves a field unchanged.
    Profile {
        /// Name to show.
        display_name: Option<FreeText>,
        /// The id in another system. The inner `None` removes it. For the platform only.
        external_id: Option<Option<ExternalId>>,
        /// All labels.
        labels: Option<Labels>,
    },
    /// Suspends or resumes.
    State(State),
}

impl Accounts {
    /// Creates an organization and its founder's Owner membership, both or
    /// neither.
    ///
    /// # Errors
    /// [`Refusal::OrganizationNotGranted`], [`Refusal::UserNotFound`], [`Refusal::NotPermitted`],
    /// [`Refusal::OrganizationExists`], [`Refusal::ExternalIdExists`].
    pub async fn create_organization(
        &self,
        new: NewOrganization,
        call: Call,
    ) -> Result<Organization, Error> {
        // Judged by the new organization: the name is the only fact about another one that a refusal
        // reveals.
        if !call.scope.has_labelled(&new.organization_name, &new.labels) {
            return Err(not_granted(&new.organization_name));
        }
        let call = Call {
            scope: OrganizationScope::Every,
            ..call
        };
        let actor = Actor::User(new.founding_user.clone());
        let change = CreateOrganization {
            new,
            uid: new_uid(),
            stamp: Stamp::created(Timestamp::now()),
        };
        self.apply(change, actor, call).await
    }

    /// Changes an organization. Returns it after the change.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::OrganizationNotFound`] for the
    /// platform only, [`Refusal::EtagMismatch`], [`Refusal::ExternalIdExists`].
    pub async fn edit_organization(
        &self,
        organization: OrganizationToEdit,
        call: Call,
    ) -> Result<Organization, Error> {
        let actor = organization.actor.clone();
        let change = EditOrganization {
            organization,
            now: Timestamp::now(),
        };
        self.apply(change, actor, call).await
    }

    /// Returns an organization.
    ///
    /// # Errors
    /// [`Refusal::OrganizationNotGranted`], [`Refusal::OrganizationNotFound`].
    pub async fn get_organization(
        &self,
        scope: &OrganizationScope,
        name: OrganizationName,
        freshness: Freshness,
    ) -> Result<(Organization, Source), Error> {
        let key = Key::Organization(name.clone());
        let found = self.get(key, Some, freshness).await?;
        require(scope, &name, found.as_ref().map(|(record, _)| record))?;
        let organization =
            found.and_then(|(record, source)| Some((record.into_organization()?, source)));
        organization.ok_or(Error::Refused(Refusal::OrganizationNotFound(name)))
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

impl Repeatable for CreateOrganization {}

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
        table: &DynamoDb,
    ) -> Result<Verdict<Organization, Refusal>, store::Error> {
        let NewOrganization {
            organization_name,
            founding_user,
            display_name,
            external_id,
            labels,
        } = &self.new;
        let [user_key, ..] = self.keys();
        let found = ReadSet::read(table, self.keys()).await?;
        let Some(founder) = found.user(founding_user) else {
            let refusal = Refusal::UserNotFound(founding_user.clone());
            return Ok(found.refuse([user_key], refusal));
        };
        // Reveals that the founder is suspended: nothing else is denied here.
        if founder.state == State::Suspended {
            let refusal = Refusal::NotPermitted;
            return Ok(found.refuse([user_key], refusal));
        }
        if found.stored_organization(organization_name).is_some() {
            return Ok(Verdict::refuse(Refusal::OrganizationExists(
                organization_name.clone(),
            )));
        }
        let organization = Organization {
            organization_name: organization_name.clone(),
            founding_user: founding_user.to_string(),
            display_name: display_name.clone(),
            external_id: external_id.clone(),
            labels: labels.clone(),
            state: State::Active,
            deletion: None,
            uid: self.uid.clone(),
            stamp: self.stamp,
        };
        let owner = NewMember {
            organization: &organization,
            user: founder,
            role: Role::Owner,
            expire_time: None,
            labels: Labels::default(),
            adding_user: Some(founding_user),
        };
        let (join, owner) = owner.join(&found, self.stamp);
        let record = Record::Organization(organization.clone());
        let claims = match claims(table, None, Some(&record)).await? {
            Ok(claims) => claims,
            Err(refused) => return Ok(refused),
        };
        let create = Step::Create {
            record: record.clone(),
            found: None,
        };
        let writes = [vec![create, join], claims].concat();
        Ok(Verdict::Commit(Plan {
            steps: transaction(writes, vec![found.still(user_key.clone())]),
            publish: vec![record, Record::Membership(owner.membership)],
            premises: found.record(&user_key).cloned().into_iter().collect(),
            output: organization,
        }))
    }
}
