//! One cache entry, and the requests that change it.

/// The unique mark of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nonce {
    pub client: usize,
    pub number: u8,
}

/// The entry of the cache under the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cell {
    Empty,
    Lease(Nonce),
    Fence(Nonce),
    /// The version of the record in the table at the time of the read. Version 0 is the
    /// absence of the record.
    Value(u8),
}

/// A request that changes the entry. Once sent, it may be executed late, or
/// never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    SetIfAbsent(Cell),
    SetIfEqual {
        expected: Cell,
        value: Cell,
    },
    /// `SetIfNotEqual` of a value with a unique nonce, and plain `Set`.
    Overwrite(Cell),
    Delete,
}

impl Request {
    /// Executes the request as one step. Returns whether it was stored.
    pub fn execute(self, cell: &mut Cell) -> bool {
        let new = match self {
            Self::SetIfAbsent(value) => (*cell == Cell::Empty).then_some(value),
            Self::SetIfEqual { expected, value } => (*cell == expected).then_some(value),
            Self::Overwrite(value) => Some(value),
            Self::Delete => Some(Cell::Empty),
        };
        if let Some(new) = new {
            *cell = new;
        }
        new.is_some()
    }
}

/// The promises of the protocol so far, and their violations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// Whether reads must be monotonic.
    is_monotonic: bool,
    /// The newest version that was acknowledged, or revealed by a write that
    /// changed nothing.
    pub acknowledged: u8,
    /// The newest version that a read returned.
    pub returned: u8,
    /// A read returned an older version than one that was acknowledged before it began.
    pub is_stale: bool,
    /// A read returned an older version than one that was returned before it began.
    pub went_back: bool,
}

/// The promises at the start of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Floor {
    acknowledged: u8,
    returned: u8,
}

impl Ledger {
    pub fn new(is_monotonic: bool) -> Self {
        Self {
            is_monotonic,
            acknowledged: 0,
            returned: 0,
            is_stale: false,
            went_back: false,
        }
    }

    pub fn floor(self) -> Floor {
        Floor {
            acknowledged: self.acknowledged,
            returned: self.returned,
        }
    }

    pub fn acknowledge(&mut self, version: u8) {
        self.acknowledged = self.acknowledged.max(version);
    }

    pub fn return_read(&mut self, version: u8, floor: Floor) {
        self.is_stale |= version < floor.acknowledged;
        if self.is_monotonic {
            self.went_back |= version < floor.returned;
            self.returned = self.returned.max(version);
        }
    }
}
