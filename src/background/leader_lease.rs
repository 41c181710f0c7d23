//! The leader lease: a register by which one replica at a time runs a loop. The holder
//! writes it at intervals. Another replica takes it when the writes stop.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::store::{self, Register, Registers};

/// Name of the value that says who holds a lease; empty if it was given up.
const OWNER: &str = "owner";
/// Times that a lease is tried to be given up.
const GIVE_UP_ATTEMPTS: usize = 3;

/// A replica that would take a lease.
pub struct Candidate {
    /// This replica, among all that ever were.
    pub name: String,
    /// How long a lease has to stand still before another replica takes it.
    pub takeover: Duration,
    /// The version that was seen last, and since when.
    seen: Option<(u64, Instant)>,
}

impl Candidate {
    /// A replica that has seen nothing yet.
    #[must_use]
    pub fn new(name: String, takeover: Duration) -> Self {
        Self {
            name,
            takeover,
            seen: None,
        }
    }

    /// Whether nobody else holds the lease: it was never taken, was given up, is
    /// this replica's, or has stood still for long enough.
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

    /// Forgets what was seen.
    pub fn forget(&mut self) {
        self.seen = None;
    }
}

/// Says in a register's values who holds the lease.
pub fn claim(values: &mut BTreeMap<String, String>, name: &str) {
    values.insert(OWNER.to_owned(), name.to_owned());
}

/// Gives a lease up, if it is held under this name, so that nobody need wait for
/// it.
///
/// # Errors
/// The table could not be read or written.
pub async fn give_up(
    registers: &dyn Registers,
    register: &str,
    name: &str,
) -> Result<(), store::Error> {
    // What the holder wrote last may still be under way, and come first.
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
