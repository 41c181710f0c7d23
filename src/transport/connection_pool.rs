//! The connection pool of a listener. It selects the connection to evict when a new one needs
//! room, or when too many bytes are charged.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use foldhash::fast::RandomState;
use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};

use crate::{
    auth::Name,
    telemetry::{CONNECTIONS, CONNECTIONS_EVICTED, CONNECTIONS_REFUSED},
};

/// Bytes charged to all connections of a listener, above which the connection with the
/// largest charge is evicted.
const MAX_HELD: usize = 48 * 1024 * 1024;
/// Bytes charged to one connection, above which it starts no large calls.
const MUCH_HELD: usize = 12 * 1024 * 1024;

/// Bounds of the connections of one listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most authenticated connections. When they are all open, the caller with the most
    /// connections loses its oldest one to a caller with fewer.
    pub authenticated: usize,
    /// Most unauthenticated connections, counted apart. A new one evicts the oldest.
    pub unauthenticated: usize,
    /// Time from accept to the first admitted call, which authenticates the connection.
    pub authentication: Duration,
    /// Time from accept after which a connection is closed, with its running calls.
    pub lifetime: Duration,
}

impl Limits {
    /// The limits of a listener whose connections are never authenticated.
    #[must_use]
    pub const fn never_authenticated(open: usize, lifetime: Duration) -> Self {
        Self {
            authenticated: usize::MAX,
            unauthenticated: open,
            authentication: lifetime,
            lifetime,
        }
    }
}

/// The open connections of one listener.
#[derive(Debug)]
pub(super) struct Pool {
    limits: Limits,
    state: Mutex<PoolState>,
    /// Bytes charged to all connections.
    held: AtomicUsize,
}

/// Connections by number. A greater number is a younger connection.
type RegisteredConnections = BTreeMap<u64, Arc<Registration>>;

#[derive(Debug, Default)]
struct PoolState {
    unauthenticated: RegisteredConnections,
    /// Connections by the caller that authenticated them. `None`: callers have no names.
    authenticated: HashMap<Option<Name>, RegisteredConnections, RandomState>,
    /// Sum of the sizes in `authenticated`.
    count: usize,
    /// Evicted connections with a charge.
    leaving: Vec<Arc<Registration>>,
}

/// The entry of a connection in its pool.
#[derive(Debug)]
pub(super) struct Registration {
    pool: Arc<Pool>,
    number: u64,
    /// One of the constants below. Written only while the pool is locked.
    status: AtomicU8,
    /// Set once the connection is authenticated.
    caller: OnceLock<Option<Name>>,
    /// Bytes charged to the connection.
    held: AtomicUsize,
    evicted: AtomicWaker,
}

const UNAUTHENTICATED: u8 = 0;
const AUTHENTICATED: u8 = 1;
const EVICTED: u8 = 2;

/// The caller has too many connections for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// Bytes charged to a connection until this is dropped, such as a response that its client
/// has not received.
#[derive(Debug)]
pub struct MemoryCharge {
    connection: Option<Arc<Registration>>,
    bytes: usize,
}

/// A connection in the pool, until this is dropped.
#[derive(Debug)]
pub(super) struct OpenConnection(pub(super) Arc<Registration>);

impl Pool {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
            held: AtomicUsize::new(0),
        })
    }

    /// Registers a new connection.
    ///
    /// # Errors
    /// [`TooMany`]: all authenticated connections are open, and none can be evicted.
    pub(super) fn join(self: &Arc<Self>) -> Result<OpenConnection, TooMany> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut state = self.lock();
        if state.count >= self.limits.authenticated && !state.has_unequal_callers() {
            metrics::counter!(CONNECTIONS_REFUSED).increment(1);
            return Err(TooMany);
        }
        if state.unauthenticated.len() >= self.limits.unauthenticated {
            state.evict_unauthenticated();
        }
        let registration = Arc::new(Registration {
            pool: self.clone(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            status: AtomicU8::new(UNAUTHENTICATED),
            caller: OnceLock::new(),
            held: AtomicUsize::new(0),
            evicted: AtomicWaker::new(),
        });
        let number = registration.number;
        state.unauthenticated.insert(number, registration.clone());
        metrics::gauge!(CONNECTIONS).increment(1);
        Ok(OpenConnection(registration))
    }

    /// Evicts the oldest unauthenticated connection, to free a file descriptor.
    pub(super) fn evict_one(&self) {
        self.lock().evict_unauthenticated();
    }

    /// Evicts connections until the charge of the others is within the limit.
    fn relieve(&self) {
        let mut state = self.lock();
        state.leaving.retain(|it| it.held() > 0);
        let leaving: usize = state.leaving.iter().map(|it| it.held()).sum();
        let mut held = self.held.load(Ordering::Relaxed).saturating_sub(leaving);
        while held > MAX_HELD
            && let Some(heaviest) = state.take_heaviest()
        {
            held = held.saturating_sub(heaviest.held());
            state.evict(heaviest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock()
    }
}

impl PoolState {
    /// Whether a caller with a name has several connections.
    fn has_unequal_callers(&self) -> bool {
        let mut callers = self.authenticated.iter();
        callers.any(|(name, connections)| name.is_some() && connections.len() > 1)
    }

    fn evict_unauthenticated(&mut self) {
        if let Some((_, oldest)) = self.unauthenticated.pop_first() {
            self.evict(oldest);
        }
    }

    fn evict(&mut self, connection: Arc<Registration>) {
        connection.evict();
        if connection.held() > 0 {
            self.leaving.push(connection);
        }
    }

    fn authenticate(
        &mut self,
        limits: Limits,
        connection: &Arc<Registration>,
        caller: Option<&Name>,
    ) -> Result<(), TooMany> {
        if !self.unauthenticated.contains_key(&connection.number) {
            // The connection was evicted or authenticated meanwhile.
            return Ok(());
        }
        if self.count >= limits.authenticated && !self.make_room(caller) {
            metrics::counter!(CONNECTIONS_REFUSED).increment(1);
            return Err(TooMany);
        }
        self.unauthenticated.remove(&connection.number);
        let caller = connection.caller.get_or_init(|| caller.cloned());
        let of_caller = self.authenticated.entry(caller.clone()).or_default();
        of_caller.insert(connection.number, connection.clone());
        self.count += 1;
        connection.status.store(AUTHENTICATED, Ordering::Release);
        Ok(())
    }

    /// Evicts the oldest connection of the caller with the most, unless `caller` would then
    /// have as many.
    fn make_room(&mut self, caller: Option<&Name>) -> bool {
        let caller = caller.cloned();
        let own = self.authenticated.get(&caller).map_or(0, BTreeMap::len);
        let most = self.authenticated.values_mut().max_by_key(|it| it.len());
        let Some(most) = most.filter(|most| most.len() > own + 1) else {
            return false;
        };
        if let Some((_, oldest)) = most.pop_first() {
            self.count -= 1;
            self.evict(oldest);
        }
        true
    }

    /// Removes and returns the connection with the largest charge, of the caller with the
    /// largest charge. Unauthenticated connections count as one caller's.
    fn take_heaviest(&mut self) -> Option<Arc<Registration>> {
        let callers = self.authenticated.values_mut();
        let callers = callers.chain([&mut self.unauthenticated]);
        let of_caller = callers.max_by_key(|of_caller| -> usize {
            let connections = of_caller.values();
            connections.map(|connection| connection.held()).sum()
        })?;
        let heaviest = of_caller.values().max_by_key(|it| it.held());
        let heaviest = heaviest.filter(|it| it.held() > 0)?.clone();
        of_caller.remove(&heaviest.number);
        self.count -= usize::from(heaviest.is_authenticated());
        Some(heaviest)
    }

    fn remove(&mut self, connection: &Registration) {
        let Some(caller) = connection.caller.get() else {
            self.unauthenticated.remove(&connection.number);
            return;
        };
        let Some(of_caller) = self.authenticated.get_mut(caller) else {
            return;
        };
        if of_caller.remove(&connection.number).is_some() {
            self.count -= 1;
        }
        if of_caller.is_empty() {
            self.authenticated.remove(caller);
        }
    }
}

impl Registration {
    /// The number of the connection, unique in this process.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.status.load(Ordering::Acquire) == AUTHENTICATED
    }

    /// Authenticates the connection: from now on it counts as one of this caller.
    ///
    /// # Errors
    /// [`TooMany`]: the connection stays unauthenticated.
    pub(super) fn authenticate(self: &Arc<Self>, caller: Option<&Name>) -> Result<(), TooMany> {
        if self.status.load(Ordering::Acquire) != UNAUTHENTICATED {
            return Ok(());
        }
        let mut state = self.pool.lock();
        state.authenticate(self.pool.limits, self, caller)
    }

    fn hold(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        let before = self.pool.held.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > MAX_HELD {
            self.pool.relieve();
        }
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether the connection has too large a charge to start a large call.
    pub(super) fn has_large_charge(&self) -> bool {
        self.held() > MUCH_HELD
    }

    /// Waits until the connection is evicted.
    pub(super) fn poll_evicted(&self, context: &mut Context<'_>) -> Poll<()> {
        self.evicted.register(context.waker());
        if self.status.load(Ordering::Acquire) == EVICTED {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn evict(&self) {
        metrics::counter!(CONNECTIONS_EVICTED).increment(1);
        self.status.store(EVICTED, Ordering::Release);
        self.evicted.wake();
    }
}

impl MemoryCharge {
    /// A charge without bytes yet.
    pub(super) fn new(connection: Option<Arc<Registration>>) -> Self {
        Self {
            connection,
            bytes: 0,
        }
    }

    /// Another charge to the same connection, without bytes yet.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::new(self.connection.clone())
    }

    /// Charges more bytes. If the charge of all connections is too large, those with the
    /// largest charges are evicted.
    pub fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        if let Some(connection) = &self.connection {
            connection.hold(bytes);
        }
    }
}

impl Drop for MemoryCharge {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.held.fetch_sub(self.bytes, Ordering::Relaxed);
            connection
                .pool
                .held
                .fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        metrics::gauge!(CONNECTIONS).decrement(1);
        let Self(registration) = self;
        registration.pool.lock().remove(registration);
    }
}

#[cfg(test)]
mod tests;
