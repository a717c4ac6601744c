//! tokenkeeper hands out, reserves and refreshes users' OAuth tokens for source-code hosts.
//!
//! The modules in reading order are a message's way through the program: [`worker`] consumes, [`contract`] decodes, [`requests`]
//! tells the story of one request, [`domain::decide`] decides, [`store`] reserves, [`refresh`] and [`oauth`] refresh, [`broker`]
//! publishes the reply. `ARCHITECTURE.md` has the map.

pub mod app;
pub mod broker;
pub mod contract;
pub mod domain;
pub mod flags;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod housekeeping;
pub mod journal;
pub mod limits;
pub mod oauth;
pub mod parking;
pub mod private_file;
pub mod refresh;
pub mod requests;
pub mod retry;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod worker;
