//! The network between a worker and the broker, told apart by connection: a worker has two.

use tokenkeeper_testkit::proxy::FaultProxy;

/// One of the two connections of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Deliveries, replies and acks.
    Consume,
    /// Dead letters, parked pairs and events.
    Publish,
}

impl Link {
    /// The label in `/metrics`, and the last word of the connection's name at the broker.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Publish => "publish",
        }
    }

    /// What the worker says first over this connection and over no other: the end of its name.
    fn greeting(self) -> String {
        format!(" {}", self.name())
    }
}

/// A proxy before the broker that knows which connection is which.
pub(crate) struct BrokerLinks(FaultProxy);

impl BrokerLinks {
    /// Starts one before the broker at `url`.
    pub(crate) async fn start(url: &str) -> Self {
        Self(FaultProxy::start_for_url(url, 5672).await)
    }

    /// `url` with this proxy in the place of its server.
    pub(crate) fn url(&self, url: &str) -> String {
        self.0.url(url)
    }

    /// Ends this connection.
    pub(crate) async fn cut(&self, link: Link) {
        self.0.cut(&link.greeting()).await;
    }

    /// Leaves this connection open, but nothing arrives over it any more, either way. New ones work.
    pub(crate) async fn silence(&self, link: Link) {
        self.0.silence(&link.greeting()).await;
    }

    /// Ends those that were silenced.
    pub(crate) fn cut_silent(&self) {
        self.0.cut_silent();
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.0.connections()
    }
}
