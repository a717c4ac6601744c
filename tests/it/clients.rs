//! The clients of other languages and the plain examples, as publishers run them, with a live worker.
//!
//! They need Python and Node with the packages that scripts/clients.sh installs; it also translates the TypeScript, and says by
//! `CLIENTS` where all of that is. Without it they are skipped, with a line that says so.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokenkeeper::contract::MessageKind;
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper_testkit::wait::within;
use tokio::process::Command;

use crate::harness::{Dialect, InProcessWorker, Kind, World};

/// A whole suite runs in it: a minute on an idle machine.
const SUITE_PATIENCE: Duration = Duration::from_secs(240);

/// The users whose pairs the clients' suites store, beside `expired-0` to `expired-19`.
const USERS: [&str; 7] = ["sealed", "clear", "short", "reported", "workspace", "partitioned", "busy"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What scripts/clients.sh made of this language's client, if it ran and could.
fn prepared(what: &str, proof: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("CLIENTS").map(PathBuf::from);
    let found = folder.filter(|folder| folder.join(proof).exists());
    if found.is_none() {
        // Not `eprintln!`, which the test harness keeps to itself.
        let line = format!("SKIPPED: {what}: scripts/clients.sh runs it, where its tools are installed\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }
    found
}

fn python(clients: &Path) -> Command {
    let mut command = Command::new(clients.join("venv/bin/python"));
    command.env("PYTHONPATH", root().join("clients/python")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A world with a worker, whose host has issued a pair to each of the users.
struct Live {
    world: World,
    worker: InProcessWorker,
    /// What the suites want to know of it.
    described: Value,
}

impl Live {
    async fn start() -> Self {
        let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
        world.set("broker.partitions", 2);
        let worker = world.start_worker().await;
        let expired = (0..20).map(|number| format!("expired-{number}"));
        let users = USERS.map(str::to_owned).into_iter().chain(expired);
        let logins: Map<String, Value> = users.map(|user| (user.clone(), login(&world, &user))).collect();
        let ring = KeyRing::parse(&world.keys).expect("keys");
        let key = ring.keys().first().expect("a key");
        let described = json!({
            "amqp_url": world.broker.url(), "prefix": world.broker.prefix(), "host": world.scm.host(),
            "public_key": key.login_public_key().to_string(), "key_id": key.id().to_string(), "logins": logins,
        });
        Self { world, worker, described }
    }

    /// How the program ended that was told where this world is.
    async fn run(&self, mut command: Command) -> Output {
        let broker = &self.world.broker;
        command.env("TOKENKEEPER_WORLD", self.described.to_string());
        command.env("AMQP_URL", broker.url()).env("PREFIX", broker.prefix());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        within("the program to end", SUITE_PATIENCE, command.output()).await.expect("start the program")
    }

    /// Runs a suite that must pass, and leave no test out.
    async fn run_suite(self, command: Command) {
        let output = self.run(command).await;
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{}\n{}", said[0], said[1]);
        let all = said.iter().all(|text| !text.contains("skipped") || text.contains("\n# skipped 0\n"));
        assert!(all, "{}\n{}", said[0], said[1]);
        self.worker.stop().await;
    }

    /// Runs an example for a user with a token, and for one without.
    async fn run_example(self, command: impl Fn(&str, &str) -> Command) {
        let stored = self.world.scm.authorize("example");
        self.world.store_pair(&stored).await;
        let host = self.world.scm.host();

        let there = self.run(command("example", &host)).await;
        let missing = self.run(command("nobody", &host)).await;

        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(there.status.success(), "{}", text(&there.stderr));
        assert!(text(&there.stdout).contains("a token until 20"), "{}", text(&there.stdout));
        assert!(!text(&there.stdout).contains(&stored.access_token));
        assert!(!missing.status.success(), "{}", text(&missing.stdout));
        assert!(text(&missing.stderr).contains("user_not_found: "), "{}", text(&missing.stderr));
        self.worker.stop().await;
    }
}

/// The body of the `token.store` for a user's pair, of the sort that the user's name says.
fn login(world: &World, user: &str) -> Value {
    let scm = &world.scm;
    let lives_until = if user.starts_with("expired") { -1000 } else { 7_200_000 };
    let pair = scm.authorize_until(user, scm.now_ms() + lives_until);
    let mut body = scm.token_store_body(&pair);
    if user == "short" {
        body["token"].as_object_mut().expect("a token").remove("refresh_token");
    }
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_keeps_its_promises_with_a_live_worker() {
    let Some(clients) = prepared("the Python client", "venv/bin/python") else { return };
    let mut suite = python(&clients);
    suite.args(["-m", "unittest", "discover", "-v"]).current_dir(root().join("clients/python"));
    Live::start().await.run_suite(suite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_typescript_client_keeps_its_promises_with_a_live_worker() {
    let Some(clients) = prepared("the TypeScript client", "typescript/dist/tests") else { return };
    let mut suite = Command::new("node");
    suite.args(["--test", "--test-reporter=tap", "dist/tests/"]).current_dir(clients.join("typescript"));
    Live::start().await.run_suite(suite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_example_gets_a_token_or_says_why_not() {
    let Some(clients) = prepared("clients/examples/request.py", "venv/bin/python") else { return };
    let example = |user: &str, host: &str| {
        let mut command = python(&clients);
        command.arg(root().join("clients/examples/request.py")).args([user, host]);
        command
    };
    Live::start().await.run_example(example).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_example_gets_a_token_or_says_why_not() {
    let proof = "typescript/request.mjs";
    let Some(clients) = prepared("clients/examples/request.mjs", proof) else { return };
    let example = |user: &str, host: &str| {
        let mut command = Command::new("node");
        command.arg(clients.join(proof)).args([user, host]);
        command
    };
    Live::start().await.run_example(example).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shell_example_gets_a_token_or_says_why_not() {
    let Some(_) = prepared("clients/examples/request.sh", "amqp-tools") else { return };
    let example = |user: &str, host: &str| {
        let mut command = Command::new(root().join("clients/examples/request.sh"));
        command.args([user, host]);
        command
    };
    Live::start().await.run_example(example).await;
}

/// The first request in the README, as somebody pastes it who has changed user, host and exchange.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_request_of_the_readme_gets_a_token_or_says_why_not() {
    let Some(clients) = prepared("the README's first request", "venv/bin/python") else { return };
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let (_, behind) = readme.split_once("```python\n").expect("a block of Python");
    let (block, _) = behind.split_once("```").expect("its end");
    let live = Live::start().await;
    let prefix = live.world.broker.prefix().to_owned();
    let url = live.world.broker.url().to_owned();
    let example = |user: &str, host: &str| {
        let pasted = [
            ("amqp://guest:guest@127.0.0.1:5672/%2f", url.as_str()),
            ("\"tokenkeeper\"", &format!("\"{prefix}\"")),
            ("u-1", user),
            ("bitbucket.example.org", host),
        ];
        let script = pasted.iter().fold(block.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "the README's first request has no {from}");
            text.replace(from, to)
        });
        let mut command = python(&clients);
        command.args(["-c", &script]);
        command
    };
    live.run_example(example).await;
}

/// The bodies of a page, each under the heading that names its kind of message.
fn bodies(page: &str) -> Vec<(MessageKind, Value)> {
    let sections = page.split("\n## ");
    let named = sections.filter_map(|section| {
        let (title, text) = section.split_once('\n')?;
        Some((MessageKind::ALL.into_iter().find(|kind| kind.routing_key() == title)?, text))
    });
    named
        .flat_map(|(kind, text)| {
            text.split("```json\n").skip(1).map(move |block| {
                let (body, _) = block.split_once("```").expect("its end");
                (kind, serde_json::from_str(body).expect("JSON"))
            })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_to_paste_is_a_message() {
    let page = std::fs::read_to_string(root().join("docs/publishing.md")).expect("docs/publishing.md");
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.apply_provider(|provider| provider.host = "bitbucket.example.org".to_owned()).await;
    let worker = world.start_worker().await;
    let (bodies, mut kinds) = (bodies(&page), Vec::new());
    for (kind, body) in &bodies {
        let reply = world.broker.request(kind.routing_key(), body.clone()).await.body;
        let complaint = [&reply["error"]["code"], &reply["tokens"][0]["error"]["code"]]
            .into_iter()
            .any(|code| code == "invalid_request" || code == "unknown_host");
        assert!(!complaint && !reply.to_string().contains("unknown_field"), "{body}: {reply}");
        kinds.push(*kind);
    }
    kinds.dedup();
    assert_eq!(kinds.len(), MessageKind::ALL.len(), "{bodies:?}");
    worker.stop().await;
}
