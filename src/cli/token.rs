//! `tokenkeeper token`

mod condemn;
mod import;
mod lines;
mod list;
mod show;

use tokenkeeper::app::presence::Presence;
use tokenkeeper::settings::Settings;
use tokenkeeper::store::Listing;
use tokenkeeper::store::database;

use super::provider::open_store_to_write;
use super::{Ending, Failure};

/// Imports users' tokens, condemns dead ones, and shows their state, never the tokens themselves
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Import(import::Arguments),
    Condemn(condemn::Arguments),
    List(list::Arguments),
    Show(show::Arguments),
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    match arguments.command {
        Command::Import(arguments) => {
            let store = open_store_to_write(&settings).await?;
            let import = Box::pin(import::run(store.clone(), &arguments));
            Presence::during(&store, "token import", import).await
        }
        Command::Condemn(arguments) => {
            let store = open_store_to_write(&settings).await?;
            let condemn = Box::pin(condemn::run(&settings, &store, &arguments));
            Presence::during(&store, "token condemn", condemn).await
        }
        Command::List(arguments) => list::run(&open_listing(&settings).await?, arguments).await,
        Command::Show(arguments) => show::run(&open_listing(&settings).await?, arguments).await,
    }
}

async fn open_listing(settings: &Settings) -> Result<Listing, Failure> {
    Ok(Listing::new(database::open_migrated(&settings.database).await?))
}
