//! The duty to settle a delivery. Each message in hand has one, and dropping it settles the delivery at the latest.

use std::thread;

use lapin::types::DeliveryTag;

use super::acks::{Acks, Disposition};
use crate::telemetry::{self, Panicking};

/// An unsettled delivery. When it is dropped, the message goes back to the queue. So a panic neither keeps the message from
/// other workers nor holds up the acks of later messages.
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

    pub(super) fn settle(mut self, disposition: Disposition) {
        self.due = false;
        self.acks.settle(self.tag, disposition);
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
            self.acks.settle(self.tag, Disposition::Reject);
        }
    }
}
