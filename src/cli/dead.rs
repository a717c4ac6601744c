//! `tokenkeeper dead`

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

/// How long somebody else may have the dead letters before this command gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Shows the dead letters, puts them back to work, or drops them
///
/// In the queue PREFIX.dead-letters lie the messages that nobody could answer: what breaks the contract, and what
/// killed its worker too often (the broker's `delivery_limit`). They stay until somebody replays or drops them.
///
/// A letter's ID is its `message_id`; one without has a fingerprint of its body, its properties and the time it was
/// given up, which no look at it changes. Letters with the same `message_id` have the same ID, and what is done to
/// one by its ID is done to each.
///
/// Looking takes nothing away and keeps the order. Only one of these commands is at work at a time; another one waits
/// for it. Works without a database. A body that may hold a token lies there sealed with the encryption keys: without them
/// `list` cannot say whose it is, `show` shows it without its body, and `replay` leaves it where it is. What the broker
/// itself laid there is sealed by a worker within a minute; a letter that has no `message_id` has another ID from then on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper dead list
  tokenkeeper dead show 5f0c2a9be1d37746
  tokenkeeper dead replay --reason delivery_limit
  tokenkeeper dead drop --id m-1 --id m-2")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(list::Arguments),
    Show(show::Arguments),
    Replay(replay::Arguments),
    Drop(drop::Arguments),
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let (broker, keys) = (&settings.broker, settings.encryption.keys);
    match arguments.command {
        Command::List(arguments) => list::run(broker, keys.as_ref(), &arguments).await,
        Command::Show(arguments) => show::run(broker, keys.as_ref(), &arguments).await,
        Command::Replay(arguments) => replay::run(broker, keys, arguments).await,
        Command::Drop(arguments) => drop::run(broker, arguments).await,
    }
}

async fn open(settings: &Broker) -> Result<DeadLetters, Failure> {
    let on_wait = || {
        note("Another `tokenkeeper dead` command, or a worker, has the dead letters; waiting for it to end.");
    };
    Ok(DeadLetters::open(settings, PATIENCE, on_wait).await?)
}

/// How far it is, of so many letters. Hidden where standard error is no terminal.
fn progress(letters: &DeadLetters) -> ProgressBar {
    let size = Some(u64::from(letters.waiting()));
    let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len}  {msg}  {eta} to go") {
        bar.set_style(style);
    }
    bar
}
