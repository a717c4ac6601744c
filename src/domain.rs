//! What the rest is about: providers, tokens, time, secrets, and the decision what to do with a stored token.
//!
//! Nothing here asks the network, the database or the broker.

pub mod clock;
pub mod decide;
pub mod escape;
pub mod expected;
pub mod finding;
pub mod key_use;
pub mod network;
pub mod pattern;
pub mod plain;
pub mod problem;
pub mod provider;
pub mod sealed_box;
pub mod secret;
pub mod text;
pub mod token;
