//! tokenkeeper hands out, reserves and refreshes users' OAuth tokens for source-code hosts.

pub mod clock;
pub mod provider;
pub mod secret;
