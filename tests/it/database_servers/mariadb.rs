//! A MariaDB that is read-only, and a Galera node that takes no queries.

use std::path::Path;

use tokenkeeper_testkit::servers::MariaDb;

use super::{all_is_well_again, folder, log_users_in, while_read_only};
use crate::harness::{Dialect, Kind, World};

const PASSWORD: &str = "a-password-of-mariadb";

/// Where Debian's package galera-4 has it.
const GALERA: &str = "/usr/lib/galera/libgalera_smm.so";

async fn world_on(server: &MariaDb) -> World {
    // It has no right beyond its database: who has them may write to a server that is read-only.
    server.add_plain_user("tk", PASSWORD, "tk").await.unwrap();
    let url = format!("mysql://tk:{PASSWORD}@{}/tk", server.address("127.0.0.1"));
    World::on(Kind::MariaDb, url, Dialect::BitbucketServer).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stderr, reason = "a test that looks at nothing must say so")]
async fn a_mariadb_that_becomes_read_only_is_an_outage_and_nothing_is_lost() {
    if !MariaDb::is_installed() {
        eprintln!("SKIPPED: MariaDB is not installed here (Debian: apt-get install mariadb-server)");
        return;
    }
    let folder = folder();
    let server = MariaDb::start_plain(folder.path(), &[]).await.unwrap();
    let world = world_on(&server).await;
    let worker = world.spawn_worker().await;
    log_users_in(&world).await;

    let take_away = async { drop(server.query("set global read_only = on").await.unwrap()) };
    let meanwhile = while_read_only(&world, &worker, take_away, "is read-only (database.url)").await;
    server.query("set global read_only = off").await.unwrap();

    all_is_well_again(&world, worker, meanwhile).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stderr, reason = "a test that looks at nothing must say so")]
async fn a_galera_node_that_takes_no_queries_is_an_outage_and_nothing_is_lost() {
    if !MariaDb::is_installed() || !Path::new(GALERA).is_file() {
        eprintln!("SKIPPED: Galera is not installed here (Debian: apt-get install mariadb-server galera-4)");
        return;
    }
    let folder = folder();
    let server = MariaDb::start_galera(folder.path(), Path::new(GALERA)).await.unwrap();
    let world = world_on(&server).await;
    let worker = world.spawn_worker().await;
    log_users_in(&world).await;

    // It answers as a node that lost its cluster: 1047.
    let take_away = async { drop(server.query("set global wsrep_reject_queries = all").await.unwrap()) };
    let meanwhile =
        while_read_only(&world, &worker, take_away, "takes no connections at the moment (database.url)")
            .await;
    server.query("set global wsrep_reject_queries = none").await.unwrap();

    all_is_well_again(&world, worker, meanwhile).await;
}
