/// What a publisher may not do. Told to the publisher: nothing of it depends on what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the message does not name its publisher, which the AMQP property user_id does")]
    Unnamed,
    #[error("the access rules do not name this publisher; the AMQP property user_id names it")]
    Unlisted,
    #[error("the access rules do not let this publisher send messages of this kind")]
    Message,
    #[error("the access rules do not let this publisher ask for this user")]
    User,
    #[error("the access rules do not let this publisher store a pair for this user")]
    StoreFor,
    #[error("the access rules do not let this publisher ask for this host")]
    Host,
    #[error("requested_lifetime_secs: this publisher may ask for {most_secs} seconds at most")]
    Lifetime { most_secs: u64 },
    #[error("property reply_to: the access rules do not let this publisher name this queue")]
    ReplyQueue,
}

impl Denied {
    /// The word for it in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unnamed => "unnamed",
            Self::Unlisted => "unlisted",
            Self::Message => "message",
            Self::User => "user",
            Self::StoreFor => "store_for",
            Self::Host => "host",
            Self::Lifetime { .. } => "lifetime",
            Self::ReplyQueue => "reply_queue",
        }
    }
}
