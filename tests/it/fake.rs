//! `tokenkeeper fake`, as upstream's tests meet it.

mod answers;
mod in_hand;
mod start;

use std::fs::{self, File};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokenkeeper_testkit::queues::TestBroker;
use tokenkeeper_testkit::wait::{PATIENCE, eventually, within};
use tokio::process::Child;

use crate::cli::signal;
use crate::harness::process::program;

const HOST: &str = "git.example.org";

/// A fake that runs. Killed when it is dropped.
struct Fake {
    child: Child,
    folder: TempDir,
}

impl Fake {
    /// Starts it under the prefix of this broker, and waits until it is ready.
    async fn start(broker: &TestBroker, arguments: &[&str]) -> Self {
        Self::start_with(broker, arguments, &[]).await
    }

    /// The same with these environment variables besides.
    async fn start_with(broker: &TestBroker, arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Self { child: launch(broker, &folder, arguments, settings), folder };
        eventually("a fake to be ready", PATIENCE, async || {
            fake.log().contains("fake is ready").then_some(())
        })
        .await;
        fake
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("fake.log")).expect("its log")
    }

    /// Sends it a signal and waits until it has ended. Returns its exit code.
    async fn end(&mut self, by: &str) -> Option<i32> {
        signal(&self.child, by).await;
        within("a fake to end", PATIENCE, self.child.wait()).await.expect("its end").code()
    }
}

/// It needs neither a database nor keys.
fn launch(broker: &TestBroker, folder: &TempDir, arguments: &[&str], settings: &[(&str, &str)]) -> Child {
    let environment = [
        ("AMQP_URL", broker.url()),
        ("TOKENKEEPER__BROKER__PREFIX", broker.prefix()),
        ("TOKENKEEPER__LOG__FORMAT", "json"),
    ];
    let program = program(folder.path(), environment.into_iter().chain(settings.iter().copied()));
    let log = File::create(folder.path().join("fake.log")).expect("a log file");
    let mut command = program.command();
    command.arg("fake").args(arguments).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
    command.spawn().expect("start a fake")
}

fn request(user: &str) -> Value {
    json!({"user_id": user, "host": HOST})
}
