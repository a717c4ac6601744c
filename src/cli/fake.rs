//! `tokenkeeper fake`

mod answer;
mod behaviour;
mod consume;
mod memory;
mod rules;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokenkeeper::app::lifecycle::{Stop, StopSignals};
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::settings::{LogFormat, Settings, SettingsError};
use tokenkeeper::telemetry::logs;

use self::answer::Fake;
use self::consume::Consumers;
use self::rules::Rules;
use super::{Ending, Failure};

/// The encryption key where the settings have none: 32 bytes of 0x20, which is no secret. So a login that was sealed for one
/// run opens in the next.
const KEY: &str = "k-2020:ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICA=";

const ABOUT: &str = "\
Answers in place of workers, by rule: for tests of upstream, without a database and without
providers.

It takes all four messages from the queues of workers, under the setting `broker.prefix`, reads
and checks them as a worker does, and answers with tokens that no host takes. Where queues have
consumers already it does not start, because it would take messages of real users.
`token.store` is remembered in memory and handed out, and `token.report` is answered by what it
remembers. What is sealed is opened and sealed as usual; without encryption keys in the settings
it has one that is no secret.

What it answers stands in the `user_id`, as words with dots between them; other parts are names:

  error-CODE    that error: error-internal, error-reauthorization_required, …
  slow-TIME     later: slow-2s, slow-500ms; at most ten minutes
  silent        never
  expires-TIME  the token expires so soon: expires-60s; or expires-never
  refresh-WORD  what the request did: none, reserved, opportunistic, required
  warning-WORD  a warning: lifetime_short, refresh_failed, …
  result-WORD   of a report: refreshed, held, withdrawn, not_current

Any other user gets a token that works for an hour, as far as the reply says.";

const EXAMPLES: &str = "\
Examples:
  tokenkeeper fake
  tokenkeeper fake --rules rules.toml
  tokenkeeper request --user slow-2s.error-internal.u-7 --host git.example.org

Rules for users without such words, in TOML. The first one that fits counts; `*` is any text:
  [[rules]]
  user = \"jdoe*\"
  host = \"*.example.org\"
  answer = \"slow-2s.error-provider_unavailable\"";

/// Answers in place of workers, by rule: for tests of upstream
#[derive(Debug, clap::Args)]
#[command(long_about = ABOUT, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Rules by user and host, in TOML
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Starts although the queues have consumers: messages go to it or to them, by turns
    #[arg(long)]
    beside_workers: bool,
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let rules = match &arguments.rules {
        Some(path) => Rules::read(path).map_err(|error| Failure::Usage(error.into()))?,
        None => Rules::default(),
    };
    let keys = match settings.key_ring() {
        Err(SettingsError::NoKeys) => KeyRing::parse(KEY).context("its own key cannot be read")?,
        keys => keys?,
    };
    let format = match settings.log.format {
        LogFormat::Auto => logs::Format::detect(),
        LogFormat::Human => logs::Format::Human,
        LogFormat::Json => logs::Format::Json,
    };
    logs::install(settings.log.level, format, io::stderr, None)?;
    let signals = StopSignals::listen().context("cannot listen for signals")?;
    let stop = Stop::default();
    let second_signal = signals.drive(stop.clone(), settings.worker.grace_period);
    let fake = Arc::new(Fake::new(&settings, rules, keys, stop.clone()));
    let consumers = Consumers::new(&settings, fake, stop, arguments.beside_workers);
    let ended = tokio::select! {
        ended = consumers.run() => ended.map(|()| Ending::Good).map_err(Failure::from),
        () = second_signal => Ok(Ending::Bad),
    };
    match format {
        logs::Format::Human => ended,
        logs::Format::Json => ended.map_err(Failure::log),
    }
}
