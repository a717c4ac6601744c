//! `tokenkeeper provider`

mod apply;
mod list;
mod remove;

use tokenkeeper::settings::Settings;
use tokenkeeper::store::Store;
use tokenkeeper::store::database;

use super::{Ending, Failure};

/// Manages the source-code hosts, and how tokens are refreshed there
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Apply(apply::Arguments),
    List(list::Arguments),
    Remove(remove::Arguments),
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    match arguments.command {
        // It opens the database itself, after it has read the file: an invalid file must not create a database.
        Command::Apply(arguments) => Box::pin(apply::run(&settings, &arguments)).await,
        Command::List(arguments) => list::run(&open_store(&settings).await?, &arguments).await,
        Command::Remove(arguments) => remove::run(&open_store_to_write(&settings).await?, &arguments).await,
    }
}

pub(super) async fn open_store(settings: &Settings) -> Result<Store, Failure> {
    let keys = settings.key_ring()?;
    Ok(Store::new(database::open_migrated(&settings.database).await?, keys))
}

pub(super) async fn open_store_to_write(settings: &Settings) -> Result<Store, Failure> {
    let keys = settings.key_ring()?;
    Ok(Store::new(database::open_to_write(&settings.database).await?.db, keys))
}
