//! The near cache: records in the memory of this replica. While the replica is active in the
//! directory, an entry is as true as the table, because each write fences the near caches of all
//! listed replicas before it commits.

use std::{hash::BuildHasher as _, sync::Arc, time::Duration};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};
use quick_cache::{Weighter, sync::Cache};
use tokio::time::Instant;

use super::{CoherenceSettings, replica_directory::Epoch};
use crate::{
    domain::{Key, Record},
    peer::WriteId,
    telemetry::NEAR_CACHE_BYTES,
};

/// Approximate bytes of an entry besides its record.
const OVERHEAD: usize = 256;
/// Bytes of a usual entry. The cache is laid out for as many entries as fit.
const USUAL_ENTRY_BYTES: u64 = 512;
/// Number of key groups. A fence of a key may prevent the installation of keys of the same group.
const GROUPS: usize = 1024;
/// Most holds of a group. Beyond them, the whole group is held.
const MAX_HOLDS: usize = 64;

/// The records in the memory of a replica, by key. Bounded by bytes: beyond them, the least used
/// records are evicted.
pub struct NearCache {
    entries: Cache<Key, NearEntry, Bytes>,
    groups: Box<[Mutex<Group>]>,
    hashes: RandomState,
}

/// Weighs entries by their bytes.
#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<Key, NearEntry> for Bytes {
    fn weight(&self, _: &Key, entry: &NearEntry) -> u64 {
        let record = entry.record.as_ref().as_ref();
        (OVERHEAD + record.map_or(0, Record::bytes)) as u64
    }
}

/// A record in memory.
#[derive(Debug, Clone)]
pub(super) struct NearEntry {
    /// `None`: there was no such record.
    pub(super) record: Arc<Option<Record>>,
    /// When the read of the record was sent.
    as_of: Instant,
    /// The end of its life.
    expires: Instant,
    /// The epoch in which the entry is coherent. `None`: it never was.
    epoch: Option<Epoch>,
}

/// The required freshness of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Required {
    /// The epoch in which an entry is as true as the table. `None`: the replica is not active.
    pub(super) epoch: Option<Epoch>,
    /// For reads with a staleness bound: entries that were read at this time or later suffice, too.
    /// `None`: only coherent entries do.
    pub(super) since: Option<Instant>,
}

/// The state of a key when its read was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    fences: u64,
    is_held: bool,
    epoch: Option<Epoch>,
    sent: Instant,
}

/// Fences and holds of the keys of a group.
#[derive(Debug, Default)]
struct Group {
    /// Number of fences so far.
    fences: u64,
    holds: Vec<Hold>,
    /// The whole group is held until then.
    all_held_until: Option<Instant>,
}

/// Keeps a key out of the near cache.
#[derive(Debug)]
struct Hold {
    key: Key,
    write: WriteId,
    until: Instant,
}

impl NearEntry {
    /// Whether the entry is fresh enough at `now`. A read must take the epoch after the entry,
    /// because the replica may have left the directory since.
    pub(super) fn meets(&self, required: Required, now: Instant) -> bool {
        let Required { epoch, since } = required;
        let is_coherent = epoch.is_some() && epoch == self.epoch && now < self.expires;
        is_coherent || since.is_some_and(|since| self.as_of >= since)
    }
}

impl NearCache {
    /// An empty near cache.
    pub(super) fn new(settings: &CoherenceSettings) -> Self {
        let bytes = settings.near_cache_bytes;
        let usual_entries = usize::try_from(bytes / USUAL_ENTRY_BYTES).unwrap_or(usize::MAX);
        Self {
            entries: Cache::with_weighter(usual_entries, bytes, Bytes),
            groups: (0..GROUPS).map(|_| Mutex::default()).collect(),
            hashes: RandomState::default(),
        }
    }

    /// The entry of a key.
    pub(super) fn get(&self, key: &Key) -> Option<NearEntry> {
        self.entries.get(key)
    }

    /// Reports the approximate bytes of all entries.
    #[expect(
        clippy::cast_precision_loss,
        reason = "memory has fewer bytes than 2^53"
    )]
    pub(super) fn report(&self) {
        metrics::gauge!(NEAR_CACHE_BYTES).set(self.bytes() as f64);
    }

    /// The approximate bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.entries.weight()
    }

    /// The ticket for a read of a key. Take it before the read is sent.
    pub(super) fn begin_read(&self, key: &Key, epoch: Option<Epoch>, now: Instant) -> Ticket {
        let mut group = self.group(key);
        group.expire(now);
        Ticket {
            fences: group.fences,
            is_held: group.holds(key),
            epoch,
            sent: now,
        }
    }

    /// Installs the result of a read, unless its key was held when the read was sent, or was fenced
    /// since. The entry lives for `life` from when the read was sent.
    pub(super) fn install(
        &self,
        key: &Key,
        record: Arc<Option<Record>>,
        ticket: Ticket,
        life: Duration,
    ) {
        let entry = NearEntry {
            record,
            as_of: ticket.sent,
            expires: ticket.sent + life,
            epoch: ticket.epoch,
        };
        // Locked until the entry is in: a fence comes before the check or after the entry.
        let group = self.group(key);
        if !ticket.is_held && group.fences == ticket.fences {
            self.entries.insert(key.clone(), entry);
        }
    }

    /// Removes keys. Installs none of them until the write releases them, or until `until`.
    pub(super) fn fence(&self, keys: &[Key], write: WriteId, until: Instant) {
        let now = Instant::now();
        for key in keys {
            let mut group = self.group(key);
            group.expire(now);
            group.hold(key, write, until);
            self.remove_key(key, &mut group);
        }
    }

    /// Removes keys whose entries are not coherent. `epoch` returns the present epoch.
    pub(super) fn remove_incoherent(&self, keys: &[Key], epoch: impl Fn() -> Option<Epoch>) {
        let is_coherent = |key: &Key| {
            let entry = self.entries.get(key);
            let required = Required {
                epoch: epoch(),
                since: None,
            };
            entry.is_some_and(|entry| entry.meets(required, Instant::now()))
        };
        for key in keys {
            let mut group = self.group(key);
            if !is_coherent(key) {
                self.remove_key(key, &mut group);
            }
        }
    }

    /// Ends the holds of a write. Holds of other writes stay.
    pub(super) fn release(&self, keys: &[Key], write: WriteId) {
        for key in keys {
            let mut group = self.group(key);
            group.holds.retain(|hold| !hold.is_of(key, write));
        }
    }

    /// Removes a key of the group. A read that was sent before does not install it.
    fn remove_key(&self, key: &Key, group: &mut Group) {
        group.fences = group.fences.wrapping_add(1);
        self.entries.remove(key);
    }

    fn group(&self, key: &Key) -> MutexGuard<'_, Group> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a part of the hash suffices"
        )]
        let index = self.hashes.hash_one(key) as usize % self.groups.len();
        let group = &self.groups[index];
        group.lock()
    }
}

impl Group {
    fn expire(&mut self, now: Instant) {
        self.holds.retain(|hold| hold.until > now);
        self.all_held_until = self.all_held_until.filter(|until| *until > now);
    }

    fn holds(&self, key: &Key) -> bool {
        self.all_held_until.is_some() || self.holds.iter().any(|hold| hold.key == *key)
    }

    fn hold(&mut self, key: &Key, write: WriteId, until: Instant) {
        self.holds.retain(|hold| !hold.is_of(key, write));
        if self.holds.len() < MAX_HOLDS {
            self.holds.push(Hold {
                key: key.clone(),
                write,
                until,
            });
        } else {
            let held = self.all_held_until.map_or(until, |held| held.max(until));
            self.all_held_until = Some(held);
        }
    }
}

impl Hold {
    fn is_of(&self, key: &Key, write: WriteId) -> bool {
        self.write == write && self.key == *key
    }
}

#[cfg(test)]
mod tests;
