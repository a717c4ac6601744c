//! The command line: parse, load settings, run one command.

mod cli;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand};
use tokenkeeper::app::hardening;
use tokenkeeper::settings::Settings;

use crate::cli::{Ending, Failure};

/// Hands out, reserves and refreshes users' OAuth tokens for source-code hosts, driven by RabbitMQ.
///
/// Upstream services publish requests to RabbitMQ; `tokenkeeper worker` answers them from its database and
/// refreshes tokens at the source-code hosts. The other commands set it up and maintain it.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = EXAMPLES)]
struct CommandLine {
    /// Settings file in TOML [default: tokenkeeper.toml in the working folder, if it is there]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TOKENKEEPER_CONFIG",
        // clap's own parser of paths refuses an empty variable; here it counts as not set.
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
From nothing to a token:
  export TOKENKEEPER_KEYS=$(tokenkeeper keys generate)   # keep a copy of it
  tokenkeeper provider apply providers.toml   # which source-code hosts there are
  tokenkeeper token import tokens.jsonl       # tokens of users who have logged in
  tokenkeeper doctor                          # says what a worker would lack
  tokenkeeper worker                          # answers until it is stopped
  tokenkeeper request --user u-1 --host bitbucket.example.org

Settings come from the file and from the environment: AMQP_URL, DATABASE_URL,
TOKENKEEPER_KEYS and TOKENKEEPER__SECTION__KEY. tokenkeeper.example.toml shows
every one with its default.

Exit codes:
    0  done
    1  it failed, or the reply is an error
    2  wrong usage or settings, or no reply came
  130  interrupted: the error says how far it came";

#[derive(Debug, Subcommand)]
enum Command {
    Worker(cli::worker::Arguments),
    Migrate(cli::migrate::Arguments),
    Provider(cli::provider::Arguments),
    Token(cli::token::Arguments),
    Dead(cli::dead::Arguments),
    Doctor(cli::doctor::Arguments),
    Housekeeping(cli::housekeeping::Arguments),
    Keys(cli::keys::Arguments),
    Restore(cli::restore::Arguments),
    Audit(cli::audit::Arguments),
    Request(cli::request::Arguments),
    WorkspaceStart(cli::workspace_start::Arguments),
    Credential(cli::credential::Arguments),
    Login(cli::login::Arguments),
    Schema(cli::schema::Arguments),
    Fake(cli::fake::Arguments),
}

fn main() -> ExitCode {
    // Before any file is made and any secret is read. A worker logs it where that fails.
    let _ = hardening::harden();
    let command_line = CommandLine::parse_from(as_helper(std::env::args_os()));
    // Fails only if a provider is installed already, which is fine.
    drop(rustls::crypto::ring::default_provider().install_default());
    match run(command_line) {
        Ok(ending) => ending.into(),
        Err(failure) => failure.report(),
    }
}

/// The arguments, with `credential` where git runs this program as its helper `tokenkeeper`: `git-credential-tokenkeeper get`.
fn as_helper(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<_> = arguments.collect();
    let is_helper = arguments.first().map(Path::new).and_then(Path::file_name)
        == Some(OsStr::new("git-credential-tokenkeeper"));
    if is_helper && arguments.get(1).is_none_or(|first| first != "credential") {
        arguments.insert(1, "credential".into());
    }
    arguments
}

fn run(CommandLine { config, command }: CommandLine) -> Result<Ending, Failure> {
    let file = config.filter(|file| !file.as_os_str().is_empty());
    let load = || load_settings(file.as_deref());
    match command {
        Command::Worker(_) => in_runtime(cli::worker::run(load(), || Settings::log_alone(file.as_deref()))),
        Command::Migrate(arguments) => in_runtime(cli::migrate::run(load()?, arguments)),
        Command::Provider(arguments) => in_runtime(cli::provider::run(load()?, arguments)),
        Command::Token(arguments) => in_runtime(cli::token::run(load()?, arguments)),
        Command::Doctor(arguments) => in_runtime(cli::doctor::run(load(), arguments)),
        Command::Dead(arguments) => in_runtime(cli::dead::run(load()?, arguments)),
        Command::Housekeeping(arguments) => in_runtime(cli::housekeeping::run(load()?, arguments)),
        Command::Request(arguments) => in_runtime(cli::request::run(load()?, arguments)),
        Command::WorkspaceStart(arguments) => in_runtime(cli::workspace_start::run(load()?, arguments)),
        Command::Credential(arguments) => in_runtime(cli::credential::run(file.as_deref(), arguments)),
        Command::Login(arguments) => in_runtime(cli::login::run(load()?, arguments)),
        Command::Fake(arguments) => in_runtime(cli::fake::run(load()?, arguments)),
        Command::Keys(arguments) => in_runtime(cli::keys::run(load, arguments)),
        Command::Restore(arguments) => in_runtime(cli::restore::run(load()?, arguments)),
        Command::Audit(arguments) => cli::audit::run(&load()?, &arguments),
        // It works without settings.
        Command::Schema(arguments) => cli::schema::run(&arguments),
    }
}

fn load_settings(file: Option<&Path>) -> Result<Settings, Failure> {
    Ok(Settings::load(file)?)
}

fn in_runtime(command: impl Future<Output = Result<Ending, Failure>>) -> Result<Ending, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(command);
    // Remaining tasks are abandoned: a thread that reads from a terminal must not keep the process alive.
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn as_a_helper_of_git_it_is_the_command_credential() {
        let helper = |arguments: &[&str]| as_helper(arguments.iter().map(OsString::from));
        let expected = ["/bin/git-credential-tokenkeeper", "credential", "get"];
        assert_eq!(helper(&["/bin/git-credential-tokenkeeper", "get"]), expected);
        assert_eq!(helper(&["/bin/git-credential-tokenkeeper", "credential", "get"]), expected);
        assert_eq!(helper(&["/bin/tokenkeeper", "get"]), ["/bin/tokenkeeper", "get"]);
    }
}
