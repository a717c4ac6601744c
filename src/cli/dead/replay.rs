//! `tokenkeeper dead replay`

use tokenkeeper::broker::dead_letters::{Letter, Replayer, Unreplayed};
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::settings::Broker;

use super::open;
use super::sweep::{Selection, Treatment, Untreated, sweep};
use crate::cli::ending::chain;
use crate::cli::{Ending, Failure};

/// Publishes dead letters again, to where they came from
///
/// Without --reason, --id or --all: every one that is there when the command begins. One that fails again comes back
/// and is not replayed twice; the header x-tokenkeeper-replay-count tells how often it was.
///
/// A letter leaves the dead letters when the broker has confirmed that its message is in a queue. However this
/// is interrupted, nothing is lost; a message may then be there twice, and its requester gets two replies. Run
/// the command again for the rest.
///
/// A message comes as it was, with its routing key, body, `reply_to` and `correlation_id`, but for this:
/// `expiration` and `timestamp` are left out, since by them it would be too old already: it gets the worker's own
/// budget, counted from now. The property `user_id` cannot be kept, because the broker vouches for it: where there are
/// access rules, its publisher is unknown and the worker answers `forbidden`. Who it was stays in the header
/// x-tokenkeeper-publisher. `CC` and the headers that tell of its death are left out too.
///
/// A body that lies there sealed is published as it was before; without the key that takes, the letter stays.
///
/// A token.store counts as a login of now: it replaces the pair that a user has stored since.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper dead replay --reason delivery_limit
  tokenkeeper dead replay --id 5f0c2a9be1d37746")]
pub(crate) struct Arguments {
    #[command(flatten)]
    selection: Selection,
}

pub(super) async fn run(
    settings: &Broker,
    keys: Option<KeyRing>,
    arguments: Arguments,
) -> Result<Ending, Failure> {
    let letters = open(settings).await?;
    let mut replaying = Replaying(Replayer::connect(settings, keys).await?);
    let ended = sweep(letters, &arguments.selection, &mut replaying).await;
    replaying.0.close().await;
    ended
}

struct Replaying(Replayer);

impl Treatment for Replaying {
    const DONE: &'static str = "replayed";

    async fn treat(&mut self, letter: &Letter) -> Result<(), Untreated> {
        self.0.replay(letter).await.map_err(|unreplayed| match unreplayed {
            Unreplayed::NoDestination
            | Unreplayed::Sealed(_)
            | Unreplayed::Unroutable { .. }
            | Unreplayed::Refused(_) => Untreated::Stays(chain(&unreplayed.into())),
            Unreplayed::Broken(error) if self.0.is_blocked() => Untreated::Stop(
                anyhow::Error::from(error)
                    .context("the broker takes no messages at present: its memory or disk is full"),
            ),
            Unreplayed::Broken(error) => Untreated::Stop(error.into()),
        })
    }
}
