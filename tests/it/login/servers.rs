//! At an OAuth server of somebody else's: `oidc-provider`, which scripts/oauth-servers.sh installs. It says by `OAUTH_SERVERS` where;
//! without it these tests are skipped, with a line that says so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;
use tokenkeeper::domain::provider::{ClientAuth, ProviderKind};
use tokenkeeper_testkit::http;
use tokenkeeper_testkit::wait::{PATIENCE, within};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use url::Url;

use super::Running;
use crate::cli::Cli;
use crate::harness::{Dialect, Kind, World};

const CLIENT_ID: &str = "tokenkeeper";
const CLIENT_SECRET: &str = "a-client-secret-of-a-test";

/// The server, and where it is.
struct Server {
    url: String,
    _child: Child,
}

impl Server {
    async fn start() -> Option<Self> {
        let Some(folder) = std::env::var_os("OAUTH_SERVERS").map(PathBuf::from) else {
            // Not `eprintln!`, which the test harness keeps to itself.
            let line = "SKIPPED: logins at servers of others: scripts/oauth-servers.sh runs them, where Node is installed\n";
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
            return None;
        };
        let mut command = Command::new("node");
        command.arg("server.mjs").args([CLIENT_ID, CLIENT_SECRET]).current_dir(folder);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("start node");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let url = async {
            while let Some(line) = lines.next_line().await.expect("its output") {
                if let Some(url) = line.strip_prefix("listening at ") {
                    return url.to_owned();
                }
            }
            panic!("the server ended");
        };
        let url = within("the server", PATIENCE, url).await;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Self { url, _child: child })
    }

    fn host(&self) -> String {
        self.url.trim_start_matches("http://").to_owned()
    }

    /// Applies it as a provider of a kind that nothing is known of.
    async fn apply(&self, world: &World) {
        let url = |path: &str| format!("{}{path}", self.url).parse().ok();
        world
            .apply_provider(|record| {
                record.host = self.host();
                record.kind = ProviderKind::Generic;
                (record.client_id, record.client_secret) = (CLIENT_ID.to_owned(), CLIENT_SECRET.into());
                (record.token_url, record.client_auth) = (url("/token"), Some(ClientAuth::Basic));
                record.overrides.authorization_url = url("/auth");
                record.overrides.device_authorization_url = url("/device/auth");
                record.overrides.login_scopes = vec!["openid".to_owned()];
            })
            .await;
    }
}

/// A person with a browser: fills in the forms of the server as they come.
#[derive(Default)]
struct Person {
    cookies: BTreeMap<String, String>,
}

impl Person {
    /// Goes on from page to page until the browser is sent to `until`, or a page has no form.
    async fn authorise(&mut self, url: &str, until: &str) -> Option<String> {
        let (mut url, mut form) = (Url::parse(url).expect("a URL"), None);
        for _ in 0..20 {
            if url.as_str().starts_with(until) {
                return Some(url.into());
            }
            let cookies: Vec<String> =
                self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let request = match &form {
                Some(form) => http::client().post(url.clone()).form(form),
                None => http::client().get(url.clone()),
            };
            let answer =
                request.header("cookie", cookies.join("; ")).send().await.expect("the server answers");
            for cookie in answer.headers().get_all("set-cookie") {
                let (name, value) =
                    cookie.to_str().unwrap().split(';').next().unwrap().split_once('=').unwrap();
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
            if let Some(location) = answer.headers().get("location") {
                (url, form) = (url.join(location.to_str().unwrap()).unwrap(), None);
                continue;
            }
            let (status, page) = (answer.status(), answer.text().await.unwrap());
            assert!(status.is_success(), "{url}: {status} {page}");
            let (action, fields) = read_form(&page)?;
            url = url.join(&action).unwrap();
            form = Some(fields);
        }
        panic!("it never ends, at {url}");
    }
}

/// Where the first form of a page goes, and what a person called jdoe sends.
fn read_form(page: &str) -> Option<(String, Vec<(String, String)>)> {
    let (_, form) = page.split_once("<form")?;
    let (form, _) = form.split_once("</form>")?;
    let attribute = |tag: &str, name: &str| {
        let (_, rest) = tag.split_once(&format!("{name}=\""))?;
        rest.split('"').next().map(|value| value.replace("&amp;", "&"))
    };
    let (head, rest) = form.split_once('>')?;
    let mut fields = Vec::new();
    for tag in rest.split("<input").skip(1) {
        let tag = tag.split('>').next().unwrap_or_default();
        let Some(name) = attribute(tag, "name") else { continue };
        let value = attribute(tag, "value").unwrap_or_else(|| "jdoe".to_owned());
        fields.push((name, value));
    }
    Some((attribute(head, "action").unwrap_or_default(), fields))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_logs_in_by_code_at_oidc_provider_and_is_refreshed_there() {
    let Some(server) = Server::start().await else { return };
    let world = World::new(Kind::Sqlite, Dialect::Generic).await;
    server.apply(&world).await;
    let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), server.host());
    let mut login = Running::start(&cli, &["login", &host, "--user", "u-1", "--port", "0"]);
    let page = login.page().await;
    let redirect = Url::parse(&page).unwrap();
    let redirect = redirect.query_pairs().find(|(name, _)| name == "redirect_uri").unwrap().1.into_owned();
    let back = Person::default().authorise(&page, &redirect).await.expect("back to this machine");
    assert!(back.contains("iss="), "it names itself (RFC 9207): {back}");
    assert_eq!(http::client().get(&back).send().await.unwrap().status(), 200);
    login.ended().await.good();

    let request = async |secs: u64| {
        let body = json!({"user_id": "u-1", "host": host, "requested_lifetime_secs": secs});
        world.broker.request("token.request", body).await.body
    };
    let first = request(60).await;
    assert_eq!(first["status"], "ok", "{first}");
    let shown = cli.run(&["token", "show", "--user", "u-1", "--host", &host, "--json"]).await.good().json();
    assert_eq!((&shown["auth_id"], &shown["auth_name"]), (&json!("jdoe"), &json!("Name of jdoe")), "{shown}");
    // For longer than its token lives.
    let refreshed = request(2 * 3600).await;
    assert_eq!(
        (&refreshed["status"], &refreshed["refresh"]),
        (&json!("ok"), &json!("required")),
        "{refreshed}"
    );
    assert_ne!(refreshed["token"]["value"], first["token"]["value"]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_logs_in_on_another_device_at_oidc_provider() {
    let Some(server) = Server::start().await else { return };
    let world = World::new(Kind::Sqlite, Dialect::Generic).await;
    server.apply(&world).await;
    let (worker, cli, host) = (world.start_worker().await, Cli::of(&world), server.host());
    let mut login = Running::start(&cli, &["login", &host, "--user", "u-1", "--device"]);
    let both = login.line_with("  both  ").await;
    let page = both.trim().trim_start_matches("both").trim();
    assert_eq!(Person::default().authorise(page, "nowhere:").await, None, "the last page has no form");
    login.ended().await.good();
    let body = json!({"user_id": "u-1", "host": host});
    let reply = world.broker.request("token.request", body).await.body;
    assert_eq!(reply["status"], "ok", "{reply}");
    worker.stop().await;
}
