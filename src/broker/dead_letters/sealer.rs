//! Seals the dead letters that the broker itself moved there: messages that expired, or were delivered too often. It publishes
//! each letter sealed, waits for the confirm, and then removes the original. However this ends, no letter is lost, but the
//! last one may be there twice.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::BasicGetOptions;
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio::time::sleep;

use super::letter::{Letter, UNROUTABLE, is_ours};
use super::seal::{Sealed, without_seal};
use super::{DeadLetters, DeadLettersError};
use crate::broker::confirmed::{Publish, confirmed, confirming_channel};
use crate::broker::outgoing::{REASON_HEADER, carried_on_with_time, fits};
use crate::broker::topology::{short, text};
use crate::broker::{BrokerError, Publisher, within};
use crate::domain::secret::KeyRing;
use crate::settings::Broker;
use crate::telemetry;

/// The pause before the first look: by then the worker has declared the queue.
const AFTER_START: Duration = Duration::from_secs(2);
/// The pause between two looks.
const EVERY: Duration = Duration::from_mins(1);
/// After so many looks the sealer goes through the letters although their number did not grow: one may have replaced another.
const UNASKED: u32 = 60;
/// More letters are left alone, because a look keeps everybody else out.
const AT_MOST: u32 = 10_000;

/// Seals the dead letters that the broker moved there.
#[derive(Debug)]
pub struct Sealer {
    pub settings: Arc<Broker>,
    pub keys: Arc<KeyRing>,
    /// Its connection counts the letters.
    pub publisher: Publisher,
}

/// The outcome of a look.
enum Turn {
    /// There are no more letters than before.
    NothingNew,
    /// An operator or another worker has them.
    InUse,
    /// There are too many.
    TooMany,
    /// So many letters were looked at.
    Done(u32),
}

impl Sealer {
    /// Looks at start and every minute.
    pub async fn run(self) -> Infallible {
        let (mut known, mut looks) = (None, 0_u32);
        sleep(AFTER_START).await;
        loop {
            looks = looks.wrapping_add(1);
            let expected = known.filter(|_| !looks.is_multiple_of(UNASKED));
            let turn = self.take_turn(expected).await;
            if let Ok((count, _)) = &turn {
                telemetry::dead_letters_are(*count);
            }
            match turn {
                Ok((_, Turn::Done(count)) | (count, Turn::NothingNew)) => known = Some(count),
                Ok((_, Turn::InUse)) => telemetry::dead_letters_in_use(),
                Ok((count, Turn::TooMany)) => telemetry::dead_letters_left_unsealed(count, AT_MOST),
                // A worker that has just started declares the queue in a moment.
                Err(DeadLettersError::NoQueue { .. }) => {}
                Err(error) => telemetry::dead_letters_not_sealed(&error),
            }
            sleep(EVERY).await;
        }
    }

    /// Goes through the letters if there are more than `known`. Returns how many there are.
    async fn take_turn(&self, known: Option<u32>) -> Result<(u32, Turn), DeadLettersError> {
        let count = match self.publisher.dead_letters_ready().await {
            Err(error) if error.soft_error() == Some(&AMQPSoftError::NOTFOUND) => {
                return Ok((0, Turn::NothingNew));
            }
            count => count?,
        };
        let turn = match known {
            _ if count == 0 => Turn::NothingNew,
            Some(known) if count <= known => Turn::NothingNew,
            _ if count > AT_MOST => Turn::TooMany,
            _ => match DeadLetters::open(&self.settings, Duration::ZERO, || ()).await {
                Ok(letters) => letters.seal(&self.keys).await.map(Turn::Done)?,
                Err(DeadLettersError::Busy { .. }) => Turn::InUse,
                Err(error) => return Err(error),
            },
        };
        Ok((count, turn))
    }
}

impl DeadLetters {
    /// Seals letters where needed, and returns how many were looked at.
    async fn seal(mut self, keys: &KeyRing) -> Result<u32, DeadLettersError> {
        let channel = self.channel().await?;
        let sealed = self.seal_one_by_one(&channel, keys).await;
        // The others go back with their channel. The next command must find all of them.
        let given_back = async {
            self.give_back(&channel).await?;
            self.until_ready(self.seen - self.acked).await.map(drop)
        };
        let given_back = given_back.await;
        let close = self.connection.close(200, "done".into());
        let closed =
            within(self.settings.operation_timeout, || "close the connection".to_owned(), close).await;
        if self.acked > 0 {
            telemetry::dead_letters_sealed(self.acked);
        }
        sealed?;
        given_back?;
        closed?;
        Ok(self.seen - self.acked)
    }

    /// One letter at a time, by `basic.get`: a consumer would get hundreds at once, and each may be as large as the broker
    /// allows.
    async fn seal_one_by_one(&mut self, channel: &Channel, keys: &KeyRing) -> Result<(), BrokerError> {
        let limit = self.settings.operation_timeout;
        let confirming = confirming_channel(&self.connection, &self.settings).await?;
        // Letters sealed before come again, behind the others. Then this is over soon.
        while self.seen < 2 * AT_MOST {
            let get = channel.basic_get(short(&self.queue)?, BasicGetOptions::default());
            let got = within(limit, || format!("read queue {}", self.queue), get).await?;
            let Some(got) = got else { break };
            self.seen += 1;
            let letter = Letter::new(got.delivery, &self.names);
            let Some(sealed) = letter.sealed(keys) else { continue };
            let frame_max = self.connection.configuration().frame_max();
            let message = Publish {
                exchange: short(&self.names.dead_letters())?,
                routing_key: short(letter.routing_key())?,
                mandatory: true,
                properties: properties(&letter, &sealed, frame_max),
            };
            let publishing = pin!(message.over(&confirming, &sealed.body));
            if confirmed(&self.connection, publishing, "a sealed dead letter", limit).await?.is_some() {
                return Err(BrokerError::NoDeadLetters { exchange: self.names.dead_letters() });
            }
            self.take_out(&letter).await?;
            telemetry::dead_letter_sealed();
        }
        Ok(())
    }
}

/// Keeps the broker's headers, which tell why and where the message died, and adds the reason where only the exchange that
/// it came through tells it. If the seal does not fit beside the publisher's headers, those are dropped.
fn properties(letter: &Letter, sealed: &Sealed, frame_max: u32) -> BasicProperties {
    let mut headers = without_seal(letter.properties().headers().clone().unwrap_or_default());
    if letter.is_unroutable() {
        headers.insert(REASON_HEADER.into(), text(UNROUTABLE));
    }
    let whole = sealed.mark(carried_on_with_time(letter.properties(), headers.clone()));
    if fits(&whole, frame_max) {
        return whole;
    }
    let mut brokers = FieldTable::default();
    for (name, value) in headers.inner().iter().filter(|(name, _)| is_ours(name.as_str())) {
        brokers.insert(name.clone(), value.clone());
    }
    sealed.mark(carried_on_with_time(letter.properties(), brokers))
}
