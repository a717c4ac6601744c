//! Limits: how often a publisher may ask, and how many messages may wait for one resource.

pub mod bulkhead;
pub mod publisher;
