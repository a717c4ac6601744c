//! What only the broker's administrator can make: users with permissions of their own, and policies.

use std::process::Stdio;

use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokenkeeper::broker::Login;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use url::Url;

use super::{PATIENCE, World, eventually};

/// For `rabbitmqctl`: what a user may configure, write and read.
pub(crate) type Permissions = [String; 3];

const CONTROL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services/rabbitmqctl.sh");
/// Of each of them. It is searched for where it must not be.
pub(crate) const PASSWORD: &str = "a-password-of-a-test";

/// Users in a world's virtual host, deleted when this is dropped.
pub(crate) struct Accounts {
    world_url: Url,
    vhost: String,
    prefix: String,
    names: Vec<String>,
}

impl Accounts {
    /// Makes users with these permissions, or with none.
    pub(crate) async fn create(world: &World, users: &[(&str, Option<Permissions>)]) -> Self {
        let world_url = Url::parse(world.broker.url()).expect("the broker's URL");
        let (vhost, prefix) = (Login::of(&world.settings().broker).vhost, world.broker.prefix().to_owned());
        let name = |user: &str| format!("{prefix}-{user}");
        let names: Vec<String> = users.iter().map(|(user, _)| name(user)).collect();
        let permissions = users.iter().filter_map(|(user, permissions)| {
            let [configure, write, read] = permissions.as_ref()?;
            let user = name(user);
            Some(json!({"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read}))
        });
        let definitions = json!({
            "users": names.iter().map(|name| json!({"name": name, "password": PASSWORD, "tags": ""})).collect::<Vec<_>>(),
            "permissions": permissions.collect::<Vec<_>>(),
        });
        let accounts = Self { world_url, vhost, prefix: prefix.clone(), names };
        control(&["import_definitions"], &definitions.to_string()).await;
        // `rabbitmqctl` does not wait for the end of it. Permissions are what comes last.
        if let Some((user, _)) = users.iter().rfind(|(_, permissions)| permissions.is_some()) {
            let url = accounts.url(user);
            let connect = async || Connection::connect(&url, ConnectionProperties::default()).await.ok();
            let connected = eventually("the users of a test", PATIENCE, connect).await;
            connected.close(200, "done".into()).await.expect("close the connection");
        }
        accounts
    }

    /// The broker's URL for one of these users.
    pub(crate) fn url(&self, user: &str) -> String {
        let mut url = self.world_url.clone();
        url.set_username(&self.name(user)).expect("a user in the URL");
        url.set_password(Some(PASSWORD)).expect("a password in the URL");
        url.into()
    }

    /// Gives one of these users other permissions.
    pub(crate) async fn grant(&self, user: &str, [configure, write, read]: &Permissions) {
        control(&["set_permissions", "-p", &self.vhost, &self.name(user), configure, write, read], "").await;
    }

    /// Lets one of these users name anybody in the property `user_id`.
    pub(crate) async fn let_impersonate(&self, user: &str) {
        control(&["set_user_tags", &self.name(user), "impersonator"], "").await;
    }

    /// The name of one of these users at the broker.
    pub(crate) fn name(&self, user: &str) -> String {
        format!("{}-{user}", self.prefix)
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        let names: Vec<String> = self.names.iter().map(|name| format!("<<\"{name}\">>")).collect();
        let delete = format!(
            "[rabbit_auth_backend_internal:delete_user(U, <<\"tests\">>) || U <- [{}]].",
            names.join(",")
        );
        take_away(&["eval", &delete]);
    }
}

/// A policy of one exchange, taken away when this is dropped.
pub(crate) struct Policy {
    vhost: String,
    name: String,
}

impl Policy {
    pub(crate) async fn for_exchange(world: &World, exchange: &str, definition: &Value) -> Self {
        let vhost = Login::of(&world.settings().broker).vhost;
        let policy = Self { vhost, name: exchange.to_owned() };
        let (pattern, definition) = (format!("^{exchange}$"), definition.to_string());
        let set = [
            "set_policy",
            "-p",
            &policy.vhost,
            "--apply-to",
            "exchanges",
            &policy.name,
            &pattern,
            &definition,
        ];
        control(&set, "").await;
        policy
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        take_away(&["clear_policy", "-p", &self.vhost, &self.name]);
    }
}

/// When a test ends, whether well or not.
fn take_away(arguments: &[&str]) {
    let mut command = std::process::Command::new(CONTROL);
    let ended = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status();
    assert!(ended.is_ok_and(|status| status.success()) || std::thread::panicking(), "{arguments:?} failed");
}

async fn control(arguments: &[&str], input: &str) {
    let mut child = Command::new(CONTROL)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start rabbitmqctl");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).await.expect("write to rabbitmqctl");
    drop(stdin);
    let output = child.wait_with_output().await.expect("run rabbitmqctl");
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "rabbitmqctl {}: {said}", arguments[0]);
}
