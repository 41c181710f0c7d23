//! Users: create, get, update, suspend, resume, delete.

use async_trait::async_trait;

use super::{
    Accounts, Call, Error, Freshness, Refusal, Source, is_version, new_uid,
    snapshot::{Snapshot, rewrite},
    store_failed,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{Actor, Etag, FreeText, Key, Labels, Record, Stamp, State, Timestamp, User, Username},
    store::{self, Step, StrongReads},
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
    /// What the caller attaches.
    pub labels: Labels,
}

/// A user to change.
#[derive(Debug, Clone)]
pub struct UserToEdit {
    /// The name.
    pub username: Username,
    /// The version to change; any, if `None`.
    pub etag: Option<Etag>,
    /// What to change.
    pub edit: UserEdit,
}

/// What to change of a user.
#[derive(Debug, Clone)]
pub enum UserEdit {
    /// What describes the user; `None` leaves a part as it is.
    Profile {
        /// Given name.
        first_name: Option<FreeText>,
        /// Family name.
        last_name: Option<FreeText>,
        /// Name to show.
        display_name: Option<FreeText>,
        /// All labels.
        labels: Option<Labels>,
    },
    /// Suspends or resumes.
    State(State),
}

/// A user to delete.
#[derive(Debug, Clone)]
pub struct UserToDelete {
    /// The name.
    pub username: Username,
    /// The version to delete; any, if `None`.
    pub etag: Option<Etag>,
}

impl UserEdit {
    /// The user after the change, its stamp left as it is.
    fn apply(&self, user: &User) -> User {
        let mut edited = user.clone();
        match self {
            Self::State(state) => edited.state = *state,
            Self::Profile {
                first_name,
                last_name,
                display_name,
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
    /// [`Refusal::UserExists`].
    pub async fn create_user(&self, new: NewUser, call: Call) -> Result<User, Error> {
        let user = User {
            username: new.username,
            first_name: new.first_name,
            last_name: new.last_name,
            display_name: new.display_name,
            labels: new.labels,
            state: State::Active,
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
        let answer = self.coherence.read(&[key], freshness).await;
        let answer = answer.map_err(store_failed)?;
        let user = answer.records.into_iter().flatten().next();
        user.and_then(Record::into_user)
            .map(|user| (user, answer.source))
            .ok_or(Error::Refused(Refusal::UserNotFound(username)))
    }

    /// Changes a user; returns it as it is then.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::EtagMismatch`].
    pub async fn edit_user(&self, user: UserToEdit, call: Call) -> Result<User, Error> {
        let change = EditUser {
            user,
            now: Timestamp::now(),
        };
        self.apply(change, Actor::Platform, call).await
    }

    /// Deletes a user; returns it as it was.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::EtagMismatch`].
    pub async fn delete_user(&self, user: UserToDelete, call: Call) -> Result<User, Error> {
        self.apply(DeleteUser(user), Actor::Platform, call).await
    }
}

struct CreateUser(User);

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

    async fn decide(
        &self,
        table: &dyn StrongReads,
    ) -> Result<Verdict<User, Refusal>, store::Error> {
        let user = &self.0;
        let found = Snapshot::read(table, self.touches()).await?;
        if found.user(&user.username).is_some() {
            return Ok(Verdict::refuse(Refusal::UserExists(user.username.clone())));
        }
        let record = Record::User(user.clone());
        Ok(Verdict::Commit(Plan {
            steps: vec![Step::Put {
                record: record.clone(),
                found: None,
            }],
            publish: vec![record],
            upholds: Vec::new(),
            output: user.clone(),
        }))
    }
}

struct EditUser {
    user: UserToEdit,
    now: Timestamp,
}

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

    async fn decide(
        &self,
        table: &dyn StrongReads,
    ) -> Result<Verdict<User, Refusal>, store::Error> {
        let UserToEdit {
            username,
            etag,
            edit,
        } = &self.user;
        let found = Snapshot::read(table, self.touches()).await?;
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
                upholds: Vec::new(),
            });
        }
        edited.stamp = user.stamp.changed(self.now);
        let [before, after] = [user, &edited].map(|user| Record::User(user.clone()));
        let plan = rewrite(before, after, Vec::new(), self.may_publish(), edited);
        Ok(Verdict::Commit(plan))
    }
}

struct DeleteUser(UserToDelete);

#[async_trait]
impl Change for DeleteUser {
    type Output = User;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::User(self.0.username.clone())]
    }

    async fn decide(
        &self,
        table: &dyn StrongReads,
    ) -> Result<Verdict<User, Refusal>, store::Error> {
        let UserToDelete { username, etag } = &self.0;
        let found = Snapshot::read(table, self.touches()).await?;
        let Some(user) = found.user(username) else {
            return Ok(Verdict::refuse(Refusal::UserNotFound(username.clone())));
        };
        if !is_version(etag.as_ref(), &user.stamp) {
            return Ok(Verdict::refuse(Refusal::EtagMismatch));
        }
        Ok(Verdict::Commit(Plan {
            steps: vec![Step::Delete {
                found: Record::User(user.clone()),
            }],
            publish: Vec::new(),
            upholds: Vec::new(),
            output: user.clone(),
        }))
    }
}
