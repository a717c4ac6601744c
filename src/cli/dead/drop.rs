//! `tokenkeeper dead drop`

use tokenkeeper::broker::dead_letters::Letter;
use tokenkeeper::settings::Broker;

use super::open;
use super::sweep::{Selection, Treatment, Untreated, sweep};
use crate::cli::{Ending, Failure};

/// Deletes dead letters for good
///
/// Select them with --reason, --id or --all.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper dead drop --id 5f0c2a9be1d37746
  tokenkeeper dead drop --reason invalid_request")]
pub(crate) struct Arguments {
    #[command(flatten)]
    selection: Selection,
}

pub(super) async fn run(settings: &Broker, arguments: Arguments) -> Result<Ending, Failure> {
    let Arguments { selection } = arguments;
    selection.check()?;
    sweep(open(settings).await?, &selection, &mut Dropping).await
}

struct Dropping;

impl Treatment for Dropping {
    const DONE: &'static str = "dropped";

    async fn treat(&mut self, _: &Letter) -> Result<(), Untreated> {
        Ok(())
    }
}
