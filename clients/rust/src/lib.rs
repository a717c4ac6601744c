#![doc = include_str!("../README.md")]

mod ask;
mod client;
mod connect;
mod error;
mod events;
mod kind;
mod link;
mod options;
mod pending;
mod progress;
mod reply;
mod requests;
mod seal;
mod words;

pub mod wire;

pub use lapin;
pub use rustls;
pub use secrecy::{ExposeSecret, SecretString};

pub use self::client::Client;
pub use self::error::{Cause, Error, Refusal, UnusableReply};
pub use self::events::{Event, EventKind, Events};
pub use self::kind::MessageKind;
pub use self::options::{ConnectFuture, Options};
pub use self::progress::{Progress, Published};
pub use self::reply::{Body, Report, Stored, Token, Workspace, WorkspaceToken};
pub use self::requests::{ReportRequest, StoreRequest, TokenRequest, WorkspaceRequest};
pub use self::seal::DeploymentKey;
pub use self::words::{ErrorCode, Refresh, RefreshCause, ReportResult, Warning};
