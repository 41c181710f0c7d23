//! Organizations: create, get, update, suspend, resume, delete.

use async_trait::async_trait;

use super::{
    Accounts, Call, Error, Freshness, Refusal, Source,
    idempotency::Repeatable,
    is_version,
    memberships::NewMember,
    new_uid,
    read_set::{ReadSet, deletion, keys_of_member, rewrite, transaction},
    store_failed,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Actor, DeletedName, Etag, FreeText, Key, Labels, Organization, OrganizationName, Record,
        Role, Stamp, State, Timestamp, Uid, Username,
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

impl Actor {
    /// Whether the actor has at least this role.
    pub(super) fn has(
        &self,
        least: Role,
        found: &ReadSet,
        organization: &OrganizationName,
    ) -> bool {
        match self {
            Self::User(username) => found
                .role(organization, username)
                .is_some_and(|role| role >= least),
            Self::Platform => true,
        }
    }

    /// The records that decide whether the actor has a role.
    pub(super) fn keys(&self, organization: &OrganizationName) -> Vec<Key> {
        match self {
            Self::User(username) => keys_of_member(organization, username).into(),
            Self::Platform => Vec::new(),
        }
    }

    /// The conditions that these records are unchanged.
    pub(super) fn conditions(&self, found: &ReadSet, organization: &OrganizationName) -> Vec<Step> {
        match self {
            Self::User(username) => found.still_counts(organization, username),
            Self::Platform => Vec::new(),
        }
    }
}

/// The organization and the conditions of a change, or the refusal.
type Permitted<T> = Result<(Organization, Vec<Step>), Verdict<T, Refusal>>;

impl Actor {
    /// Whether the actor has the role `least`, and the organization has the version of the etag.
    async fn may_change<T>(
        &self,
        least: Role,
        table: &DynamoDb,
        name: &OrganizationName,
        etag: Option<&Etag>,
    ) -> Result<Permitted<T>, store::Error> {
        let mut keys = self.keys(name);
        keys.push(Key::Organization(name.clone()));
        let found = ReadSet::read(table, keys).await?;
        if !self.has(least, &found, name) {
            return Ok(Err(Verdict::Deny(Refusal::NotPermitted)));
        }
        let Some(organization) = found.organization(name) else {
            let refusal = Refusal::OrganizationNotFound(name.clone());
            return Ok(Err(Verdict::refuse(refusal)));
        };
        if !is_version(etag, &organization.stamp) {
            return Ok(Err(Verdict::refuse(Refusal::EtagMismatch)));
        }
        let conditions = self.conditions(&found, name);
        Ok(Ok((organization.clone(), conditions)))
    }
}

/// An organization to delete.
#[derive(Debug, Clone)]
pub struct OrganizationToDelete {
    /// The name.
    pub organization_name: OrganizationName,
    /// The actor: an Owner, or the platform.
    pub actor: Actor,
    /// The version to delete. `None`: any.
    pub etag: Option<Etag>,
}

/// A change of an organization.
#[derive(Debug, Clone)]
pub enum OrganizationEdit {
    /// Descriptive fields. `None` leaves a field unchanged.
    Profile {
        /// Name to show.
        display_name: Option<FreeText>,
        /// All labels.
        labels: Option<Labels>,
    },
    /// Suspends or resumes.
    State(State),
}

impl OrganizationEdit {
    /// The organization after the change, with its old stamp.
    fn apply(&self, organization: &Organization) -> Organization {
        let mut edited = organization.clone();
        match self {
            Self::State(state) => edited.state = *state,
            Self::Profile {
                display_name,
                labels,
            } => {
                if let Some(display_name) = display_name {
                    edited.display_name.clone_from(display_name);
                }
                if let Some(labels) = labels {
                    edited.labels.clone_from(labels);
                }
            }
        }
        edited
    }
}

impl Accounts {
    /// Creates an organization and its founder's Owner membership, both or
    /// neither.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::NotPermitted`],
    /// [`Refusal::OrganizationExists`].
    pub async fn create_organization(
        &self,
        new: NewOrganization,
        call: Call,
    ) -> Result<Organization, Error> {
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
    /// platform only, [`Refusal::EtagMismatch`].
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

    /// Deletes an organization. Returns it as it was.
    ///
    /// # Errors
    /// [`Refusal::NotPermitted`], [`Refusal::OrganizationNotFound`] for the
    /// platform only, [`Refusal::EtagMismatch`].
    pub async fn delete_organization(
        &self,
        organization: OrganizationToDelete,
        call: Call,
    ) -> Result<Organization, Error> {
        let actor = organization.actor.clone();
        self.apply(DeleteOrganization(organization), actor, call)
            .await
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
        let answer = self.reads.read(&[key], freshness).await;
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
        if found.organization(organization_name).is_some() {
            return Ok(Verdict::refuse(Refusal::OrganizationExists(
                organization_name.clone(),
            )));
        }
        let organization = Organization {
            organization_name: organization_name.clone(),
            founding_user: founding_user.to_string(),
            display_name: display_name.clone(),
            labels: labels.clone(),
            state: State::Active,
            uid: self.uid.clone(),
            stamp: self.stamp,
        };
        let owner = NewMember {
            organization: &organization,
            user: founder,
            role: Role::Owner,
            adding_user: Some(founding_user),
        };
        let (join, owner) = owner.join(&found, self.stamp);
        let record = Record::Organization(organization.clone());
        let writes = vec![
            Step::Create {
                record: record.clone(),
                found: None,
            },
            join,
        ];
        Ok(Verdict::Commit(Plan {
            steps: transaction(writes, vec![found.still(user_key.clone())]),
            publish: vec![record, Record::Membership(owner.membership)],
            premises: found.record(&user_key).cloned().into_iter().collect(),
            output: organization,
        }))
    }
}

/// Whether the changed texts of an organization are valid.
fn may_replace(before: &Organization, after: &Organization) -> Result<(), Refusal> {
    let shown = &after.display_name;
    let may_replace = shown.may_replace(Some(before.display_name.as_str()));
    may_replace.map_err(|why| Refusal::InvalidOrganization("display_name", why.to_string()))?;
    let may_replace = after.labels.may_replace(&before.labels);
    may_replace.map_err(|why| Refusal::InvalidOrganization("labels", why.to_string()))
}

struct EditOrganization {
    organization: OrganizationToEdit,
    now: Timestamp,
}

impl Repeatable for EditOrganization {}

#[async_trait]
impl Change for EditOrganization {
    type Output = Organization;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::Organization(
            self.organization.organization_name.clone(),
        )]
    }

    fn may_publish(&self) -> bool {
        let edit = &self.organization.edit;
        !matches!(edit, OrganizationEdit::State(State::Suspended))
    }

    async fn decide(
        &self,
        table: &DynamoDb,
    ) -> Result<Verdict<Organization, Refusal>, store::Error> {
        let OrganizationToEdit {
            organization_name,
            actor,
            etag,
            edit,
        } = &self.organization;
        let permitted = actor
            .may_change(Role::Admin, table, organization_name, etag.as_ref())
            .await?;
        let (organization, conditions) = match permitted {
            Ok(permitted) => permitted,
            Err(refused) => return Ok(refused),
        };
        let mut edited = edit.apply(&organization);
        if edited == organization {
            return Ok(Verdict::Keep {
                output: edited,
                premises: Vec::new(),
            });
        }
        if let Err(refusal) = may_replace(&organization, &edited) {
            return Ok(Verdict::Deny(refusal));
        }
        edited.stamp = organization.stamp.changed(self.now);
        let [before, after] = [&organization, &edited].map(|it| Record::Organization(it.clone()));
        let plan = rewrite(before, after, conditions, self.may_publish(), edited);
        Ok(Verdict::Commit(plan))
    }
}

struct DeleteOrganization(OrganizationToDelete);

impl Repeatable for DeleteOrganization {
    fn gives_up_permission(&self) -> Option<&Username> {
        self.0.actor.user()
    }
}

#[async_trait]
impl Change for DeleteOrganization {
    type Output = Organization;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::Organization(self.0.organization_name.clone())]
    }

    async fn decide(
        &self,
        table: &DynamoDb,
    ) -> Result<Verdict<Organization, Refusal>, store::Error> {
        let OrganizationToDelete {
            organization_name,
            actor,
            etag,
        } = &self.0;
        let permitted = actor
            .may_change(Role::Owner, table, organization_name, etag.as_ref())
            .await?;
        let (organization, conditions) = match permitted {
            Ok(permitted) => permitted,
            Err(refused) => return Ok(refused),
        };
        let record = Record::Organization(organization.clone());
        let gone = DeletedName::Organization(organization_name.clone());
        let delete = deletion(record, gone);
        Ok(Verdict::Commit(Plan {
            steps: transaction(delete, conditions),
            publish: Vec::new(),
            premises: Vec::new(),
            output: organization,
        }))
    }
}
