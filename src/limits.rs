//! Limits: how often a publisher may ask, and how many messages may wait for one thing.

pub mod bulkhead;
pub mod publisher;
