//! Provisioning for operators: creates the table, the secret and the cache if they are
//! missing, and empties the cache.

use std::collections::BTreeSet;

use secrecy::SecretString;
use serde::Deserialize;

use super::{App, Error, secrets_manager};
use crate::boot;
use crate::{
    coherence,
    config::{BackendSettings, ServeSettings},
    store,
};

/// The result of the setup, one line for each backend.
#[derive(Debug)]
pub struct Report {
    /// The table.
    pub table: &'static str,
    /// The secret.
    pub secret: &'static str,
    /// The cache.
    pub cache: &'static str,
    /// The findings of the survey of an existing table.
    pub findings: store::Findings,
}

/// Creates the missing parts. `new_secret` is stored if there is no secret yet.
///
/// # Errors
/// A part cannot be created, or there is neither a secret nor a `new_secret`.
pub async fn run(
    settings: &BackendSettings,
    new_secret: Option<SecretString>,
) -> Result<Report, Error> {
    const CREATED: &str = "created";
    const EXISTS: &str = "exists";
    let aws = boot::load_aws(settings).await?;
    let table = store::DynamoDb::new(&aws, boot::table_settings(settings));
    let table_failed = |source| boot::table_error(settings, source);
    let (created, findings) = table.create_table().await.map_err(table_failed)?;
    if created == store::Created::Whole {
        let begun = coherence::begin(table).await;
        begun.map_err(table_failed)?;
    }

    let secrets = boot::secrets(&aws, settings);
    let id = &settings.momento_secret_id;
    let (secret, secret_report) = match (secrets.read(id).await, new_secret) {
        (Ok(version), _) => (version.secret, EXISTS),
        (Err(secrets_manager::Error::Missing), Some(secret)) => {
            let created = secrets.create(id, &secret).await;
            created.map_err(|source| boot::secret_error(settings, source))?;
            (secret, CREATED)
        }
        (Err(secrets_manager::Error::Missing), None) => {
            return Err(Error::NoSecret { id: id.clone() });
        }
        (Err(source), _) => return Err(boot::secret_error(settings, source)),
    };

    let cache = boot::connect_cache(&secret, settings).await?;
    let is_created = cache.create_cache().await;
    let is_created = is_created.map_err(|source| boot::cache_error(settings, source))?;
    Ok(Report {
        table: match created {
            store::Created::Whole => CREATED,
            store::Created::Parts => "exists; missing indexes, stream or time to live were added",
            store::Created::Nothing => EXISTS,
        },
        secret: secret_report,
        cache: if is_created { CREATED } else { EXISTS },
        findings,
    })
}

/// Empties the cache by moving on to a new generation, and the near caches of all replicas. Takes a
/// few seconds, during which reads go to the table.
///
/// # Errors
/// The table cannot be used.
pub async fn flush(settings: &BackendSettings) -> Result<(), Error> {
    let aws = boot::load_aws(settings).await?;
    let table = store::DynamoDb::new(&aws, boot::table_settings(settings));
    let renewed = coherence::renew_generation(table).await;
    renewed.map_err(|source| boot::table_error(settings, source))
}

/// Fences the changed records of a DynamoDB stream event: a JSON object as a Lambda trigger
/// receives it. Returns their number.
///
/// # Errors
/// The text is not such an event, or the records cannot be fenced.
pub async fn invalidate(settings: &ServeSettings, event: &str) -> Result<usize, Error> {
    let event: Event = serde_json::from_str(event).map_err(Error::Event)?;
    let keys = event.records.iter().map(|record| &record.dynamodb.keys);
    let keys: BTreeSet<_> = keys.map(|keys| (&keys.pk.text, &keys.sk.text)).collect();
    let keys: Vec<_> = keys
        .into_iter()
        .filter_map(|(pk, sk)| store::key_of_item(pk, sk))
        .collect();
    let app = App::boot(settings).await?;
    app.invalidate(&keys).await?;
    Ok(keys.len())
}

/// The parts of an event that are needed.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "Records")]
    records: Vec<EventRecord>,
}

#[derive(Deserialize)]
struct EventRecord {
    dynamodb: EventChange,
}

#[derive(Deserialize)]
struct EventChange {
    #[serde(rename = "Keys")]
    keys: EventKeys,
}

#[derive(Deserialize)]
struct EventKeys {
    #[serde(rename = "PK")]
    pk: TextForm,
    #[serde(rename = "SK")]
    sk: TextForm,
}

#[derive(Deserialize)]
struct TextForm {
    #[serde(rename = "S")]
    text: String,
}
