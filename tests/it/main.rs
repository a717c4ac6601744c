//! tokenkeeper as its users meet it: a real broker, real databases, a real token endpoint, real `git`.
//!
//! One binary, a file a behaviour. Whatever is said of the database is tested on each kind of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is how a test fails")]

mod harness;

mod admin;
mod at_rest;
mod audit;
mod broker_loss;
mod bulkhead;
mod circuit;
mod claims;
mod cli;
mod clock;
mod crash;
mod database_loss;
mod dead_letters;
mod doctor;
mod endless_answers;
mod errors;
mod events;
mod every_state;
mod first_errors;
mod flags;
mod frozen;
mod git_clone;
mod graces;
mod grouped_refreshes;
mod guards;
mod hostile;
mod housekeeping;
mod keys;
mod known;
mod logs;
mod malformed;
mod mass_refusal;
mod metrics;
mod migrations;
mod mixed_claims;
mod no_secrets;
mod nodelay;
mod one_user;
mod open_files;
mod own_time;
mod panics;
mod parking;
mod partitions;
mod poison;
mod provider_addresses;
mod publisher_limit;
mod publishers;
mod put_off;
mod refresh_failures;
mod refresh_once;
mod refused_replies;
mod replies;
mod reply_to;
mod reports;
mod sealed;
mod texts;
mod token_request;
mod token_store;
mod topology;
mod unknown_fields;
mod waiting;
mod workspace_start;
