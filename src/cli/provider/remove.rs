//! `tokenkeeper provider remove`

use anyhow::anyhow;
use tokenkeeper::store::{RemoveProvider, Store};

use crate::cli::output::Output;
use crate::cli::{Ending, Failure};

/// Removes a provider
///
/// One that users have identities at is removed only with --with-tokens, together with their tokens: they must log
/// in there again.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The provider's host, as `provider list` shows it
    #[arg(value_name = "HOST")]
    host: String,
    /// Removes its identities and their tokens too
    #[arg(long)]
    with_tokens: bool,
}

pub(super) async fn run(store: &Store, arguments: &Arguments) -> Result<Ending, Failure> {
    let Arguments { host, with_tokens } = arguments;
    match store.remove_provider(host, *with_tokens).await? {
        RemoveProvider::Removed(0) => Output::new().line(format_args!("removed {host}"))?,
        RemoveProvider::Removed(identities) => {
            Output::new().line(format_args!("removed {host}, identities with it: {identities}"))?;
        }
        RemoveProvider::NotFound => Err(anyhow!(
            "no provider has the host {host}; `tokenkeeper provider list` shows those there are"
        ))?,
        RemoveProvider::HasIdentities(identities) => Err(anyhow!(
            "{host} has identities ({identities}); --with-tokens removes them and their tokens too"
        ))?,
    }
    Ok(Ending::Good)
}
