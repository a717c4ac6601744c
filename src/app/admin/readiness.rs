//! What `/readyz` says: what a starting worker waits for, and then its health.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::Health;

/// Served from the first moment on, so that a worker that waits says for what.
#[derive(Debug, Default)]
pub struct Readiness {
    waits_for: Mutex<Option<String>>,
    health: OnceLock<Arc<Health>>,
}

impl Readiness {
    /// The worker cannot go on because of this.
    pub fn waits_for(&self, problem: String) {
        *self.waits_for.lock() = Some(problem);
    }

    /// From here on the worker's health tells.
    pub fn has_started(&self, health: &Arc<Health>) {
        // It starts once.
        let _ = self.health.set(Arc::clone(health));
    }

    /// Empty if the worker is ready.
    pub(super) fn problems(&self) -> Vec<String> {
        match self.health.get() {
            Some(health) => health.problems(),
            None => {
                vec![self.waits_for.lock().clone().unwrap_or_else(|| "worker: it is starting".to_owned())]
            }
        }
    }
}
