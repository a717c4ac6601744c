//! The programs of docs/examples/sealed, as a requester and a login flow run them: what other languages seal opens here, and the
//! other way round.
//!
//! They need `PyNaCl` and libsodium-wrappers, which a machine may not have. Then that example is skipped, with a line that says so.
//! `PYTHON` and `NODE_PATH` tell where they are.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper_testkit::wait::{PATIENCE, within};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::*;

/// An example, and how it is found out whether its library is there.
struct Example {
    interpreter: String,
    script: &'static str,
    probe: [&'static str; 2],
}

impl Example {
    async fn runs_here(&self) -> bool {
        let probed = Command::new(&self.interpreter).args(self.probe).stderr(Stdio::null()).status().await;
        let runs = probed.is_ok_and(|status| status.success());
        if !runs {
            // Not `eprintln!`, which the test harness keeps to itself.
            let line =
                format!("SKIPPED: {}: `{} {}` fails\n", self.script, self.interpreter, self.probe.join(" "));
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        runs
    }

    /// What it prints.
    async fn run(&self, arguments: &[&str], key: (&str, &str), input: &Value) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/sealed").join(self.script);
        let mut command = Command::new(&self.interpreter);
        command.arg(script).args(arguments).env(key.0, key.1).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the example");
        let mut stdin = child.stdin.take().expect("it is piped");
        let ended = async {
            // Of a command that reads nothing it may be closed already.
            let _ = stdin.write_all(input.to_string().as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await.expect("its output")
        };
        let output = within("the example to end", PATIENCE, ended).await;
        assert!(output.status.success(), "{} {arguments:?}", self.script);
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }
}

async fn works_with_a_real_worker(example: Example) {
    if !example.runs_here().await {
        return;
    }
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("access.require_sealed_replies", true).set("access.require_sealed_stores", true);
    let worker = world.start_worker().await;
    let pair = world.scm.authorize("jdoe");
    let ring = KeyRing::parse(&world.keys).unwrap();

    let public_key = ring.keys()[0].login_public_key().to_string();
    let login = world.scm.token_store_body(&pair);
    let message = example.run(&["seal"], ("PUBLIC_KEY", &public_key), &login).await;
    let stored = ask(&world, TOKEN_STORE, serde_json::from_str(&message).expect("JSON")).await;
    assert_eq!(stored, json!({"status": "ok"}));

    let keys = example.run(&["keypair"], ("NOTHING", ""), &Value::Null).await;
    let keys: Value = serde_json::from_str(&keys).expect("JSON");
    let mut request = world.token_request("jdoe");
    request["reply_public_key"] = keys["public_key"].clone();
    let reply = ask(&world, TOKEN_REQUEST, request).await;
    assert!(!reply.to_string().contains(&pair.access_token), "{reply}");
    let secret_key = ("SECRET_KEY", keys["secret_key"].as_str().expect("a key"));
    let opened = example.run(&["open", "jdoe", &world.scm.host()], secret_key, &reply).await;
    assert_eq!(opened, pair.access_token);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_example_opens_a_reply_and_seals_a_login() {
    let interpreter = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    works_with_a_real_worker(Example {
        interpreter,
        script: "sealed.py",
        probe: ["-c", "import nacl.public"],
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_example_opens_a_reply_and_seals_a_login() {
    let probe = ["-e", "require('libsodium-wrappers')"];
    works_with_a_real_worker(Example { interpreter: "node".to_owned(), script: "sealed.js", probe }).await;
}
