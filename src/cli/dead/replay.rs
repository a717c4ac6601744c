//! `tokenkeeper dead replay`

use tokenkeeper::broker::dead_letters::{Letter, Replayer, Unreplayed};
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::settings::Broker;

use super::open;
use super::sweep::{Selection, Treatment, Untreated, sweep};
use crate::cli::ending::chain;
use crate::cli::{Ending, Failure};

/// Publishes dead letters to where they came from
///
/// Select them with --reason, --id or --all. A message that fails again becomes a new dead letter, which this run does
/// not replay; its header x-tokenkeeper-replay-count counts the replays.
///
/// A letter is removed when the broker has confirmed that its message is in a queue. If the command is interrupted,
/// nothing is lost, but one message may be there twice, and its requester gets two replies. Run the command again for
/// the rest.
///
/// Routing key, body, `reply_to` and `correlation_id` are kept. `expiration` and `timestamp` are left out, because they
/// would make the message too old: the worker's own budget applies, counted from now. The property `user_id` cannot be
/// kept, because the broker verifies it. So with access rules the publisher is unknown, and the worker answers
/// `forbidden`. The header x-tokenkeeper-publisher keeps the name. `CC` and the dead-letter headers are left out too.
///
/// A sealed body is published unsealed. Without the key for it, the letter stays.
///
/// A token.store counts as a login now: it replaces the pair of another login that the user has stored since.
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
    arguments.selection.check()?;
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
                    .context("the broker does not accept messages: free some of its memory or disk space"),
            ),
            Unreplayed::Broken(error) => Untreated::Stop(error.into()),
        })
    }
}
