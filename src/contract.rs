//! DECODE, ENCODE: the contract's messages (docs/contract.md, Messages) as types.
//!
//! [`decode`] turns a body into a [`Request`] that holds nothing invalid, or says which field is wrong;
//! [`Reply::encode`] turns an answer into a body. Neither does I/O, and neither puts a value that a publisher
//! sent into an error text: a token in the wrong place must not travel on into a log or a dead letter.

mod clean;
#[cfg(test)]
mod client_tests;
mod clone_url;
mod decode;
mod envelope;
mod error_code;
mod event;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod granted_token;
mod lifetime;
mod redacted;
mod reply;
mod reply_to;
mod request;
mod store_message;
mod unknown_field;
mod warning;

pub use crate::domain::text::{Host, ShortText, UserId, Username, WorkspaceId};
pub use clean::holds_no_secret;
pub use clone_url::{CloneUrl, CloneUrlError, Repository};
pub use decode::{Echo, InvalidRequest, MAX_BODY_BYTES, decode, decode_noting, max_body_bytes};
pub use envelope::{Envelope, PARKED_PAIR_TYPE, Unanswerable};
pub use error_code::ErrorCode;
pub use event::{Event, RefreshCause};
pub use granted_token::{GrantedToken, SealedContent, SealedToken, TokenValue};
pub use lifetime::LifetimeSecs;
pub use redacted::RedactedBody;
pub use reply::{
    ErrorBody, ErrorReason, ErrorReply, Refresh, Reply, ReportReply, ReportResult, Status, StoreReply,
    TokenGrant, TokenReply, WorkspaceStartReply,
};
pub use reply_to::{DIRECT_REPLY_TO, ReplyTo, UnfitReplyTo};
pub use request::{
    MessageKind, ReportRequest, Request, StoredPair, TokenDigest, TokenRequest, Wanted, WorkspaceStartRequest,
};
pub use store_message::{InvalidSeal, SealedStoreRequest, StoreMessage, StoreRequest};
pub use unknown_field::{UnknownField, UnknownFields};
pub use warning::Warning;
