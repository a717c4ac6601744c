//! `tokenkeeper provider apply`

use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use comfy_table::{Cell, Table};
use tokenkeeper::app::presence::Presence;
use tokenkeeper::domain::provider::ProviderRecord;
use tokenkeeper::oauth::address;
use tokenkeeper::private_file::{FileRule, PrivateFileError};
use tokenkeeper::settings::Settings;
use tokenkeeper::settings::provider_file::{SecretSource, holds_secret, parse};
use tokenkeeper::store::database;
use tokenkeeper::store::{Move, ProviderChange, Store};

use crate::cli::confirm::Confirmation;
use crate::cli::output::{NOTHING, Output, cell, note, table, verdict};
use crate::cli::{Ending, Failure};

/// Creates or updates providers from a TOML file, and shows what changed
///
/// Nothing is written unless the whole file is valid. Providers that the file does not name stay unchanged.
/// Workers use the new settings within a second. A provider that has refresh tokens gets another `client_id`, or a token
/// endpoint at another host, only after a confirmation.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example of a file:
  [[provider]]
  host = \"bitbucket.example.org\"   # as in clone URLs, with a port if there is one
  # github | gitlab | bitbucket | bitbucket_server | gitea | azure_devops | generic
  kind = \"bitbucket_server\"
  client_id = \"…\"
  # or client_secret = \"…\", or client_secret_file = \"path\"; a list is tried in order
  client_secret_env = \"BITBUCKET_SECRET\"
  redirect_uri = \"https://app.example.org/callback\"
  # The rest is optional and has defaults for each kind.
  # Kind generic requires the first two.
  token_url = \"https://bitbucket.example.org/rest/oauth2/latest/token\"
  client_auth = \"body\"               # body | basic
  username = \"x-token-auth\"          # what git sends beside the token
  opportunistic_refresh = true
  opportunistic_refresh_window_secs = 1800
  required_while_reserved = \"refresh\"   # refresh | wait | grant_remaining
  max_concurrent_refreshes = 2
  other_hosts = [\"ssh.bitbucket.example.org\"]   # of the same installation
  # Each of these four: seconds, or \"unlimited\".
  old_token_grace_secs = 0           # how long an old access token works after a refresh
  refresh_token_grace_secs = 0       # how long a spent refresh token may be sent again
  refresh_token_idle_lifetime_secs = 7776000   # how long an unused refresh token lives
  unstated_lifetime_secs = 3600      # an access token's lifetime if the provider does not say
  kills_old_token = true             # false: the same as old_token_grace_secs = \"unlimited\"
  refresh_parameters = { audience = \"api\" }   # sent with every refresh; not for secrets
  validate_url = \"https://bitbucket.example.org/rest/api/latest/users\"   # polled with a new token
  # Where tokens may go: the hosts above, and these.
  token_hosts = [\"login.example.org\"]   # if token_url or validate_url has another host
  allow_private_network = true       # if its hosts have addresses that are not of the internet
  # For `tokenkeeper login`. Kind generic requires the first one.
  authorization_url = \"https://bitbucket.example.org/rest/oauth2/latest/authorize\"
  device_authorization_url = \"https://login.example.org/device\"
  login_scopes = [\"REPO_WRITE\"]")]
pub(crate) struct Arguments {
    /// The file; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    confirmation: Confirmation,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments) -> Result<Ending, Failure> {
    let records = read(&arguments.file, settings.files)?;
    let keys = settings.key_ring()?;
    let store = Store::new(database::open_or_create(&settings.database).await?.db, keys);
    let taken = store.taken_hosts(&records).await?;
    if !taken.is_empty() {
        let list: Vec<String> = taken.iter().map(|(host, by)| format!("{host} (of provider {by})")).collect();
        Err(anyhow!("nothing was written, because other providers have these hosts: {}", list.join(", ")))?;
    }
    require_permitted_addresses(&records).await?;
    let moves = store.moves(&records).await?;
    if !moves.is_empty() && !arguments.confirmation.given(&told(&moves))? {
        return Ok(Ending::Bad);
    }
    let mut rows = table(["HOST", "CHANGE", "SETTING", "BEFORE", "AFTER"]);
    let applied =
        Presence::during(&store, "provider apply", Box::pin(apply(&store, &records, &mut rows))).await;
    // Also after an error of the database: these changes were written.
    Output::new().table(rows)?;
    applied?;
    for record in records.iter().filter(|record| lacks_redirect_uri(record)) {
        note(format_args!(
            "warning: {}: kind {} requires the redirect_uri of the authorisation for refreshes; set redirect_uri",
            record.host, record.kind
        ));
    }
    Ok(Ending::Good)
}

/// No worker would call them.
async fn require_permitted_addresses(records: &[ProviderRecord]) -> anyhow::Result<()> {
    let mut refused = Vec::new();
    for record in records {
        let token_url = record.token_url.clone().or_else(|| record.kind.token_url(&record.host));
        let device_url = record.overrides.device_authorization_url.clone();
        for (key, url) in [
            ("token_url", token_url),
            ("validate_url", record.overrides.validate_url.clone()),
            ("device_authorization_url", device_url),
        ] {
            let Some(url) = url else { continue };
            let Ok(reach) = record.reach(&url) else { continue };
            if let Some(why) = address::refused(&url, reach).await {
                refused.push(format!("{}: {key} cannot be used: {why}", record.host));
            }
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(anyhow!("nothing was written: {}", refused.join("; "))) }
}

/// What may be lost.
fn told(moves: &[Move]) -> String {
    let told = moves.iter().map(|Move { host, changes, refresh_tokens }| {
        let changes: Vec<String> = changes
            .iter()
            .map(|(setting, before, after)| format!("{setting} changes from {before} to {after}"))
            .collect();
        format!("{host}: {}; refresh tokens issued before: {refresh_tokens}", changes.join(", "))
    });
    let told: Vec<String> = told.collect();
    format!("{}. If the provider refuses them, their users must log in again", told.join("; "))
}

async fn apply(store: &Store, records: &[ProviderRecord], rows: &mut Table) -> anyhow::Result<()> {
    for record in records {
        let now = store.now().await?;
        let change = store
            .put_provider(record, now)
            .await
            .with_context(|| format!("cannot apply provider {}", record.host))?;
        rows.add_rows(describe(&record.host, change));
    }
    Ok(())
}

fn describe(host: &str, change: ProviderChange) -> Vec<[Cell; 5]> {
    let whole = |change: Cell| vec![[cell(host), change, cell(NOTHING), cell(NOTHING), cell(NOTHING)]];
    match change {
        ProviderChange::Created => whole(verdict(true, "created")),
        ProviderChange::Unchanged => whole(cell("unchanged")),
        ProviderChange::Updated(changes) => changes
            .into_iter()
            .map(|(setting, before, after)| {
                [cell(host), verdict(true, "updated"), cell(setting), cell(before), cell(after)]
            })
            .collect(),
    }
}

fn lacks_redirect_uri(record: &ProviderRecord) -> bool {
    record.kind.profile().wants_redirect_uri && record.redirect_uri.is_none()
}

fn read(file: &Path, rule: FileRule) -> Result<Vec<ProviderRecord>, Failure> {
    let (name, text, folder) = if file == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().lock().read_to_string(&mut text);
        ("standard input".to_owned(), read.map(|_| text), PathBuf::new())
    } else {
        let folder = file.parent().map(Path::to_owned).unwrap_or_default();
        (file.display().to_string(), text_of(file, rule), folder)
    };
    let text = text.with_context(|| format!("cannot read the provider file {name}"))?;
    let records = parse(&text, &Outside { folder, rule });
    Ok(records.with_context(|| format!("cannot apply the provider file {name}; nothing was written"))?)
}

/// The text of a provider file. If client secrets stand in it, it must be private.
fn text_of(path: &Path, rule: FileRule) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    if holds_secret(&text) {
        // Read again as what it is: a file with a secret.
        return private(path, rule);
    }
    Ok(text)
}

fn private(path: &Path, rule: FileRule) -> io::Result<String> {
    match rule.file(path.to_owned()).read() {
        Ok(text) => Ok(text.as_str().to_owned()),
        Err(PrivateFileError::Unreadable(error)) => Err(error),
        Err(error @ PrivateFileError::Exposed { .. }) => Err(io::Error::other(error)),
    }
}

/// This process's environment, and files beside the provider file.
struct Outside {
    folder: PathBuf,
    rule: FileRule,
}

impl SecretSource for Outside {
    fn variable(&self, name: &str) -> Option<String> {
        env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        private(&self.folder.join(path), self.rule)
    }
}
