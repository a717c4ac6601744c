//! `tokenkeeper keys public`

use serde_json::json;
use tokenkeeper::settings::Settings;

use crate::cli::output::{Output, note};
use crate::cli::{Ending, Failure};

/// Prints the public key that login flows seal a token.store to, in base64
///
/// It belongs to the first of the configured encryption keys. Workers open what is sealed to any of their keys, so a login
/// flow may keep an older public key until that key is taken away.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper keys public
  tokenkeeper keys public --json    # with the key's id, for the field key_id")]
pub(crate) struct Arguments {
    /// Prints JSON: `key_id` and `public_key`
    #[arg(long)]
    json: bool,
}

pub(super) fn run(settings: &Settings, arguments: &Arguments) -> Result<Ending, Failure> {
    let ring = settings.key_ring().map_err(|error| Failure::Usage(error.into()))?;
    let mut output = Output::new();
    // The first one, as long as nobody has chosen another.
    let key = ring.sealing_key();
    let public_key = key.login_public_key().to_string();
    if arguments.json {
        output.json(&json!({"key_id": key.id(), "public_key": public_key}))?;
    } else {
        output.line(public_key)?;
    }
    if ring.keys().len() > 1 {
        note("Give it to login flows once every worker has its key; `tokenkeeper keys status` shows that.");
    }
    Ok(Ending::Good)
}
