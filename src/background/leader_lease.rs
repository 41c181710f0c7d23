//! The leader lease: a register by which one replica at a time runs a loop. The holder
//! writes it at intervals. Another replica takes it when the writes stop.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::store::{self, Register, Registers};

/// Name of the value with the holder of a lease. Empty if the lease was released.
const OWNER: &str = "owner";
/// Attempts to release a lease.
const GIVE_UP_ATTEMPTS: usize = 3;

/// A replica that waits for a lease.
pub struct Candidate {
    /// Unique name of this replica.
    pub name: String,
    /// Time without a write after which another replica takes the lease.
    pub takeover: Duration,
    /// The version that was last read, and since when it is unchanged.
    seen: Option<(u64, Instant)>,
}

impl Candidate {
    /// A replica that has not read the lease yet.
    #[must_use]
    pub fn new(name: String, takeover: Duration) -> Self {
        Self {
            name,
            takeover,
            seen: None,
        }
    }

    /// Whether the lease is free: never taken, released, held by this replica, or not written
    /// for [`Self::takeover`].
    pub fn may_take(&mut self, register: Option<&Register>) -> bool {
        let Some(register) = register else {
            return true;
        };
        let owner = register.values.get(OWNER);
        if owner.is_none_or(|owner| owner.is_empty() || *owner == self.name) {
            return true;
        }
        match self.seen {
            Some((version, since)) if version == register.version => {
                since.elapsed() >= self.takeover
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

/// Names the holder of a lease in a register's values.
pub fn claim(values: &mut BTreeMap<String, String>, name: &str) {
    values.insert(OWNER.to_owned(), name.to_owned());
}

/// Releases a lease that is held under this name, so that no replica has to wait for it.
///
/// # Errors
/// The table could not be read or written.
pub async fn give_up(
    registers: &dyn Registers,
    register: &str,
    name: &str,
) -> Result<(), store::Error> {
    // The holder's last write may still be on its way, and be applied first.
    for _ in 0..GIVE_UP_ATTEMPTS {
        let Some(Register {
            version,
            mut values,
        }) = registers.read_register(register).await?
        else {
            return Ok(());
        };
        if values.get(OWNER).is_none_or(|owner| owner != name) {
            return Ok(());
        }
        claim(&mut values, "");
        let swapped = registers.swap_register(register, Some(version), &values);
        if swapped.await?.is_some() {
            return Ok(());
        }
    }
    Ok(())
}
