//! tokenkeeper hands out, reserves and refreshes users' OAuth tokens for source-code hosts.
//!
//! The modules in reading order are a message's way through the program: [`worker`] consumes, [`message`]
//! decodes, [`handle`] tells the story of one request, [`decide`] decides, [`store`] reserves, [`refresh`] and
//! [`oauth`] refresh, [`broker`] publishes the reply. `ARCHITECTURE.md` has the map.

pub mod admin;
pub mod broker;
pub mod bulkhead;
pub mod clock;
pub mod database;
pub mod decide;
pub mod escape;
pub mod events;
pub mod flags;
pub mod handle;
pub mod housekeeping;
pub mod lifecycle;
pub mod limits;
pub mod message;
pub mod oauth;
pub mod open_files;
pub mod parking;
pub mod partitions;
pub mod provider;
pub mod providers;
pub mod refresh;
pub mod retry;
pub mod secret;
pub mod services;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod token;
pub mod worker;
