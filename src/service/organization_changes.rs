//! Changes of an organization: its profile and its state.

use async_trait::async_trait;

use super::{
    OrganizationEdit, OrganizationToEdit, Refusal, actor::AlsoDeleted, idempotency::Repeatable,
    read_set::rewrite, unique_values::claims,
};
use crate::{
    coherence::{Change, Verdict},
    domain::{Actor, Key, Organization, Record, State, Timestamp, UPDATES_ORGANIZATION},
    store::{self, DynamoDb},
};

impl OrganizationEdit {
    /// The organization after the change, with its old stamp.
    fn apply(&self, organization: &Organization) -> Organization {
        let mut edited = organization.clone();
        match self {
            Self::State(state) => edited.state = *state,
            Self::Profile {
                display_name,
                external_id,
                labels,
            } => {
                if let Some(display_name) = display_name {
                    edited.display_name.clone_from(display_name);
                }
                if let Some(external_id) = external_id {
                    edited.external_id.clone_from(external_id);
                }
                if let Some(labels) = labels {
                    edited.labels.clone_from(labels);
                }
            }
        }
        edited
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

pub(super) struct EditOrganization {
    pub(super) organization: OrganizationToEdit,
    pub(super) now: Timestamp,
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
            .may_change(
                UPDATES_ORGANIZATION,
                table,
                organization_name,
                etag.as_ref(),
                AlsoDeleted::No,
            )
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
        if *actor != Actor::Platform && edited.external_id != organization.external_id {
            return Ok(Verdict::Deny(Refusal::NotPermitted));
        }
        edited.stamp = organization.stamp.changed(self.now);
        let [before, after] = [&organization, &edited].map(|it| Record::Organization(it.clone()));
        let claims = match claims(table, Some(&before), Some(&after)).await? {
            Ok(claims) => claims,
            Err(refused) => return Ok(refused),
        };
        let mut plan = rewrite(before, after, conditions, self.may_publish(), edited);
        plan.steps.extend(claims);
        Ok(Verdict::Commit(plan))
    }
}
