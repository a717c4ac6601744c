//! `tokenkeeper provider remove`

use anyhow::anyhow;
use tokenkeeper::store::{RemoveProvider, Stake, Store};

use crate::cli::confirm::Confirmation;
use crate::cli::output::Output;
use crate::cli::{Ending, Failure};

/// Removes a provider
///
/// A provider with identities is removed only with --with-tokens, which removes them and their tokens: the users must log
/// in again. It asks for confirmation.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The provider's host, as `provider list` shows it
    #[arg(value_name = "HOST")]
    host: String,
    /// Removes its identities and their tokens too
    #[arg(long)]
    with_tokens: bool,
    #[command(flatten)]
    confirmation: Confirmation,
}

pub(super) async fn run(store: &Store, arguments: &Arguments) -> Result<Ending, Failure> {
    let Arguments { host, with_tokens, confirmation } = arguments;
    if let Some(Stake { identities: identities @ 1.., tokens, .. }) = store.stake(host).await?
        && *with_tokens
        && !confirmation.given(&format!(
            "`provider remove` removes {host} with its identities ({identities}) and their tokens ({tokens}); \
             their users must log in again"
        ))?
    {
        return Ok(Ending::Bad);
    }
    match store.remove_provider(host, *with_tokens).await? {
        RemoveProvider::Removed(0) => Output::new().line(format_args!("removed {host}"))?,
        RemoveProvider::Removed(identities) => {
            Output::new().line(format_args!("removed {host} and its identities: {identities}"))?;
        }
        RemoveProvider::NotFound => {
            Err(anyhow!("no provider has the host {host}; `tokenkeeper provider list` lists them"))?;
        }
        RemoveProvider::HasIdentities(identities) => Err(anyhow!(
            "{host} has identities ({identities}); --with-tokens removes them and their tokens too"
        ))?,
    }
    Ok(Ending::Good)
}
