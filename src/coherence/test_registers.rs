//! Registers in memory for tests on a paused clock, with slow responses.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use crate::store::{self, Register, Registers};

/// The only register of a table. It records all writes.
#[derive(Default)]
pub(super) struct TestRegisters {
    response_delay: Duration,
    held: Mutex<Option<Register>>,
    writes: Mutex<Vec<(BTreeMap<String, String>, Instant)>>,
}

impl TestRegisters {
    /// The register is absent. Each response comes after this time.
    pub(super) fn slow(response_delay: Duration) -> Self {
        Self {
            response_delay,
            ..Self::default()
        }
    }

    /// The values of each write, and when it was applied.
    pub(super) fn writes(&self) -> Vec<(BTreeMap<String, String>, Instant)> {
        self.writes.lock().unwrap().clone()
    }

    /// The present values.
    pub(super) fn values(&self) -> BTreeMap<String, String> {
        let held = self.held.lock().unwrap();
        held.as_ref()
            .map(|register| register.values.clone())
            .unwrap_or_default()
    }
}

#[async_trait]
impl Registers for TestRegisters {
    async fn table_identity(&self) -> Result<String, store::Error> {
        Ok("table".to_owned())
    }

    async fn read_register(&self, _: &str) -> Result<Option<Register>, store::Error> {
        let held = self.held.lock().unwrap().clone();
        sleep(self.response_delay).await;
        Ok(held)
    }

    async fn swap_register(
        &self,
        _: &str,
        found: Option<u64>,
        values: &BTreeMap<String, String>,
    ) -> Result<Option<u64>, store::Error> {
        let version = {
            let mut held = self.held.lock().unwrap();
            let is_found = held.as_ref().map(|register| register.version) == found;
            is_found.then(|| {
                let version = found.unwrap_or(0) + 1;
                let values = values.clone();
                *held = Some(Register {
                    version,
                    values: values.clone(),
                });
                self.writes.lock().unwrap().push((values, Instant::now()));
                version
            })
        };
        sleep(self.response_delay).await;
        Ok(version)
    }
}
