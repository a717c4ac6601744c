//! Spool folder, flag file, audit log and admin port.

use crate::app::admin::Endpoint;
use crate::domain::finding::Finding;
use crate::domain::problem::Problem;
use crate::flags::Flags;
use crate::parking::Spool;
use crate::settings::{AuditSettings, Settings};
use crate::telemetry::audit::AuditSink;

pub(super) async fn look(settings: &Settings) -> Vec<Finding> {
    vec![spool(settings).await, flags(settings).await, audit(&settings.audit), admin(settings).await]
}

fn audit(settings: &AuditSettings) -> Finding {
    const CHECK: &str = "audit log";
    match settings {
        AuditSettings::Off => Finding::good(CHECK, "it is off (audit.to)"),
        AuditSettings::Stdout => Finding::good(CHECK, "it goes to standard output"),
        AuditSettings::File(file) => match AuditSink::check(file) {
            Ok(()) => Finding::good(CHECK, format!("{} can be written", file.path.display())),
            Err(problem) => Finding::wrong(CHECK, problem),
        },
    }
}

/// Another worker of this machine may have the port, which is no problem.
async fn admin(settings: &Settings) -> Finding {
    const CHECK: &str = "admin endpoint";
    match Endpoint::open(&settings.admin).await {
        Ok(_) => Finding::good(CHECK, format!("{} is free", settings.admin.listen)),
        Err(error) => match error.downcast::<Problem>() {
            Ok(problem) => Finding::warning(CHECK, problem),
            Err(error) => Finding::not_looked(CHECK, error.to_string()),
        },
    }
}

async fn spool(settings: &Settings) -> Finding {
    let folder = &settings.worker.spool_dir;
    match Spool::new(folder).check().await {
        None => Finding::good("spool folder", format!("{} can be written", folder.display())),
        Some(problem) => Finding::wrong("spool folder", problem),
    }
}

async fn flags(settings: &Settings) -> Finding {
    const CHECK: &str = "flags";
    let file = settings.flags.file.path().display();
    match Flags::open(&settings.flags.file).await {
        Err(error) => Finding::wrong(CHECK, error.problem()),
        Ok((_, reloader)) => match reloader.warnings() {
            None => Finding::good(CHECK, format!("there is no file {file}: the defaults hold")),
            Some([]) => Finding::good(CHECK, format!("{file} is in force")),
            Some(warnings) => Finding::warning(
                CHECK,
                Problem::new(
                    format!("{file} says what does not hold (flags.file)"),
                    warnings.join("; "),
                    "correct it there",
                ),
            ),
        },
    }
}
