//! Users: create, get, update, suspend, resume.

use async_trait::async_trait;

use super::{
    Accounts, Call, Error, Freshness, Refusal, Source,
    idempotency::Repeatable,
    is_version,
    last_owner::require_other_owners,
    new_uid,
    read_set::{ReadSet, rewrite},
    unique_values::claims,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{
        Actor, Email, Etag, ExternalId, FreeText, Key, Labels, Record, Stamp, State, Timestamp,
        User, Username,
    },
    store::{self, DynamoDb, Step},
};

/// A user to create.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// The name.
    pub username: Username,
    /// Given name.
    pub first_name: FreeText,
    /// Family name.
    pub last_name: FreeText,
    /// Name to show.
    pub display_name: FreeText,
    /// The e-mail address.
    pub email: Option<Email>,
    /// The id in another system.
    pub external_id: Option<ExternalId>,
    /// Labels.
    pub labels: Labels,
}

/// A user to change.
#[derive(Debug, Clone)]
pub struct UserToEdit {
    /// The name.
    pub username: Username,
    /// The version to change. `None`: any.
    pub etag: Option<Etag>,
    /// The change.
    pub edit: UserEdit,
    /// A suspension is refused if the user is the last Owner of an organization.
    pub unless_last_owner: bool,
}

/// A change of a user.
#[derive(Debug, Clone)]
pub enum UserEdit {
    /// Descriptive fields. `None` leaves a field unchanged.
    Profile {
        /// Given name.
        first_name: Option<FreeText>,
        /// Family name.
        last_name: Option<FreeText>,
        /// Name to show.
        display_name: Option<FreeText>,
        /// The e-mail address. The inner `None` removes it.
        email: Option<Option<Email>>,
        /// The id in another system. The inner `None` removes it.
        external_id: Option<Option<ExternalId>>,
        /// All labels.
        labels: Option<Labels>,
    },
    /// Suspends or resumes.
    State(State),
}

impl UserEdit {
    /// The user after the change, with its old stamp.
    fn apply(&self, user: &User) -> User {
        let mut edited = user.clone();
        match self {
            Self::State(state) => edited.state = *state,
            Self::Profile {
                first_name,
                last_name,
                display_name,
                email,
                external_id,
                labels,
            } => {
                let parts = [
                    (&mut edited.first_name, first_name),
                    (&mut edited.last_name, last_name),
                    (&mut edited.display_name, display_name),
                ];
                for (part, new) in parts {
                    if let Some(new) = new {
                        part.clone_from(new);
                    }
                }
                if let Some(email) = email {
                    edited.email.clone_from(email);
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

impl Accounts {
    /// Creates a user.
    ///
    /// # Errors
    /// [`Refusal::UserExists`], [`Refusal::EmailExists`], [`Refusal::ExternalIdExists`].
    pub async fn create_user(&self, new: NewUser, call: Call) -> Result<User, Error> {
        let user = User {
            username: new.username,
            first_name: new.first_name,
            last_name: new.last_name,
            display_name: new.display_name,
            email: new.email,
            external_id: new.external_id,
            labels: new.labels,
            state: State::Active,
            deletion: None,
            uid: new_uid(),
            stamp: Stamp::created(Timestamp::now()),
        };
        self.apply(CreateUser(user), Actor::Platform, call).await
    }

    /// Returns a user.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`].
    pub async fn get_user(
        &self,
        username: Username,
        freshness: Freshness,
    ) -> Result<(User, Source), Error> {
        let key = Key::User(username.clone());
        let user = self.get(key, Record::into_user, freshness).await?;
        user.ok_or(Error::Refused(Refusal::UserNotFound(username)))
    }

    /// Changes a user. Returns it after the change.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::EtagMismatch`], [`Refusal::EmailExists`],
    /// [`Refusal::ExternalIdExists`], [`Refusal::InvalidUser`].
    pub async fn edit_user(&self, user: UserToEdit, call: Call) -> Result<User, Error> {
        let change = EditUser {
            user,
            now: Timestamp::now(),
        };
        self.apply(change, Actor::Platform, call).await
    }
}

/// Whether the changed texts of a user are valid.
fn may_replace(before: &User, after: &User) -> Result<(), Refusal> {
    for (field, before, after) in [
        ("first_name", &before.first_name, &after.first_name),
        ("last_name", &before.last_name, &after.last_name),
        ("display_name", &before.display_name, &after.display_name),
    ] {
        let may_replace = after.may_replace(Some(before.as_str()));
        may_replace.map_err(|why| Refusal::InvalidUser(field, why.to_string()))?;
    }
    if let Some(email) = &after.email
        && !before.email.as_ref().is_some_and(|it| it.is_same(email))
    {
        let parsed = Email::parse_new(email.as_str());
        parsed.map_err(|why| Refusal::InvalidUser("email", why.to_string()))?;
    }
    let may_replace = after.labels.may_replace(&before.labels);
    may_replace.map_err(|why| Refusal::InvalidUser("labels", why.to_string()))
}

struct CreateUser(User);

impl Repeatable for CreateUser {}

#[async_trait]
impl Change for CreateUser {
    type Output = User;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::User(self.0.username.clone())]
    }

    fn may_publish(&self) -> bool {
        true
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<User, Refusal>, store::Error> {
        let user = &self.0;
        let found = ReadSet::read(table, self.touches()).await?;
        if found.stored_user(&user.username).is_some() {
            return Ok(Verdict::refuse(Refusal::UserExists(user.username.clone())));
        }
        let record = Record::User(user.clone());
        let claims = match claims(table, None, Some(&record)).await? {
            Ok(claims) => claims,
            Err(refused) => return Ok(refused),
        };
        let create = Step::Create {
            record: record.clone(),
            found: None,
        };
        Ok(Verdict::Commit(Plan {
            steps: [vec![create], claims].concat(),
            publish: vec![record],
            premises: Vec::new(),
            output: user.clone(),
        }))
    }
}

struct EditUser {
    user: UserToEdit,
    now: Timestamp,
}

impl Repeatable for EditUser {}

#[async_trait]
impl Change for EditUser {
    type Output = User;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::User(self.user.username.clone())]
    }

    fn may_publish(&self) -> bool {
        !matches!(self.user.edit, UserEdit::State(State::Suspended))
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<User, Refusal>, store::Error> {
        let UserToEdit {
            username,
            etag,
            edit,
            unless_last_owner,
        } = &self.user;
        let found = ReadSet::read(table, self.touches()).await?;
        let Some(user) = found.user(username) else {
            return Ok(Verdict::refuse(Refusal::UserNotFound(username.clone())));
        };
        if !is_version(etag.as_ref(), &user.stamp) {
            return Ok(Verdict::refuse(Refusal::EtagMismatch));
        }
        let mut edited = edit.apply(user);
        if edited == *user {
            return Ok(Verdict::Keep {
                output: edited,
                premises: Vec::new(),
            });
        }
        if let Err(refusal) = may_replace(user, &edited) {
            return Ok(Verdict::Deny(refusal));
        }
        edited.stamp = user.stamp.changed(self.now);
        let [before, after] = [user, &edited].map(|user| Record::User(user.clone()));
        let claims = match claims(table, Some(&before), Some(&after)).await? {
            Ok(claims) => claims,
            Err(refused) => return Ok(refused),
        };
        let conditions = require_other_owners(table, username, *unless_last_owner).await?;
        let conditions = match conditions {
            Ok(conditions) => conditions,
            Err(refused) => return Ok(refused),
        };
        let mut plan = rewrite(before, after, conditions, self.may_publish(), edited);
        plan.steps.extend(claims);
        Ok(Verdict::Commit(plan))
    }
}
