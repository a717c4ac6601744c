//! A MariaDB that is read-only. It is a server of its own, because that setting is the whole server's.

use std::process::Stdio;

use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use tempfile::TempDir;
use tokenkeeper_testkit::wait::within;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use super::{assert_told_once, launch_at, next, not_ready_because};
use crate::cli::Cli;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

/// Ends when it is dropped.
struct OwnServer {
    url: String,
    admin: DatabaseConnection,
    _server: Child,
    _folder: TempDir,
}

impl OwnServer {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let in_folder = |option: &str, name: &str| format!("{option}={}", folder.path().join(name).display());
        let user = Command::new("id").arg("-un").output().await.unwrap().stdout;
        let user = format!("--user={}", String::from_utf8(user).unwrap().trim());
        let data = in_folder("--datadir", "data");
        let mut install = Command::new("mariadb-install-db");
        install.args(["--no-defaults", "--skip-test-db", &user, &data]);
        let installed = within("mariadb-install-db to end", PATIENCE, install.output()).await;
        assert!(installed.expect("mariadb-install-db of the package mariadb-server").status.success());
        let script = "CREATE DATABASE tk;\nCREATE USER tk IDENTIFIED BY 'pw';\nGRANT ALL ON tk.* TO tk;\n\
                      CREATE USER admin IDENTIFIED BY 'pw';\nGRANT ALL ON *.* TO admin;\n";
        std::fs::write(folder.path().join("init.sql"), script).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut server = Command::new("mariadbd");
        server.args([
            "--no-defaults",
            "--bind-address=127.0.0.1",
            "--innodb-buffer-pool-size=8M",
            &user,
            &data,
        ]);
        server.arg(in_folder("--socket", "socket")).arg(in_folder("--pid-file", "pid"));
        server.arg(in_folder("--init-file", "init.sql")).arg(format!("--port={}", free.port()));
        server.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let server = server.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").spawn();
        let server = server.expect("mariadbd of the package mariadb-server");
        let admin_url = format!("mysql://admin:pw@{free}/mysql");
        let connect = async || Database::connect(&admin_url).await.ok();
        let admin = eventually("MariaDB to start", PATIENCE, connect).await;
        Self { admin, url: format!("mysql://tk:pw@{free}/tk"), _server: server, _folder: folder }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_that_is_read_only_is_told_to_workers_and_to_commands_that_write() {
    let server = OwnServer::start().await;
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world).set("DATABASE_URL", &server.url);
    cli.run(&["migrate", "up"]).await.good();
    server.admin.execute_unprepared("SET GLOBAL read_only = ON").await.unwrap();

    let worker = launch_at(&mut world, &server.url).await;
    let line = not_ready_because(&worker, "is read-only (database.url): read_only is on").await;
    assert_told_once(&worker);
    cli.write("empty.jsonl", "");
    cli.write("providers.toml", &world.scm.provider_toml(""));
    for command in [
        &["provider", "apply", "providers.toml"][..],
        &["token", "import", "empty.jsonl"],
        &["keys", "rotate"],
        &["housekeeping"],
    ] {
        let ended = cli.run(command).await.with_code(1).says("is read-only (database.url): read_only is on");
        drop(ended.says("next: name the primary in database.url, or SET GLOBAL read_only = OFF"));
    }
    cli.run(&["token", "list"]).await.good();

    let (_, mending) = next(&line).split_once(", or ").expect("the statement that mends it");
    server.admin.execute_unprepared(mending).await.unwrap();
    worker.wait_until_ready().await;
    worker.stop(&world).await;
}
