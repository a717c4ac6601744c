//! `tokenkeeper audit`

mod verify;

use tokenkeeper::settings::Settings;

use super::{Ending, Failure};

/// Looks at audit logs
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Verify(verify::Arguments),
}

pub(crate) fn run(settings: &Settings, arguments: &Arguments) -> Result<Ending, Failure> {
    match &arguments.command {
        Command::Verify(arguments) => verify::run(settings, arguments),
    }
}
