//! The same load by the Rust client (`clients/rust`): what a team pays that does not write its own.
//!
//! Unlike the generator, the client makes every request `mandatory` and confirmed, sets its expiration, and reads each reply.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokenkeeper_client::{Client, Options};

use super::{
    Amount, Ask, Generator, Heard, Pace,
    ask::{Answer, Message, Request, user_name},
    heard::Run,
};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requester {
    /// The generator, which does as little as it can.
    Generator,
    /// The Rust client, over its one connection.
    Client,
}

/// A load on one system.
pub(crate) enum Load {
    Generator(Box<Generator>),
    Client(ByClient),
}

impl Load {
    pub(crate) async fn connect(requester: Requester, url: &str, prefix: &str, first: usize) -> Result<Self> {
        Ok(match requester {
            Requester::Generator => Self::Generator(Generator::connect(url, prefix, first).await?.into()),
            Requester::Client => Self::Client(ByClient::connect(url, prefix, first).await?),
        })
    }

    /// As [`Generator::run`].
    pub(crate) async fn run(&mut self, ask: &Ask, pace: Pace, amount: Amount) -> Result<Heard> {
        match (self, pace) {
            (Self::Generator(generator), pace) => generator.run(ask, pace, amount, |_| ()).await,
            (Self::Client(client), Pace::InFlight(in_flight)) => client.run(ask, in_flight, amount).await,
            (Self::Client(_), Pace::PerSecond(_)) => bail!("the client is measured in a closed loop alone"),
        }
    }

    /// As [`Generator::close`].
    pub(crate) async fn close(self) -> Result<usize> {
        match self {
            Self::Generator(generator) => generator.close().await,
            Self::Client(ByClient { client, next }) => {
                client.close().await;
                Ok(next)
            }
        }
    }
}

pub(crate) struct ByClient {
    client: Client,
    next: usize,
}

impl ByClient {
    async fn connect(url: &str, prefix: &str, first: usize) -> Result<Self> {
        let options = Options::new(url).prefix(prefix).name("tokenkeeper-bench");
        // As the generator asks: once, for a token in clear.
        let options = options.sealed(false).retries(0);
        let client = Client::connect(options).await.context("connect the client")?;
        Ok(Self { client, next: first })
    }

    async fn run(&mut self, ask: &Ask, in_flight: usize, amount: Amount) -> Result<Heard> {
        let Self { client, next } = self;
        let mut run = Run::begin(amount)?;
        let mut under_way = FuturesUnordered::new();
        let mut now = Instant::now();
        loop {
            while under_way.len() < in_flight && run.enter(now) {
                under_way.push(one(client, ask.request(*next), now));
                *next += 1;
            }
            let Some(answered) = under_way.next().await else { return Ok(run.end()) };
            let (sent, request) = answered?;
            now = Instant::now();
            run.take(sent, request.part, Answer::Expected, now);
        }
    }
}

/// The client itself sees to it that the reply is the request's.
async fn one(client: &Client, request: Request, sent: Instant) -> Result<(Instant, Request)> {
    let Message::Token(host) = request.message else { bail!("the client is measured with tokens alone") };
    let user = user_name(request.user);
    client.token(&*user, host).send().await.with_context(|| format!("WRONG: a token for {user}"))?;
    Ok((sent, request))
}
