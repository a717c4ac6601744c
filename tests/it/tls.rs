//! TLS with real servers: the right authority, a wrong one, an expired certificate, another name, no client certificate.
//!
//! The servers are this file's own, because the machine's have no TLS. Where their programs are not installed, as where the other
//! tests' servers run in containers, the tests say so and look at nothing.

mod broker;
mod database;
mod providers;

use std::path::{Path, PathBuf};

use tokenkeeper_testkit::authority::{Authority, Signed};
use tokenkeeper_testkit::program::write_private;
use tokenkeeper_testkit::servers::{self, ServerTls};

use crate::cli::Cli;
use crate::harness::{Dialect, Kind, World};

/// Whether this machine can run servers of a test's own.
#[allow(clippy::print_stderr, reason = "a test that looks at nothing must say so")]
pub(crate) fn can_run_servers() -> bool {
    let can = servers::are_installed();
    if !can {
        eprintln!(
            "SKIPPED: PostgreSQL or RabbitMQ is not installed here (Debian: apt-get install postgresql rabbitmq-server)"
        );
    }
    can
}

/// Two authorities, one of which nobody trusts, and a folder for files in PEM that servers' accounts may enter.
struct Trust {
    known: Authority,
    unknown: Authority,
    folder: tempfile::TempDir,
}

impl Trust {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { known: Authority::new("known"), unknown: Authority::new("unknown"), folder }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.folder().join(name);
        write_private(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// What a server has that shows this certificate, and wants clients' to be signed by the known authority.
    fn of_server<'a>(&'a self, shown: &'a Signed) -> ServerTls<'a> {
        ServerTls { cert: &shown.cert, key: &shown.key, client_ca: self.known.pem() }
    }

    /// The settings of a link (`BROKER`, `DATABASE`): whom it trusts, and what it shows.
    fn settings(&self, link: &str, trusted: &Authority, shown: Option<&Signed>) -> Vec<(String, String)> {
        let variable = |key: &str| format!("TOKENKEEPER__{link}__TLS_{key}_FILE");
        let mut settings = vec![(variable("CA"), self.write("trusted.pem", trusted.pem()))];
        if let Some(Signed { cert, key }) = shown {
            settings.push((variable("CERT"), self.write("client.pem", cert)));
            settings.push((variable("KEY"), self.write("client-key.pem", key)));
        }
        settings
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_over_a_network_is_refused_or_warned_about_where_the_operator_wants_it() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set_broker_url("amqp://tk:s3cret@no-such-host.invalid/%2f".to_owned());
    world.set("database.url", "postgres://tk:s3cret@no-such-host.invalid/t").set("database.tls", "off");
    let refused = Cli::of(&world).run(&["doctor"]).await.with_code(2);
    refused.says("would send passwords and tokens to no-such-host.invalid in plain text");

    world.set("broker.tls", "off");

    let told = Cli::of(&world).run(&["doctor"]).await.with_code(1);
    let worker = world.launch_worker_process().await;
    for link in ["broker", "database"] {
        let is_warning =
            |line: &str| line.starts_with(&format!("! {link} TLS ")) && line.contains("in plain text");
        assert!(told.stdout.lines().any(is_warning), "{}", told.stdout);
        worker.wait_for_log(&format!("in plain text ({link}.tls)"), 1).await;
    }
    assert_eq!(worker.log().matches("in plain text (").count(), 2, "each link once");
    assert!(!told.stdout.contains("s3cret") && !worker.log().contains("s3cret"));
    worker.stop(&world).await;
}
