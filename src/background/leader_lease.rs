//! The leader lease: a register by which one replica at a time runs a loop. The holder
//! writes it at intervals. Another replica takes it when the writes stop.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store::{self, DynamoDb, Register, Registers as _};

/// Name of the value with the holder of a lease. Empty if the lease was released.
const OWNER: &str = "owner";
/// Attempts to release a lease.
const RELEASE_ATTEMPTS: usize = 3;

/// One replica's side of a leader lease.
pub struct LeaderLease {
    table: DynamoDb,
    /// Name of the register.
    register: &'static str,
    /// Unique name of this replica.
    name: String,
    /// Time without a write after which another replica takes the lease.
    takeover: Duration,
    resigned: CancellationToken,
}

/// A held lease: no other replica has written the register since.
pub struct HeldLease {
    /// The version of the register.
    pub version: u64,
    /// Time of the last write.
    pub written: Instant,
}

impl HeldLease {
    /// The lease that was just written as this version.
    #[must_use]
    pub fn written_now(version: u64) -> Self {
        Self {
            version,
            written: Instant::now(),
        }
    }
}

impl LeaderLease {
    /// The lease in this register. Does no I/O.
    #[must_use]
    pub fn new(table: DynamoDb, register: &'static str, takeover: Duration) -> Self {
        Self {
            table,
            register,
            name: Uuid::new_v4().to_string(),
            takeover,
            resigned: CancellationToken::new(),
        }
    }

    /// Runs a loop that takes the lease when it is free, until [`Self::resign`]. Never ends.
    pub async fn run(&self, lead: impl Future<Output = ()>) {
        self.resigned.run_until_cancelled(lead).await;
        std::future::pending::<()>().await;
    }

    /// This replica as a candidate that has not read the lease yet.
    #[must_use]
    pub fn candidate(&self) -> Candidate<'_> {
        Candidate {
            lease: self,
            seen: None,
        }
    }

    /// The register of the lease. `None`: it was never taken.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn read(&self) -> Result<Option<Register>, store::Error> {
        self.table.read_register(self.register).await
    }

    /// Names this replica as the holder in a register's values.
    pub fn claim(&self, values: &mut BTreeMap<String, String>) {
        values.insert(OWNER.to_owned(), self.name.clone());
    }

    /// Takes or renews the lease over the version that was found, and writes these values
    /// with it. `None`: another replica has written the register.
    ///
    /// # Errors
    /// The table could not be written.
    pub async fn write(
        &self,
        found: Option<u64>,
        mut values: BTreeMap<String, String>,
    ) -> Result<Option<HeldLease>, store::Error> {
        self.claim(&mut values);
        let swap = self.table.swap_register(self.register, found, &values);
        Ok(swap.await?.map(HeldLease::written_now))
    }

    /// Stops the loop, and releases the lease if this replica holds it, so that no other
    /// replica has to wait for the takeover time.
    pub async fn resign(&self) {
        self.resigned.cancel();
        if let Err(error) = self.release().await {
            tracing::warn!(%error, lease = self.register, "the lease was not released");
        }
    }

    async fn release(&self) -> Result<(), store::Error> {
        // The holder's last write may still be in progress, and be applied first.
        for _ in 0..RELEASE_ATTEMPTS {
            let Some(Register {
                version,
                mut values,
            }) = self.read().await?
            else {
                return Ok(());
            };
            if values.get(OWNER).is_none_or(|owner| *owner != self.name) {
                return Ok(());
            }
            values.insert(OWNER.to_owned(), String::new());
            let swap = self
                .table
                .swap_register(self.register, Some(version), &values);
            if swap.await?.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A replica that waits for a lease.
pub struct Candidate<'a> {
    lease: &'a LeaderLease,
    /// The version of the last read, and the time since which it is unchanged.
    seen: Option<(u64, Instant)>,
}

impl Candidate<'_> {
    /// Whether the lease is free: never taken, released, held by this replica, or not written
    /// for the takeover time.
    pub fn may_take(&mut self, register: Option<&Register>) -> bool {
        let Some(register) = register else {
            return true;
        };
        let owner = register.values.get(OWNER);
        if owner.is_none_or(|owner| owner.is_empty() || *owner == self.lease.name) {
            return true;
        }
        match self.seen {
            Some((version, since)) if version == register.version => {
                since.elapsed() >= self.lease.takeover
            }
            _ => {
                self.seen = Some((register.version, Instant::now()));
                false
            }
        }
    }

    /// Forgets the version that was read.
    pub fn forget(&mut self) {
        self.seen = None;
    }
}
