//! `simulated-scm`: a source-code host on this machine, to try tokenkeeper by hand.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use tokenkeeper_testkit::program::write_private;
use tokenkeeper_testkit::scm::{Dialect, ScmOptions, SimulatedScm};
use tokio::signal::unix::{SignalKind, signal};

const REPOSITORY_BYTES: usize = 1024 * 1024;

/// Runs a simulated source-code host on 127.0.0.1: token endpoint, API and git over HTTP.
///
/// It prints the provider block for `tokenkeeper provider apply` and, for each user, a line for
/// `tokenkeeper token import`, and serves until it is interrupted. It forgets everything when it ends.
#[derive(Parser)]
struct Arguments {
    /// The port to listen on.
    #[arg(long, default_value_t = 7990)]
    port: u16,
    /// Whose behaviour it shows.
    #[arg(long, value_enum, default_value_t = Kind::BitbucketServer)]
    kind: Kind,
    /// How long a new access token lives, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 7200)]
    token_lifetime: u64,
    /// How long the token endpoint takes to act, in milliseconds.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    latency: u64,
    /// A user who has logged in. May be given several times.
    #[arg(long = "user", value_name = "NAME", default_value = "alice")]
    users: Vec<String>,
    /// A repository to clone. May be given several times.
    #[arg(long = "repository", value_name = "PROJECT/NAME", default_value = "proj/repo")]
    repositories: Vec<String>,
    /// Writes provider.toml and tokens.jsonl into this folder instead of printing them.
    #[arg(long, value_name = "FOLDER")]
    write_to: Option<PathBuf>,
}

/// The provider kinds, named as in a provider file.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    BitbucketServer,
    #[value(name = "github")]
    GitHub,
    #[value(name = "gitlab")]
    GitLab,
    Bitbucket,
    Generic,
}

impl From<Kind> for Dialect {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::BitbucketServer => Self::BitbucketServer,
            Kind::GitHub => Self::GitHub,
            Kind::GitLab => Self::GitLab,
            Kind::Bitbucket => Self::Bitbucket,
            Kind::Generic => Self::Generic,
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let scm = SimulatedScm::start(ScmOptions {
        port: Some(arguments.port),
        token_lifetime: Duration::from_secs(arguments.token_lifetime),
        latency: Duration::from_millis(arguments.latency),
        ..ScmOptions::new(arguments.kind.into())
    })
    .await;
    let clone_urls = create_repositories(&scm, &arguments.repositories).await?;
    let tokens: Vec<_> =
        arguments.users.iter().map(|user| scm.token_store_body(&scm.authorize(user)).to_string()).collect();
    match &arguments.write_to {
        Some(folder) => write_files(folder, &scm.provider_toml(""), &tokens)?,
        None => print_files(&scm.provider_toml(""), &tokens),
    }
    println!("# Serving {} at {} until it is interrupted.", clone_urls.join(" "), scm.host());
    interrupted().await.context("wait for an interrupt")
}

/// Both signals that end a program by request, so that its temporary folders go away with it.
async fn interrupted() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

async fn create_repositories(scm: &SimulatedScm, repositories: &[String]) -> Result<Vec<String>> {
    let mut clone_urls = Vec::new();
    for repository in repositories {
        let Some((project, name)) = repository.split_once('/') else {
            bail!("--repository {repository}: expected PROJECT/NAME");
        };
        scm.create_repo(project, name, REPOSITORY_BYTES).await;
        clone_urls.push(scm.clone_url(project, name));
    }
    Ok(clone_urls)
}

fn write_files(folder: &Path, provider: &str, tokens: &[String]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create the folder {}", folder.display()))?;
    for (name, content) in
        [("provider.toml", provider.to_owned()), ("tokens.jsonl", tokens.join("\n") + "\n")]
    {
        let path = folder.join(name);
        write_private(&path, &content).with_context(|| format!("write {}", path.display()))?;
        println!("# Wrote {}", path.display());
    }
    Ok(())
}

fn print_files(provider: &str, tokens: &[String]) {
    println!("# For `tokenkeeper provider apply FILE`:\n{provider}");
    println!("# For `tokenkeeper token import -`, one line a user:");
    for line in tokens {
        println!("{line}");
    }
}
