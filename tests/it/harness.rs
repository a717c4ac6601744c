//! What every test stands on: a world of its own (database, queues, SCM), and workers in it.

pub(crate) mod accounts;
pub(crate) mod events;
pub(crate) mod evidence;
pub(crate) mod in_process;
pub(crate) mod json_lines;
pub(crate) mod links;
pub(crate) mod logs;
pub(crate) mod process;
pub(crate) mod reply;
pub(crate) mod world;

pub(crate) use tokenkeeper_testkit::database::Kind;
pub(crate) use tokenkeeper_testkit::scm::{Dialect, Fault, ScmOptions, SimulatedScm};
pub(crate) use tokenkeeper_testkit::wait::{PATIENCE, eventually};

pub(crate) use self::in_process::InProcessWorker;
pub(crate) use self::process::WorkerProcess;
pub(crate) use self::world::World;

/// Makes a test of each `async fn NAME(kind: Kind)`, one for each kind of database.
macro_rules! on_every_database {
    ($($(#[$attribute:meta])* async fn $name:ident($kind:ident: Kind) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(#[$attribute])*
            async fn run($kind: Kind) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                run(Kind::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgresql() {
                run(Kind::Postgres).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_mariadb() {
                run(Kind::MariaDb).await;
            }
        }
    )*};
}
pub(crate) use on_every_database;
