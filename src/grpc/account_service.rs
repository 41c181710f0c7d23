//! The gRPC service: one DynamoDB client and one Momento client, and the parts that use them.

use std::sync::Arc;

use super::{
    MAX_BATCH_REQUEST_BYTES, WatchLimits, memory_budget::MemoryBudget, middleware::FlowKey,
    share_limit::ShareLimit,
};
use crate::{
    cache::MomentoClient,
    coherence::{Coherence, CoherenceSettings},
    proto::account_v1::account_service_server::AccountServiceServer,
    service::Accounts,
    store::DynamoDb,
};

/// Most WatchChanges streams of one replica.
const MAX_WATCHERS: usize = 100;
/// Most WatchChanges streams of one caller in a replica or, if callers have no names, of one
/// connection.
const MAX_WATCHERS_PER_CALLER: usize = 25;

/// The settings of the service.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    /// The coherent cache.
    pub coherence: CoherenceSettings,
    /// Bounds of WatchChanges streams.
    pub watch: WatchLimits,
}

/// The gRPC service, with the one DynamoDB client and the one Momento client of the process.
/// Clones share them.
#[derive(Clone)]
pub struct AccountService {
    table: DynamoDb,
    cache: MomentoClient,
    coherence: Coherence,
    pub(super) accounts: Accounts,
    pub(super) watch: WatchLimits,
    pub(super) watchers: Arc<ShareLimit<FlowKey>>,
    pub(super) memory_budget: Arc<MemoryBudget>,
}

impl AccountService {
    /// Serves the accounts in `table`, cached in `cache`. Does no I/O.
    #[must_use]
    pub fn new(table: DynamoDb, cache: MomentoClient, settings: ServiceSettings) -> Self {
        let coherence = Coherence::new(&table, &cache, &settings.coherence);
        Self {
            accounts: Accounts::new(table.clone(), &coherence),
            coherence,
            table,
            cache,
            watch: settings.watch,
            watchers: ShareLimit::new(MAX_WATCHERS, MAX_WATCHERS_PER_CALLER),
            memory_budget: Arc::new(MemoryBudget::new()),
        }
    }

    /// The DynamoDB client.
    #[must_use]
    pub fn table(&self) -> &DynamoDb {
        &self.table
    }

    /// The use cases.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The Momento client.
    #[must_use]
    pub fn cache(&self) -> &MomentoClient {
        &self.cache
    }

    /// The coherent cache, for the loops that run beside calls.
    #[must_use]
    pub fn coherence(&self) -> &Coherence {
        &self.coherence
    }

    /// The service for a tonic server, with the limits of batches.
    #[must_use]
    pub fn into_server(self) -> AccountServiceServer<Self> {
        AccountServiceServer::new(self).max_decoding_message_size(MAX_BATCH_REQUEST_BYTES)
    }
}
