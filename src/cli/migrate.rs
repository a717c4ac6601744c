//! `tokenkeeper migrate`

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, anyhow};
use clap::value_parser;
use sea_orm::DatabaseConnection;
use tokenkeeper::settings::{self, Settings};
use tokenkeeper::store::database;
use tokenkeeper_migration::{MigrationStatus, Migrator, MigratorTrait};

use super::output::{Output, cell, table, verdict};
use super::{Ending, Failure};

/// Migrates the tables of the database
///
/// Works without encryption keys. There is no lock: run only one migration at a time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper migrate status
  DATABASE_URL=postgres://tokenkeeper:secret@db.example.org/tokenkeeper tokenkeeper migrate up")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Applies every migration that is pending
    Up,
    /// Reverts migrations, the newest first, and drops their tables with all data
    Down {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
        steps: u32,
    },
    /// Shows which migrations are applied and which are pending
    Status,
    /// Drops every table of the database, also those of other programs, and applies every migration
    Fresh {
        /// Does not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    if let Command::Fresh { yes: false } = arguments.command
        && !confirm_fresh(&settings.database)?
    {
        return Ok(Ending::Bad);
    }
    // Only one connection: on SQLite `fresh` disables foreign keys for its own connection only.
    let db = database::open(&settings::Database { max_connections: 1, ..settings.database.clone() }).await?;
    let mut output = Output::new();
    let done = match arguments.command {
        Command::Up => up(&db, &mut output).await,
        Command::Down { steps } => down(&db, steps, &mut output).await,
        Command::Status => status(&db, &mut output).await,
        Command::Fresh { .. } => fresh(&db, &mut output).await,
    };
    done.with_context(|| format!("cannot migrate the database {}", settings.database.display_url()))?;
    Ok(Ending::Good)
}

async fn up(db: &DatabaseConnection, output: &mut Output) -> anyhow::Result<()> {
    let pending = database::pending_migrations(db).await?;
    database::migrate(db).await?;
    let mut rows = table(["MIGRATION", "NOW"]);
    rows.add_rows(pending.iter().map(|name| [cell(name), verdict(true, "applied")]));
    output.table(rows)?;
    if pending.is_empty() { output.line("nothing to do: every migration is applied") } else { Ok(()) }
}

async fn down(db: &DatabaseConnection, steps: u32, output: &mut Output) -> anyhow::Result<()> {
    let applied = Migrator::get_applied_migrations(db).await?;
    let mut rows = table(["MIGRATION", "NOW", "DROPPED"]);
    for migration in applied.iter().rev().take(usize::try_from(steps)?) {
        let name = migration.name();
        rows.add_row([cell(name), verdict(false, "pending"), cell(dropped_by(name))]);
    }
    Migrator::down(db, Some(steps)).await?;
    output.table(rows)?;
    if applied.is_empty() { output.line("nothing to do: no migration is applied") } else { Ok(()) }
}

async fn status(db: &DatabaseConnection, output: &mut Output) -> anyhow::Result<()> {
    let mut rows = table(["MIGRATION", "STATUS"]);
    for migration in Migrator::get_migration_with_status_read_only(db).await? {
        let status = match migration.status() {
            MigrationStatus::Applied => verdict(true, "applied"),
            MigrationStatus::Pending => verdict(false, "pending"),
        };
        rows.add_row([cell(migration.name()), status]);
    }
    output.table(rows)
}

async fn fresh(db: &DatabaseConnection, output: &mut Output) -> anyhow::Result<()> {
    Migrator::fresh(db).await?;
    output.line("every table was dropped, and every migration was applied")
}

/// Asks for confirmation. Without a terminal, `--yes` is required.
fn confirm_fresh(database: &settings::Database) -> Result<bool, Failure> {
    let what = format!(
        "`migrate fresh` drops every table of {} with all data, also those of other programs",
        database.display_url()
    );
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(anyhow!("{what}; pass --yes to confirm")));
    }
    let mut stderr = io::stderr();
    write!(stderr, "{what}.\nType yes to continue: ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    let confirmed = answer.trim() == "yes";
    if !confirmed {
        writeln!(stderr, "Nothing was changed.")?;
    }
    Ok(confirmed)
}

/// What reverting a migration drops, by the naming convention `m…_create_TABLE`.
fn dropped_by(migration: &str) -> String {
    match migration.split_once("_create_") {
        Some((_, table)) => format!("table {table}"),
        None => "what it added".to_owned(),
    }
}
