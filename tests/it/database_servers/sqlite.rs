//! An SQLite file that cannot be written any more.

use std::process::Stdio;

use tokio::process::Command;

use super::{all_is_well_again, log_users_in, while_read_only};
use crate::harness::{Dialect, Kind, World};

/// Sets or takes away that nobody, root included, may write to the file (Linux: `chattr`).
async fn immutable(path: &str, sign: char) -> bool {
    let mut command = Command::new("chattr");
    command.arg(format!("{sign}i")).arg(path).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stderr, reason = "a test that looks at nothing must say so")]
async fn a_file_that_becomes_read_only_is_an_outage_and_nothing_is_lost() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let path = world.database_url().trim_start_matches("sqlite://").trim_end_matches("?mode=rwc").to_owned();
    if !immutable(&path, '+').await || !immutable(&path, '-').await {
        eprintln!("SKIPPED: to make a file immutable needs root and a file system that can (chattr +i)");
        return;
    }
    let worker = world.spawn_worker().await;
    log_users_in(&world).await;

    let take_away = async {
        for file in [path.clone(), format!("{path}-wal")] {
            assert!(immutable(&file, '+').await);
        }
    };
    let meanwhile = while_read_only(&world, &worker, take_away, "database").await;
    for file in [path.clone(), format!("{path}-wal")] {
        immutable(&file, '-').await;
    }

    all_is_well_again(&world, worker, meanwhile).await;
}
