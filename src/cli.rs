//! One file for each command, and what they share: exit codes, output, confirmations and interruptions.

mod confirm;
mod ending;
mod exchange;
mod interruption;
mod output;
mod relative;
mod reply;
mod requester;

pub(crate) mod audit;
pub(crate) mod credential;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod fake;
pub(crate) mod housekeeping;
pub(crate) mod keys;
pub(crate) mod login;
pub(crate) mod migrate;
pub(crate) mod provider;
pub(crate) mod request;
pub(crate) mod restore;
pub(crate) mod schema;
pub(crate) mod token;
pub(crate) mod worker;
pub(crate) mod workspace_start;

pub(crate) use self::ending::{Ending, Failure};
