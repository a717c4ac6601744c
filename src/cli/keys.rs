//! `tokenkeeper keys`

mod generate;
mod public;
mod rotate;
mod status;

use tokenkeeper::settings::Settings;

use super::{Ending, Failure};

/// Makes encryption keys, shows which ones are in use, and re-encrypts with a new one
///
/// Tokens and client secrets are encrypted before they go into the database. To change the key: put a new one in front of
/// the others and restart the workers one after the other; they begin to encrypt with it once all of them have it. Then
/// run `tokenkeeper keys rotate`, and take the old key away, again one worker after the other.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Generate(generate::Arguments),
    Public(public::Arguments),
    Status(status::Arguments),
    Rotate(rotate::Arguments),
}

/// Only `generate` works without settings.
pub(crate) async fn run(
    load: impl FnOnce() -> Result<Settings, Failure>,
    arguments: Arguments,
) -> Result<Ending, Failure> {
    match arguments.command {
        Command::Generate(arguments) => generate::run(arguments),
        Command::Public(arguments) => public::run(&load()?, &arguments),
        Command::Status(arguments) => status::run(&load()?, &arguments).await,
        Command::Rotate(arguments) => rotate::run(&load()?, &arguments).await,
    }
}
