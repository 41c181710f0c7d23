//! The content of the replica directory: the listed replicas, their statuses and addresses.

use std::{collections::BTreeMap, str::FromStr as _, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use super::register_view::RegisterState;
use crate::peer::{Incarnation, PeerAddress};

/// Time for which a replica that vanished from the directory is remembered. Longer than
/// [`Timing::settle`].
const VANISHED_KEPT: Duration = Duration::from_secs(60);

/// The status of a replica in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It may serve from its near cache.
    Active,
    /// It was evicted. It may serve from its near cache until its view expires.
    Leaving,
    /// It serves from its near cache no longer.
    Stopped,
    /// It was removed from the directory by another writer. It may serve from its near cache until
    /// its view expires.
    Vanished,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Leaving => "LEAVING",
            Self::Stopped => "STOPPED",
            Self::Vanished => "VANISHED",
        }
    }
}

/// A listed replica.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) status: Status,
    pub(super) address: PeerAddress,
    /// When this replica first saw it in its status.
    pub(super) since: Instant,
}

/// The content of the directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Replicas(pub(super) BTreeMap<Incarnation, Listed>);

impl RegisterState for Replicas {
    const NAME: &'static str = "replicas";

    /// Replicas may still act on the directory that is missing: a listed replica that cannot be
    /// fenced stands for them.
    fn recreated() -> Self {
        let unknown = Listed {
            status: Status::Leaving,
            address: PeerAddress::unreachable(),
            since: Instant::now(),
        };
        Self(BTreeMap::from([(Incarnation(Uuid::new_v4()), unknown)]))
    }

    fn parse(values: &BTreeMap<String, String>, former: Option<&Self>) -> Option<Self> {
        let now = Instant::now();
        let mut listed = BTreeMap::new();
        for (incarnation, text) in values {
            let incarnation = Incarnation(Uuid::try_parse(incarnation).ok()?);
            let mut replica = Listed::parse(text, now)?;
            let known = former.and_then(|former| former.0.get(&incarnation));
            if let Some(known) = known.filter(|known| known.status == replica.status) {
                replica.since = known.since;
            }
            listed.insert(incarnation, replica);
        }
        for (incarnation, known) in former.iter().flat_map(|former| &former.0) {
            if listed.contains_key(incarnation) || known.status == Status::Stopped {
                continue;
            }
            let since = match known.status {
                Status::Active => now,
                _ => known.since,
            };
            if now.duration_since(since) < VANISHED_KEPT {
                let vanished = Listed {
                    status: Status::Vanished,
                    since,
                    ..known.clone()
                };
                listed.insert(*incarnation, vanished);
            }
        }
        Some(Self(listed))
    }

    fn values(&self) -> BTreeMap<String, String> {
        let in_table = self.0.iter();
        let in_table = in_table.filter(|(_, listed)| listed.status != Status::Vanished);
        in_table
            .map(|(incarnation, listed)| {
                let text = format!("{} {}", listed.status.as_str(), listed.address);
                (incarnation.to_string(), text)
            })
            .collect()
    }
}

impl Replicas {
    /// The replica that follows `incarnation` in the order of incarnations, if there is another
    /// active one.
    pub(super) fn successor(&self, incarnation: Incarnation) -> Option<(Incarnation, PeerAddress)> {
        let active = |(_, listed): &(&Incarnation, &Listed)| listed.status == Status::Active;
        let after = self
            .0
            .range(incarnation..)
            .skip_while(|(other, _)| **other == incarnation);
        let mut in_order = after.chain(self.0.range(..incarnation)).filter(active);
        in_order
            .next()
            .map(|(incarnation, listed)| (*incarnation, listed.address.clone()))
    }
}

impl Listed {
    fn parse(text: &str, since: Instant) -> Option<Self> {
        let (status, address) = text.split_once(' ')?;
        let statuses = [Status::Active, Status::Leaving, Status::Stopped];
        Some(Self {
            status: statuses.into_iter().find(|it| it.as_str() == status)?,
            address: PeerAddress::from_str(address).ok()?,
            since,
        })
    }
}
