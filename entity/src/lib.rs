//! SeaORM entities of tokenkeeper: rows, and nothing else.
//!
//! Every date is a `BIGINT` of milliseconds since the Unix epoch: MariaDB's and MySQL's own date types cut
//! milliseconds off. Every `*_sealed` column holds ciphertext (see `secret.rs` of the worker).

// The columns are the interface between workers of all versions.
#![warn(missing_docs)]

pub mod auth_provider;
pub mod duty;
pub mod identity;
pub mod journal_mark;
pub mod key_canary;
pub mod token_entry;
pub mod worker;
