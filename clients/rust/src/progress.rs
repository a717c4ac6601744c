//! How far a message has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Whether the broker has a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It was not sent.
    No,
    /// It was sent, and the broker has not confirmed it.
    Perhaps,
    /// The broker confirmed it: a worker handles it, unless its time is over before.
    Yes,
}

/// How far a request has come, for somebody who may stop waiting for it. Clones show the same. Of several requests that report to
/// one, it shows the last step of any.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU8>);

impl Progress {
    /// Of a request that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the broker has the message. Of one that is asked again after a lost connection: the last time it was sent.
    pub fn published(&self) -> Published {
        match self.0.load(Ordering::Relaxed) {
            0 => Published::No,
            1 => Published::Perhaps,
            _ => Published::Yes,
        }
    }

    pub(crate) fn set(&self, published: Published) {
        self.0.store(published as u8, Ordering::Relaxed);
    }
}

/// How far one request has come: by its own record it decides whether it may be sent again. The caller's record shows the same,
/// unless another request reports to it as well.
#[derive(Debug, Clone, Default)]
pub(crate) struct Steps {
    own: Progress,
    shown: Progress,
}

impl Steps {
    pub(crate) fn new(shown: &Progress) -> Self {
        Self { own: Progress::new(), shown: shown.clone() }
    }

    pub(crate) fn published(&self) -> Published {
        self.own.published()
    }

    pub(crate) fn set(&self, published: Published) {
        self.own.set(published);
        self.shown.set(published);
    }
}
