//! `tokenkeeper dead`

mod by_reason;
mod drop;
mod list;
mod replay;
mod show;
mod summary;
mod sweep;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokenkeeper::broker::dead_letters::DeadLetters;
use tokenkeeper::settings::{Broker, Settings};

use super::output::note;
use super::{Ending, Failure};

/// How long this command waits while somebody else consumes the dead letters.
const PATIENCE: Duration = Duration::from_secs(30);

/// Shows, replays or drops the dead letters
///
/// The queue PREFIX.dead-letters holds the messages that could not be answered: those that break the contract, those
/// that ended their worker too often (the broker's `delivery_limit`), and those whose time was over before a worker
/// took them (`expired`). They stay until somebody replays or drops them.
///
/// A letter's ID is its `message_id`, else a fingerprint of its body, its properties and the time it was given up.
/// Letters with the same `message_id` have the same ID: a command with this ID applies to each of them.
///
/// Showing letters does not remove or reorder them. Only one of these commands runs at a time; the next one waits. No
/// database is needed. A body that may hold a secret is sealed with the encryption keys. Without the keys, `list` does
/// not know its user, `show` leaves the body out, and `replay` leaves the letter in the queue. A worker seals letters
/// that the broker itself moved there within a minute; a letter without a `message_id` then gets a new ID.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper dead summary
  tokenkeeper dead list
  tokenkeeper dead show 5f0c2a9be1d37746
  tokenkeeper dead replay --reason delivery_limit
  tokenkeeper dead drop --reason expired
  tokenkeeper dead drop --id m-1 --id m-2")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(list::Arguments),
    Summary(by_reason::Arguments),
    Show(show::Arguments),
    Replay(replay::Arguments),
    Drop(drop::Arguments),
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let (broker, keys) = (&settings.broker, settings.encryption.keys);
    match arguments.command {
        Command::List(arguments) => list::run(broker, keys.as_ref(), &arguments).await,
        Command::Summary(arguments) => by_reason::run(broker, &arguments).await,
        Command::Show(arguments) => show::run(broker, keys.as_ref(), &arguments).await,
        // Boxed: it is larger than the others, and each of them would carry its size.
        Command::Replay(arguments) => Box::pin(replay::run(broker, keys, arguments)).await,
        Command::Drop(arguments) => drop::run(broker, arguments).await,
    }
}

async fn open(settings: &Broker) -> Result<DeadLetters, Failure> {
    let on_wait = || {
        note(
            "Another `tokenkeeper dead` command or a worker is using the dead letters; waiting for it to finish.",
        );
    };
    Ok(DeadLetters::open(settings, PATIENCE, on_wait).await?)
}

/// Hidden unless standard error is a terminal.
fn progress(letters: &DeadLetters) -> ProgressBar {
    let size = Some(u64::from(letters.waiting()));
    let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len}  {msg}  {eta} to go") {
        bar.set_style(style);
    }
    bar
}
