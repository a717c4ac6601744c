//! `tokenkeeper worker`

use std::io;
use std::sync::Arc;

use anyhow::Context;
use tokenkeeper::app::lifecycle::{Stop, StopSignals};
use tokenkeeper::app::{exposed, hardening, open_files};
use tokenkeeper::domain::clock::SystemClock;
use tokenkeeper::settings::{Log, LogFormat, Settings};
use tokenkeeper::telemetry::audit::AuditSink;
use tokenkeeper::telemetry::{self, logs, recorder};
use tokenkeeper::worker::{TimeSource, Worker};

use super::{Ending, Failure};

/// Answers requests for tokens until it is stopped
///
/// Consumes token.request, workspace.start and token.store from RabbitMQ. Any number of workers may run on the
/// same broker and database. /metrics, /healthz and /readyz are served at the setting `admin.listen`.
///
/// SIGTERM or SIGINT stops it: it takes nothing new, finishes what it has in hand within the grace period (the
/// setting `worker.grace_period_secs`), gives the rest back to the broker and exits with 0. A second signal ends it
/// at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  AMQP_URL=amqps://worker:secret@mq.example.org/%2f \\
  DATABASE_URL=postgres://tokenkeeper:secret@db.example.org/tokenkeeper \\
  TOKENKEEPER_KEYS=k-1a2b3c:… tokenkeeper worker")]
pub(crate) struct Arguments {}

/// Settings that are wrong are told as any other failure of the start: in the format of the log.
pub(crate) async fn run(
    settings: Result<Settings, Failure>,
    log_alone: impl FnOnce() -> Log,
) -> Result<Ending, Failure> {
    let audit = settings.as_ref().map_or(Ok(None), open_audit);
    let log = settings.as_ref().map_or_else(|_| log_alone(), |settings| settings.log);
    let (audit, started) = match audit {
        Ok(audit) => (audit, settings),
        Err(failure) => (None, Err(failure)),
    };
    let format = format(log.format);
    // Only a worker logs. The other commands use their output and their error.
    logs::install(log.level, format, io::stderr, audit.clone())?;
    telemetry::log_panics();
    let ended = match started {
        Ok(settings) => work(settings, audit.as_ref()).await,
        Err(failure) => Err(failure),
    };
    if let Some(audit) = audit {
        audit.flush();
    }
    match format {
        logs::Format::Human => ended,
        logs::Format::Json => ended.map_err(Failure::log),
    }
}

/// The newest key chains the lines, if the settings want that.
fn open_audit(settings: &Settings) -> Result<Option<AuditSink>, Failure> {
    let key = if settings.audit.is_chained() {
        Some(settings.key_ring()?.newest().audit_key().clone())
    } else {
        None
    };
    Ok(AuditSink::open(&settings.audit, key)?)
}

async fn work(settings: Settings, audit: Option<&AuditSink>) -> Result<Ending, Failure> {
    // Before anything else: a signal during the start must stop the worker too.
    let signals = StopSignals::listen().context("cannot listen for signals")?;
    let stop = Stop::default();
    let metrics = recorder::install().context("cannot install the recorder of metrics")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        broker = settings.broker.display_url(),
        prefix = settings.broker.prefix,
        database = settings.database.display_url(),
        "worker starting"
    );
    if let Some(audit) = audit {
        audit.tell_chain();
    }
    if let Some(problem) = settings.unguarded() {
        telemetry::unguarded(&problem);
    }
    for problem in [exposed::broker(&settings.broker), exposed::database(&settings.database)].iter().flatten()
    {
        telemetry::link_exposed(problem);
    }
    open_files::raise_limit();
    hardening::warn_if_exposed();
    let second_signal = signals.drive(stop.clone(), settings.worker.grace_period);
    let time = TimeSource::Database { own: Arc::new(SystemClock) };
    let work = async {
        let Some(worker) = Worker::start(settings, time, Some(metrics), stop).await? else {
            tracing::info!("stopped");
            return Ok(());
        };
        worker.join().await
    };
    tokio::select! {
        ended = work => {
            ended?;
            Ok(Ending::Good)
        }
        () = second_signal => Ok(Ending::Bad),
    }
}

fn format(format: LogFormat) -> logs::Format {
    match format {
        LogFormat::Auto => logs::Format::detect(),
        LogFormat::Human => logs::Format::Human,
        LogFormat::Json => logs::Format::Json,
    }
}
