//! A name with several addresses.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tokenkeeper_testkit::authority::Authority;
use tokenkeeper_testkit::program::write_private;
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::servers::{Postgres, ServerTls};
use tokio::process::Command;

use super::{can_run_postgres, folder};
use crate::harness::{PATIENCE, eventually};

const NAME: &str = "db.tokenkeeper.test";
const USER: &str = "tokenkeeper";

/// Runs a command in which this name has these addresses: it gets a file of hosts of its own.
fn where_hosts_are(hosts: &str, folder: &Path) -> Command {
    let file = folder.join("hosts");
    std::fs::write(&file, hosts).unwrap();
    let mut command = Command::new("unshare");
    // Of util-linux. Without rights of the system: the mount is in a namespace of its own.
    command.args(["--map-root-user", "--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
    command.arg(file).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verified_name_with_several_addresses_leads_to_the_one_that_takes_writes() {
    if !can_run_postgres() {
        return;
    }
    let (folder, other_folder) = (folder(), folder());
    let authority = Authority::new("known");
    let (shown, client) = (authority.sign_server(NAME), authority.sign_client(USER));
    let tls = ServerTls { cert: &shown.cert, key: &shown.key, client_ca: authority.pem() };
    let read_only = Postgres::start(folder.path(), Some(&tls)).await.unwrap();
    let writable = Postgres::start(other_folder.path(), Some(&tls)).await.unwrap();
    for server in [&read_only, &writable] {
        server.query("postgres", "create role tokenkeeper login").await.unwrap();
        server.query("postgres", "create database tokens owner tokenkeeper").await.unwrap();
    }
    read_only.set_read_only(true).await.unwrap();
    // Both at the same port, as the servers of a name are.
    let first = FaultProxy::start(&read_only.address()).await;
    let port = first.address().port();
    let second = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port));
    let _second = FaultProxy::start_at(second, &writable.address()).await;
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        write_private(&path, text).unwrap();
        path.display().to_string()
    };
    let settings = [
        ("DATABASE_URL", format!("postgres://{USER}@{NAME}:{port}/tokens")),
        ("TOKENKEEPER__DATABASE__TLS_CA_FILE", write("trusted.pem", authority.pem())),
        ("TOKENKEEPER__DATABASE__TLS_CERT_FILE", write("client.pem", &client.cert)),
        ("TOKENKEEPER__DATABASE__TLS_KEY_FILE", write("client-key.pem", &client.key)),
    ];
    let hosts = format!("127.0.0.1 localhost {NAME}\n127.0.0.2 {NAME}\n");
    let migrate = async |settings: &[(&str, String)]| {
        let mut command = where_hosts_are(&hosts, folder.path());
        command.arg(env!("CARGO_BIN_EXE_tokenkeeper")).args(["migrate", "up"]);
        command.envs(settings.iter().map(|(name, value)| (*name, value)));
        let ended = command.current_dir(folder.path()).output().await.unwrap();
        (ended.status.success(), String::from_utf8_lossy(&ended.stderr).into_owned())
    };

    let (done, told) = migrate(&settings).await;
    assert!(done, "{told}");
    let tables = "select count(*) from pg_tables where tablename = 'token_entry'";
    assert_eq!(writable.query("tokens", tables).await.unwrap(), "1");
    assert_eq!(read_only.query("tokens", tables).await.unwrap(), "0");

    // The name is verified at each address.
    let stranger = authority.sign_server("other.tokenkeeper.test");
    let tls = ServerTls { cert: &stranger.cert, key: &stranger.key, client_ca: authority.pem() };
    writable.change_certificate(&tls).await.unwrap();
    let told = eventually("the other certificate", PATIENCE, async || {
        let (done, told) = migrate(&settings).await;
        (!done).then_some(told)
    })
    .await;
    assert!(told.contains("is read-only"), "{told}");
}
