//! A replica's view of a register of the table.
//!
//! A replica acts on its view for [`Timing::view_ttl`] from when it sent the read, by its own
//! monotonic clock. A replica that has waited for [`Timing::settle`] since it received a state
//! knows that no replica acts on an older one.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;
use tokio::{sync::Mutex, time::Instant};

use super::settings::Timing;
use crate::store::{self, Registers};

/// Most attempts to read or create the register, which may be deleted meanwhile.
const MAX_LOADS: u32 = 3;

/// The content of a register.
pub(super) trait RegisterState: Sized + Send + Sync {
    /// The register's name.
    const NAME: &'static str;

    /// The content with which a missing register is created. Replicas may still act on one that was
    /// deleted.
    fn recreated() -> Self;

    /// Parses the register's values. `former` is the state that this replica received before.
    fn parse(values: &BTreeMap<String, String>, former: Option<&Self>) -> Option<Self>;

    /// The register's values.
    fn values(&self) -> BTreeMap<String, String>;
}

/// A replica's view of a register.
#[derive(Debug)]
pub(super) struct View<S> {
    pub(super) state: S,
    /// The version of the register.
    version: u64,
    /// The values of the register.
    pub(super) values: BTreeMap<String, String>,
    /// When the read of the register was sent.
    sent: Instant,
    /// When this replica first received this state.
    received: Instant,
}

impl<S> View<S> {
    /// Whether both views are of the same state.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.version, &self.values) == (other.version, &other.values)
    }
}

/// A register of the deployment, and this replica's view of it.
pub(super) struct RegisterView<S> {
    registers: Arc<dyn Registers>,
    timing: Timing,
    view: RwLock<Option<Arc<View<S>>>>,
    /// Locked while the register is read or written, so that views are accepted in the
    /// order of their requests.
    access: Mutex<()>,
}

impl<S: RegisterState> RegisterView<S> {
    pub(super) fn new(registers: Arc<dyn Registers>, timing: Timing) -> Self {
        Self {
            registers,
            timing,
            view: RwLock::default(),
            access: Mutex::default(),
        }
    }

    /// The view, if it is valid.
    pub(super) fn current(&self) -> Option<Arc<View<S>>> {
        self.with_valid(Instant::now(), Arc::clone)
    }

    /// The result of `use_view` for the view, if it is valid at `now`.
    pub(super) fn with_valid<T>(
        &self,
        now: Instant,
        use_view: impl FnOnce(&Arc<View<S>>) -> T,
    ) -> Option<T> {
        let view = self.view.read();
        let view = view.as_ref()?;
        (now < view.sent + self.timing.view_ttl).then(|| use_view(view))
    }

    /// A valid view.
    ///
    /// # Errors
    /// The table could not be read.
    pub(super) async fn view(&self) -> Result<Arc<View<S>>, store::Error> {
        match self.current() {
            Some(view) => Ok(view),
            None => self.refresh().await,
        }
    }

    /// The time from which no replica acts on an older view than this one.
    pub(super) fn settled_at(&self, view: &View<S>) -> Instant {
        view.received + self.timing.settle()
    }

    /// Reads the register, unless a concurrent read that was sent later has done so.
    ///
    /// # Errors
    /// The table could not be read.
    pub(super) async fn refresh(&self) -> Result<Arc<View<S>>, store::Error> {
        let wanted = Instant::now();
        let _access = self.access.lock().await;
        match self.current() {
            Some(view) if view.sent >= wanted => Ok(view),
            _ => self.load().await,
        }
    }

    /// Replaces the state of this view. Returns the current view, also if another replica changed
    /// the register.
    ///
    /// # Errors
    /// The register could not be written, or may be written later.
    pub(super) async fn swap(
        &self,
        from: &View<S>,
        state: &S,
    ) -> Result<Arc<View<S>>, store::Error> {
        let _access = self.access.lock().await;
        if let Some(current) = self.current()
            && !current.is_same(from)
        {
            return Ok(current);
        }
        let sent = Instant::now();
        let values = state.values();
        let swap = self
            .registers
            .swap_register(S::NAME, Some(from.version), &values);
        match swap.await? {
            Some(version) => self.accept(version, values, sent),
            None => self.load().await,
        }
    }

    /// Creates the register of a new table.
    ///
    /// # Errors
    /// The register could not be written.
    pub(super) async fn begin(&self, state: &S) -> Result<(), store::Error> {
        let values = state.values();
        let begun = self.registers.swap_register(S::NAME, None, &values).await;
        begun.map(drop)
    }

    async fn load(&self) -> Result<Arc<View<S>>, store::Error> {
        for _ in 0..MAX_LOADS {
            let sent = Instant::now();
            if let Some(register) = self.registers.read_register(S::NAME).await? {
                return self.accept(register.version, register.values, sent);
            }
            self.begin(&S::recreated()).await?;
        }
        Err(malformed(S::NAME))
    }

    fn accept(
        &self,
        version: u64,
        values: BTreeMap<String, String>,
        sent: Instant,
    ) -> Result<Arc<View<S>>, store::Error> {
        let mut current = self.view.write();
        let former = current.as_ref();
        let state = S::parse(&values, former.map(|former| &former.state));
        let mut new = View {
            state: state.ok_or_else(|| malformed(S::NAME))?,
            version,
            values,
            sent,
            received: Instant::now(),
        };
        if let Some(former) = former.filter(|former| former.is_same(&new)) {
            new.received = former.received;
        }
        let new = Arc::new(new);
        *current = Some(new.clone());
        Ok(new)
    }
}

fn malformed(register: &str) -> store::Error {
    store::Error::new(
        store::ErrorKind::Malformed,
        format!("register {register} has no valid values"),
    )
}
