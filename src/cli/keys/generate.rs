//! `tokenkeeper keys generate`

use anyhow::anyhow;
use tokenkeeper::domain::secret::{ExposeSecret, KeyRing};
use uuid::Uuid;

use crate::cli::output::{Output, note};
use crate::cli::{Ending, Failure};

/// Generates a key and prints it as id:base64
///
/// Tokens and client secrets are encrypted with it before they go into the database. Put the line into
/// `TOKENKEEPER_KEYS` of every worker, or into the file of the setting `encryption.keys_file`. Several keys are separated
/// by commas: the first one that all workers have encrypts, and each of them decrypts. To change keys, put a new one in
/// front (see `tokenkeeper keys --help`).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  export TOKENKEEPER_KEYS=$(tokenkeeper keys generate)
  # A new key that encrypts once every worker has it; the old one still decrypts:
  export TOKENKEEPER_KEYS=$(tokenkeeper keys generate),$TOKENKEEPER_KEYS")]
pub(crate) struct Arguments {
    /// Names the key: 1 to 64 letters, digits, `-`, `_` or `.` [default: k- and 6 random hex digits]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
}

pub(super) fn run(arguments: Arguments) -> Result<Ending, Failure> {
    let Arguments { id } = arguments;
    let key = KeyRing::generate(&id.unwrap_or_else(random_id));
    KeyRing::parse(key.expose_secret())
        .map_err(|_| Failure::Usage(anyhow!("--id must be 1 to 64 letters, digits, `-`, `_` or `.`")))?;
    Output::new().line(key.expose_secret())?;
    note(
        "Put this line into TOKENKEEPER_KEYS of every worker. Keep a copy: without the key its data is lost.",
    );
    note("Of several keys (id:base64,id:base64) the first one that all workers have encrypts.");
    Ok(Ending::Good)
}

fn random_id() -> String {
    let random = Uuid::new_v4().simple().to_string();
    format!("k-{}", &random[..6])
}
