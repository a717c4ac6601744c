//! The duty to settle a delivery: whoever has a message in hand has one, and it is done by dropping at the latest.

use std::thread;

use lapin::types::DeliveryTag;

use super::acks::{Acks, Verdict};
use crate::telemetry::{self, Panicking};

/// A delivery that is not settled. Dropped without a word, it gives the message back: a bug that its handling meets must
/// not keep it from the others, nor the acks of those behind it from standing for many.
#[derive(Debug)]
pub(super) struct Settlement {
    acks: Acks,
    tag: DeliveryTag,
    due: bool,
}

impl Settlement {
    pub(super) const fn new(acks: Acks, tag: DeliveryTag) -> Self {
        Self { acks, tag, due: true }
    }

    pub(super) fn settle(mut self, verdict: Verdict) {
        self.due = false;
        self.acks.settle(self.tag, verdict);
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if !self.due {
            return;
        }
        // Otherwise the process ends, which gives everything back.
        if thread::panicking() {
            telemetry::panicked(Panicking::Message);
            self.acks.settle(self.tag, Verdict::Reject);
        }
    }
}
