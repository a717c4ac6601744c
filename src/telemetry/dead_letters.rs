//! Events of the dead letters that the broker itself lays there.

use std::fmt::Display;

use metrics::{counter, describe_counter};

const SEALED: &str = "tokenkeeper_dead_letters_sealed_total";

/// One that had come in clear was sealed.
pub fn dead_letter_sealed() {
    counter!(SEALED).increment(1);
}

/// All of them were gone through, and so many sealed.
pub fn dead_letters_sealed(count: u32) {
    tracing::info!(count, "sealed what the broker had laid into the dead letters");
}

/// They could not be gone through; they are looked at again in a minute.
pub fn dead_letters_not_sealed(error: &dyn Display) {
    tracing::warn!(%error, "cannot seal what the broker lays into the dead letters");
}

/// An operator, or another worker, has them; they are looked at again in a minute.
pub fn dead_letters_in_use() {
    tracing::debug!("somebody else has the dead letters");
}

/// There are so many that none is looked at.
pub fn dead_letters_left_unsealed(count: u32, at_most: u32) {
    tracing::warn!(
        count,
        at_most,
        "too many dead letters to go through: what the broker lays there stays in clear until they are fewer"
    );
}

pub(super) fn describe() {
    describe_counter!(SEALED, "Dead letters that came by the broker in clear and were sealed afterwards.");
    counter!(SEALED).absolute(0);
}
