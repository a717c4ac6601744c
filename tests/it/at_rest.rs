//! Secrets on the host that a worker runs on: its files, its memory, and where its keys come from.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
#[cfg(target_os = "linux")]
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use tempfile::TempDir;
use tokenkeeper::domain::secret::{ExposeSecret, KeyRing};
use tokenkeeper_testkit::authority::Authority;
use tokenkeeper_testkit::program::write_private;
use tokenkeeper_testkit::wait::within;

use crate::cli::Cli;
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// What of this file or of what is in this folder others may read, write or look into.
fn open_to_others(path: &Path) -> Vec<String> {
    let mut open = Vec::new();
    if mode(path) & 0o077 != 0 {
        open.push(format!("{} ({:o})", path.display(), mode(path)));
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            open.extend(open_to_others(&entry.unwrap().path()));
        }
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_worker_writes_is_for_its_user_alone_whatever_umask_it_is_started_with() {
    let folder = TempDir::new().unwrap();
    let database = folder.path().join("tokens.db");
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let keys = world.keys.clone();
    let url = format!("sqlite://{}", database.display());
    let cli = Cli::of(&world).before("umask 000").set("DATABASE_URL", &url).set("TOKENKEEPER_KEYS", &keys);
    cli.run(&["migrate", "up"]).await.good();
    cli.run_with_input(&["provider", "apply", "-"], &world.scm.provider_toml("")).await.good();

    world.set("database.url", &url).set("audit.to", "file");
    world.set("audit.file", folder.path().join("audit.jsonl").display());
    world.set("worker.spool_dir", folder.path().join("spool").display());
    let worker = WorkerProcess::spawn_after(&world, "umask 000").await;
    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    let journal = folder.path().join("tokens.db-wal");
    eventually("the journal and the audit log", PATIENCE, async || {
        (journal.exists() && folder.path().join("audit.jsonl").exists()).then_some(())
    })
    .await;

    let made = fs::read_dir(folder.path()).unwrap();
    let open: Vec<String> = made.flat_map(|entry| open_to_others(&entry.unwrap().path())).collect();
    assert_eq!(open, Vec::<String>::new());
    worker.stop(&world).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_writes_no_core_file_however_much_its_parent_allows() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = WorkerProcess::spawn_after(&world, "ulimit -c unlimited").await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", worker.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit");
    assert_eq!(line.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{line}");
    assert!(!worker.log().contains("protect its memory"), "{}", worker.log());
    // What needs files of the process itself goes on working.
    assert!(worker.metric("process_open_fds").await > 0.0);
    assert!(worker.metric("process_resident_memory_bytes").await > 0.0);
    worker.stop(&world).await;
}

/// Of each process that a signal ends the system says whether it left a core file, wherever that goes.
#[cfg(target_os = "linux")]
#[allow(clippy::print_stderr, reason = "a test that proves nothing must say so")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_has_handled_tokens_and_is_aborted_leaves_no_core_file() {
    const UNLIMITED: &str = "ulimit -c unlimited";
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = WorkerProcess::spawn_after(&world, UNLIMITED).await;
    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");

    worker.signal("ABRT").await;

    let ended = worker.wait(&world).await;
    assert!(ended.signal().is_some() && !ended.core_dumped(), "{ended:?}");
    // It proves something where another program leaves one under the same limit.
    let folder = TempDir::new().unwrap();
    let mut other = tokio::process::Command::new("sh");
    other.args(["-c", &format!("{UNLIMITED} && kill -s ABRT $$")]).current_dir(folder.path());
    let other = other.status().await.expect("run sh");
    if !other.core_dumped() {
        eprintln!("SKIPPED: this system writes no core files at all (/proc/sys/kernel/core_pattern)");
    }
}

/// The files of a process that is not dumpable belong to root (proc(5)), and nobody else may attach to it (ptrace(2)).
#[cfg(target_os = "linux")]
#[tokio::test]
async fn another_process_of_the_same_user_reads_neither_memory_nor_environment() {
    const NOBODY: u32 = 65_534;
    let key = KeyRing::generate("k1").expose_secret().to_owned();
    let cli = Cli::with([("TOKENKEEPER_KEYS".to_owned(), key)]);
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = cli.command(&["provider", "apply", "-"]);
    // It waits for its input.
    command.stdin(std::process::Stdio::piped()).current_dir("/");
    if is_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = command.spawn().expect("start tokenkeeper");
    let pid = child.id().expect("it runs");
    eventually("its files to belong to root", PATIENCE, async || {
        let environment = fs::metadata(format!("/proc/{pid}/environ")).expect("it runs");
        (environment.uid() == 0).then_some(())
    })
    .await;
    let by_the_same_user = |program: &str, arguments: &[&str]| {
        let mut reader = tokio::process::Command::new(program);
        reader.args(arguments).current_dir("/");
        if is_root {
            reader.uid(NOBODY).gid(NOBODY);
        }
        reader
    };
    for file in ["environ", "maps", "auxv"] {
        let read =
            by_the_same_user("cat", &[&format!("/proc/{pid}/{file}")]).output().await.expect("run cat");
        assert!(!read.status.success() && read.stdout.is_empty(), "{file}: {read:?}");
    }
    // Memory has nothing at its begin, so that reading it fails for everybody: opening it is what is refused.
    let opened = by_the_same_user("sh", &["-c", &format!("exec 3< /proc/{pid}/mem")]).status().await;
    assert!(!opened.expect("run sh").success(), "its memory can be opened");
    no_debugger_makes_a_core_file_of(pid, by_the_same_user).await;
    child.kill().await.expect("end it");
}

/// `gcore` of gdb, which attaches to a process and writes its memory to a file. Root may still do that.
#[cfg(target_os = "linux")]
#[allow(clippy::print_stderr, reason = "a test that looks at nothing must say so")]
async fn no_debugger_makes_a_core_file_of(
    pid: u32,
    by_the_same_user: impl Fn(&str, &[&str]) -> tokio::process::Command,
) {
    if !Path::new("/usr/bin/gcore").exists() {
        eprintln!("SKIPPED: gcore is not installed here (Debian: apt-get install gdb)");
        return;
    }
    let folder = TempDir::new().unwrap();
    set_mode(folder.path(), 0o777);
    let core = folder.path().join("core");
    let arguments = ["-o", core.to_str().unwrap(), &pid.to_string()];
    let tried = by_the_same_user("gcore", &arguments).output().await.expect("run gcore");
    let written: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(written.is_empty(), "{written:?}: {tried:?}");
    let said = String::from_utf8_lossy(&tried.stderr);
    assert!(!tried.status.success() && said.contains("Operation not permitted"), "{tried:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_secrets_that_others_may_read_is_refused_with_the_command_that_mends_it() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world).unset("TOKENKEEPER_KEYS").set("TOKENKEEPER__ENCRYPTION__KEYS_FILE", "keys");
    let keys = cli.folder.path().join("keys");
    write_private(&keys, &world.keys).unwrap();
    cli.run(&["token", "list"]).await.good();
    set_mode(&keys, 0o644);
    for command in [&["token", "list"][..], &["worker"], &["doctor"]] {
        let refused = cli.run(command).await.with_code(2).keeps_secrets_of(&world);
        refused.says("(mode 0644); next: chmod 600 keys, or files.require_private = false");
    }
    cli.write("tokenkeeper.toml", "[files]\nrequire_private = false\n");
    cli.run(&["token", "list"]).await.good();

    let cli = Cli::of(&world);
    let providers = cli.folder.path().join("providers.toml");
    write_private(&providers, &world.scm.provider_toml("")).unwrap();
    let apply = ["provider", "apply", "providers.toml"];
    cli.run(&apply).await.good();
    set_mode(&providers, 0o644);
    cli.run(&apply).await.with_code(1).keeps_secrets_of(&world).says("next: chmod 600 providers.toml");
    fs::write(&providers, world.scm.provider_toml("client_secret_file = \"secret\"")).unwrap();
    let secret = cli.folder.path().join("secret");
    write_private(&secret, world.scm.client_secret()).unwrap();
    cli.run(&apply).await.good();
    set_mode(&secret, 0o644);
    cli.run(&apply).await.with_code(1).keeps_secrets_of(&world).says("chmod 600").says("secret");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_endpoint_s_token_and_key_are_refused_where_others_may_read_them() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let signed = Authority::new("an authority").sign_server("localhost");
    for (settings, exposed) in [
        (&[("TOKENKEEPER__ADMIN__TOKEN_FILE", "token")][..], "token"),
        (
            &[
                ("TOKENKEEPER__ADMIN__TLS_CERT_FILE", "cert.pem"),
                ("TOKENKEEPER__ADMIN__TLS_KEY_FILE", "key.pem"),
            ],
            "key.pem",
        ),
    ] {
        let cli = settings.iter().fold(Cli::of(&world), |cli, (variable, value)| cli.set(variable, value));
        for (name, text) in
            [("token", "an-admin-token-of-a-test"), ("cert.pem", &signed.cert), ("key.pem", &signed.key)]
        {
            cli.write(name, text);
        }
        set_mode(&cli.folder.path().join(exposed), 0o644);
        let refused = cli.run(&["worker"]).await.with_code(1).keeps_secrets_of(&world);
        refused.says(&format!("(mode 0644); next: chmod 600 {exposed}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_command_is_run_once_and_its_failures_are_told_without_its_output() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let folder = TempDir::new().unwrap();
    let runs = folder.path().join("runs");
    let keys = folder.path().join("keys");
    write_private(&keys, &world.keys).unwrap();
    let script = format!("echo run >> {}; cat {}", runs.display(), keys.display());
    let command = |script: &str| serde_json::to_string(&["sh", "-c", script]).unwrap();
    let ring = world.keys.clone();
    world.set("encryption.keys_command", command(&script));
    let worker = WorkerProcess::spawn_without(&world, "TOKENKEEPER_KEYS").await;
    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    worker.stop(&world).await;
    assert_eq!(fs::read_to_string(&runs).unwrap(), "run\n", "a worker runs it once");

    for (script, told) in [
        ("cat keys >&2; cat keys; exit 3".to_owned(), "brings no keys: sh ended with exit status: 3"),
        ("cat keys; sleep 600".to_owned(), "brings no keys: sh did not end within 1 s, and was killed"),
        ("yes \"$(cat keys)\"".to_owned(), "brings no keys: sh printed more than 64 KiB"),
        ("echo k1:s3cret".to_owned(), "printed no keys: key `k1` is not 32 bytes"),
    ] {
        let cli = Cli::of(&world)
            .unset("TOKENKEEPER_KEYS")
            .set("TOKENKEEPER__ENCRYPTION__KEYS_COMMAND", &command(&script))
            .set("TOKENKEEPER__ENCRYPTION__KEYS_COMMAND_TIMEOUT_SECS", "1");
        cli.write("keys", &ring);
        let refused = cli.run(&["worker"]).await.with_code(2).keeps_secrets_of(&world).says(told);
        assert!(!refused.stderr.contains("s3cret"), "{refused:?}");
    }
    let cli = Cli::of(&world)
        .unset("TOKENKEEPER_KEYS")
        .set("TOKENKEEPER__ENCRYPTION__KEYS_COMMAND", &command("exec 9> open; sleep 600 & wait"))
        .set("TOKENKEEPER__ENCRYPTION__KEYS_COMMAND_TIMEOUT_SECS", "5");
    // A pipe ends when nobody holds it open any more: neither the command nor what it started.
    let pipe = cli.folder.path().join("open");
    assert!(tokio::process::Command::new("mkfifo").arg(&pipe).status().await.unwrap().success());
    let all_have_ended = tokio::spawn(async move { tokio::fs::read(pipe).await });
    cli.run(&["worker"]).await.with_code(2).says("did not end within 5 s, and was killed");
    within("all that the command started to end", PATIENCE, all_have_ended).await.unwrap().unwrap();
    // What comes on the standard input is the worker's own, as a provider file is.
    let cli = Cli::of(&world)
        .unset("TOKENKEEPER_KEYS")
        .set("TOKENKEEPER__ENCRYPTION__KEYS_COMMAND", &serde_json::to_string(&["cat"]).unwrap());
    let refused = cli.run_with_input(&["worker"], &ring).await.with_code(2).keeps_secrets_of(&world);
    refused.says("printed no keys: there are no encryption keys");
}
