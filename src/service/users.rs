//! Users: create, get, delete.

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    Accounts, Error, Freshness, Refusal, Source, new_uid, snapshot::Snapshot, store_failed,
};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{Key, PersonName, Record, Stamp, Timestamp, User, Username},
    store::{self, Step, StrongReads},
};

/// A user to create.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// The name.
    pub username: Username,
    /// Given name.
    pub first_name: PersonName,
    /// Family name.
    pub last_name: PersonName,
}

impl Accounts {
    /// Creates a user.
    ///
    /// # Errors
    /// [`Refusal::UserExists`].
    pub async fn create_user(&self, new: NewUser, deadline: Instant) -> Result<User, Error> {
        let user = User {
            username: new.username,
            first_name: new.first_name,
            last_name: new.last_name,
            uid: new_uid(),
            stamp: Stamp::created(Timestamp::now()),
        };
        self.apply(CreateUser(user), deadline).await
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

    /// Deletes a user; returns it as it was.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`].
    pub async fn delete_user(&self, username: Username, deadline: Instant) -> Result<User, Error> {
        self.apply(DeleteUser(username), deadline).await
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
            return Ok(Verdict::Refuse {
                refusal: Refusal::UserExists(user.username.clone()),
                reveals: Vec::new(),
                upholds: Vec::new(),
            });
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

struct DeleteUser(Username);

#[async_trait]
impl Change for DeleteUser {
    type Output = User;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![Key::User(self.0.clone())]
    }

    async fn decide(
        &self,
        table: &dyn StrongReads,
    ) -> Result<Verdict<User, Refusal>, store::Error> {
        let found = Snapshot::read(table, self.touches()).await?;
        Ok(match found.user(&self.0) {
            None => Verdict::Refuse {
                refusal: Refusal::UserNotFound(self.0.clone()),
                reveals: Vec::new(),
                upholds: Vec::new(),
            },
            Some(user) => Verdict::Commit(Plan {
                steps: vec![Step::Delete {
                    found: Record::User(user.clone()),
                }],
                publish: Vec::new(),
                upholds: Vec::new(),
                output: user.clone(),
            }),
        })
    }
}
