//! `tokenkeeper migrate`

mod losses;

use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::value_parser;
use sea_orm::{DatabaseConnection, DbErr};
use tokenkeeper::domain::problem::Problem;
use tokenkeeper::settings::{self, Settings};
use tokenkeeper::store::database::{self, Fault, Migrating, Place, able, in_words};
use tokenkeeper_migration::{MigrationStatus, Migrator, MigratorTrait, dropped_by};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::confirm::Confirmation;
use super::ending::Interrupted;
use super::interruption::stoppable;
use super::output::{NOTHING, Output, cell, note, table, verdict};
use super::{Ending, Failure};

/// How long to wait for the connection to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Migrates the tables of the database
///
/// Works without encryption keys. Only one of these commands changes the tables at a time; the next one waits.
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
    /// Reverts migrations, the newest first, and drops their tables and columns with all data
    Down {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
        steps: u32,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Shows which migrations are applied and which are pending
    Status,
    /// Drops every table of the database, also those of other programs, and applies every migration
    Fresh {
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let name = settings.database.display_url();
    if let Command::Fresh { confirmation } = arguments.command
        && !confirmation.given(&format!(
            "`migrate fresh` drops every table of {name} with all data, also those of other programs"
        ))?
    {
        return Ok(Ending::Bad);
    }
    // Only one connection: on SQLite `fresh` disables foreign keys for its own connection only.
    let on_one = settings::Database { max_connections: 1, ..settings.database.clone() };
    let db = match arguments.command {
        Command::Up | Command::Fresh { .. } => database::open(&on_one).await?,
        Command::Down { .. } | Command::Status => database::open_existing(&on_one).await?,
    };
    let place = Place::new(&settings.database);
    if !matches!(arguments.command, Command::Fresh { .. }) {
        able::is_no_newer(&db, &place).await?;
    }
    let failed = || format!("cannot migrate the database {name}");
    if let Command::Down { steps, confirmation } = arguments.command {
        let losses = losses::losses(&db, &newest_applied(&db, steps).await?).await.with_context(failed)?;
        let loss = format!("`migrate down` drops from {name}: {}", losses.join(", "));
        if !losses.is_empty() && !confirmation.given(&loss)? {
            return Ok(Ending::Bad);
        }
    }
    let stop = CancellationToken::new();
    let left = "`tokenkeeper migrate status` shows what is applied";
    let ended = stoppable(&stop, left, async {
        let mut output = Output::new();
        let done = match arguments.command {
            Command::Status => status(&db, &mut output).await,
            Command::Up => up(&db, &stop, &mut output).await,
            Command::Down { steps, .. } => down(&db, steps, &stop, &mut output).await,
            Command::Fresh { .. } => fresh(&db, &stop, &mut output).await,
        };
        done.map_err(|error| refused(&place, &error).unwrap_or_else(|| error.context(failed())))?;
        Ok(Ending::Good)
    })
    .await;
    // With its last connection SQLite merges its write-ahead log into the file, in a thread that must not end with this process.
    // Nothing is lost where that fails.
    drop(timeout(CLOSE_TIMEOUT, db.close()).await);
    ended
}

/// What an operator can mend.
fn refused(place: &Place, error: &anyhow::Error) -> Option<anyhow::Error> {
    let error = error.downcast_ref::<DbErr>()?;
    match Fault::of(error) {
        Fault::Denied => {}
        fault @ Fault::ReadOnly => return Some(place.unable(fault, "").into()),
        _ => return None,
    }
    // Migrations need more rights than a worker does, which are all that `tokenkeeper doctor` knows of.
    let problem = Problem::new(
        format!("cannot migrate the database {} (database.url)", place.url()),
        in_words(error),
        "migrate as the owner of the tables; on PostgreSQL a new owner needs GRANT CREATE ON SCHEMA public",
    );
    Some(problem.into())
}

/// Waits for a process that migrates the same database.
async fn begin<'a>(db: &'a DatabaseConnection, stop: &CancellationToken) -> anyhow::Result<Migrating<'a>> {
    let on_wait = || note("Another process migrates this database; waiting for it to finish.");
    tokio::select! {
        () = stop.cancelled() => Err(anyhow!(Interrupted).context("nothing was changed")),
        begun = Migrating::begin(db, on_wait) => Ok(begun?),
    }
}

async fn up(db: &DatabaseConnection, stop: &CancellationToken, output: &mut Output) -> anyhow::Result<()> {
    let migrating = begin(db, stop).await?;
    let mut rows = table(["MIGRATION", "NOW"]);
    let mut done = 0;
    let ended = loop {
        match database::pending_migrations(db).await?.first() {
            None => break Ok(()),
            Some(_) if stop.is_cancelled() => {
                break Err(anyhow!(Interrupted).context(format!(
                    "{done} migrations were applied; `tokenkeeper migrate up` applies the rest"
                )));
            }
            Some(name) => match migrating.up(Some(1)).await {
                Ok(()) => rows.add_row([cell(name), verdict(true, "applied")]),
                Err(error) => break Err(error.into()),
            },
        };
        done += 1;
    };
    migrating.end().await;
    output.table(rows)?;
    ended?;
    if done == 0 { output.line("nothing to do: every migration is applied") } else { Ok(()) }
}

async fn down(
    db: &DatabaseConnection,
    steps: u32,
    stop: &CancellationToken,
    output: &mut Output,
) -> anyhow::Result<()> {
    let migrating = begin(db, stop).await?;
    let mut rows = table(["MIGRATION", "NOW", "DROPPED"]);
    let mut done = 0;
    let ended = loop {
        match newest_applied(db, 1).await?.first() {
            Some(name) if done < steps => {
                if stop.is_cancelled() {
                    let left = steps - done;
                    break Err(anyhow!(Interrupted).context(format!(
                        "{done} of {steps} migrations were reverted; `tokenkeeper migrate down --steps {left}` reverts the rest"
                    )));
                }
                if let Err(error) = migrating.down().await {
                    break Err(error.into());
                }
                let dropped: Vec<String> = dropped_by(name).iter().map(ToString::to_string).collect();
                let dropped = if dropped.is_empty() { NOTHING.to_owned() } else { dropped.join(", ") };
                rows.add_row([cell(name), verdict(false, "pending"), cell(dropped)]);
            }
            _ => break Ok(()),
        }
        done += 1;
    };
    migrating.end().await;
    output.table(rows)?;
    ended?;
    if done == 0 { output.line("nothing to do: no migration is applied") } else { Ok(()) }
}

/// The names of this many applied migrations, the newest first.
async fn newest_applied(db: &DatabaseConnection, steps: u32) -> anyhow::Result<Vec<String>> {
    let applied = Migrator::get_applied_migrations_read_only(db).await?;
    let newest = applied.iter().rev().take(usize::try_from(steps)?);
    Ok(newest.map(|migration| migration.name().to_owned()).collect())
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

async fn fresh(db: &DatabaseConnection, stop: &CancellationToken, output: &mut Output) -> anyhow::Result<()> {
    let migrating = begin(db, stop).await?;
    migrating.fresh().await?;
    migrating.end().await;
    output.line("every table was dropped, and every migration was applied")
}
