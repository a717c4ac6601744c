//! Events of encryption keys, and of a process among the others.

use std::fmt::Display;
use std::sync::Once;

/// The process begins to seal with this key: at its start, or because everybody holds it now.
pub fn sealing_begins(key: &str) {
    tracing::info!(key, "what is stored from here on is encrypted with this key");
}

/// Told once for each key. `workers` do not hold it.
pub fn sealing_waits(key: &str, workers: &str) {
    tracing::info!(
        key,
        workers,
        "a newer encryption key waits until these workers have it too; an older one encrypts meanwhile"
    );
}

/// Told once. `workers` are of an older version.
pub fn format_waits(format: i32, workers: &str) {
    tracing::info!(
        format,
        workers,
        "the newer format of encrypted rows waits until these workers are updated; the older one is written meanwhile"
    );
}

/// Their rows are answered as before there were canaries: with an error each.
pub fn keys_dropped(keys: &str) {
    static LINES: Once = Once::new();
    LINES.call_once(|| {
        tracing::warn!(
            keys,
            "rows are left of encryption keys that are not here; their users must log in again, or the keys come back"
        );
    });
}

/// The worker stops.
pub fn keys_unusable(problem: &dyn Display) {
    tracing::error!(%problem, "this worker cannot read what the others store; it stops");
}

/// It is tried again in a moment. Where the database is away, that is told elsewhere.
pub fn worker_not_kept(error: &dyn Display) {
    tracing::debug!(%error, "cannot tell the other workers that this one lives, or ends");
}
