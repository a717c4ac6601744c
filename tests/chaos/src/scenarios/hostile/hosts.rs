//! The hosts: two that serve everybody well, one that lets a need wait for a reservation, three that are a burden.

use std::time::Duration;

use anyhow::Result;
use tokenkeeper_testkit::scm::{Connections, Dialect, Fault, ScmOptions, SimulatedScm, SpentRefreshToken};

use super::servers::{RawServer, Speech};
use crate::stage::Host;

/// One of the hosts.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// A Bitbucket Server: it refreshes one at a time, and a refresh kills the old token.
    BitbucketServer,
    GitHub,
    /// Here a need waits for a reservation.
    Waiting,
    /// Sends 1xx answers and never an end of them.
    Endless,
    /// Takes a request and says nothing.
    Hanging,
    /// Answers a byte a second.
    Dripping,
}

impl Place {
    const ALL: [Self; 6] =
        [Self::BitbucketServer, Self::GitHub, Self::Waiting, Self::Endless, Self::Hanging, Self::Dripping];

    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// Kinds and dates. Spent refresh tokens are taken again, so that a worker that is killed in a call costs nobody
    /// the token: whoever fails is another's victim.
    fn options(self) -> ScmOptions {
        let (dialect, lifetime_secs, latency_ms) = match self {
            Self::BitbucketServer => (Dialect::BitbucketServer, 120, 5),
            Self::GitHub => (Dialect::GitHub, 60, 20),
            Self::Waiting => (Dialect::BitbucketServer, 60, 5),
            Self::Endless | Self::Hanging | Self::Dripping => (Dialect::Generic, 60, 0),
        };
        ScmOptions {
            token_lifetime: Duration::from_secs(lifetime_secs),
            latency: Duration::from_millis(latency_ms),
            spent_refresh_token: SpentRefreshToken::Accepted,
            // So that a worker that has no file descriptor left cannot refresh.
            connections: Connections::Closed,
            ..ScmOptions::new(dialect)
        }
    }
}

/// All of them, running.
pub(super) struct Hosts {
    /// In the order of [`Place::index`].
    pub(super) blocks: Vec<Host>,
    /// The token endpoints of two of them. They end with these.
    pub(super) servers: Vec<RawServer>,
}

impl Hosts {
    pub(super) async fn start() -> Result<Self> {
        let mut hosts = Self { blocks: Vec::new(), servers: Vec::new() };
        for place in Place::ALL {
            let scm = SimulatedScm::start(place.options()).await;
            let overrides = match place {
                Place::BitbucketServer | Place::GitHub => String::new(),
                Place::Waiting => {
                    "opportunistic_refresh = false\nrequired_while_reserved = \"wait\"".to_owned()
                }
                Place::Hanging => {
                    scm.fail_always(Fault::Hang);
                    String::new()
                }
                Place::Endless => hosts.token_endpoint(Speech::EndlessEarlyHints).await?,
                Place::Dripping => hosts.token_endpoint(Speech::Drip).await?,
            };
            hosts.blocks.push(Host { scm, overrides: overrides.into() });
        }
        Ok(hosts)
    }

    /// A token endpoint that speaks like this, for a provider block.
    async fn token_endpoint(&mut self, speech: Speech) -> Result<String> {
        let server = RawServer::start(speech).await?;
        let setting = format!("token_url = \"{}\"", server.url());
        self.servers.push(server);
        Ok(setting)
    }
}
