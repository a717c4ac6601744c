//! The protocol.
pub mod properties;
pub mod protocol;
pub mod provider;
pub mod rules;
pub mod state;
mod statements;
mod step;

pub use self::protocol::Protocol;
pub use self::provider::RefreshTokens;
pub use self::rules::{Rules, SameLine};
pub use self::step::{Action, Answer, Step};
