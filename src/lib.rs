//! tokenkeeper hands out, reserves and refreshes users' OAuth tokens for source-code hosts.

pub mod clock;
pub mod database;
pub mod decide;
pub mod message;
pub mod provider;
pub mod secret;
pub mod store;
