//! The retry budget: while most calls fail, retries are limited to a part of the calls.

use std::sync::atomic::{AtomicU32, Ordering};

/// Tokens of a full budget: enough for a hundred retries in a row.
const FULL: u32 = 500;
/// Cost of a retry, as in the AWS SDK's own budgets.
const COST: u32 = 5;

/// A token bucket: retries cost tokens, successes earn them.
#[derive(Debug)]
pub(super) struct Budget(AtomicU32);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU32::new(FULL))
    }
}

impl Budget {
    /// Pays for a retry. `false` if too few tokens are left.
    pub(super) fn pay(&self) -> bool {
        let spend = |tokens: u32| tokens.checked_sub(COST);
        let paid = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
        paid.is_ok()
    }

    /// Earns a token for a successful call.
    pub(super) fn earn(&self) {
        let add = |tokens: u32| (tokens < FULL).then_some(tokens + 1);
        // A full budget earns nothing.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_end_with_the_budget_and_successes_refill_it() {
        let budget = Budget::default();
        assert_eq!((0..1000).filter(|_| budget.pay()).count(), 100);
        for _ in 0..COST {
            assert!(!budget.pay());
            budget.earn();
        }
        assert!(budget.pay());
        assert!(!budget.pay());
        for _ in 0..10_000 {
            budget.earn();
        }
        assert_eq!((0..1000).filter(|_| budget.pay()).count(), 100);
    }
}
