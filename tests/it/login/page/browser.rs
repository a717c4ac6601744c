//! The page in a real browser: Chromium without a window, by chromedriver (`WebDriver`, of the W3C).
//!
//! Both are Debian's packages `chromium` and `chromium-driver`. Where chromedriver is missing these tests are skipped, with a line
//! that says so. The page is at `localhost`, and the host at `127.0.0.1`: two sites to a browser.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokenkeeper_testkit::http;
use tokenkeeper_testkit::wait::{PATIENCE, eventually, within};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use super::{Page, Running, free_port};
use crate::cli::Cli;
use crate::harness::{Dialect, Kind, World};

/// How `WebDriver` names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

struct Chromium {
    session: String,
    _driver: Child,
    _profile: TempDir,
}

impl Chromium {
    /// None, with a line that says so, where it is not installed.
    async fn start() -> Option<Self> {
        let driver =
            Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).kill_on_drop(true).spawn();
        let Ok(mut driver) = driver else {
            // Not `eprintln!`, which the test harness keeps to itself.
            let line = "SKIPPED: the login page in a real browser: chromedriver is not installed (Debian: chromium-driver)\n";
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
            return None;
        };
        let mut lines = BufReader::new(driver.stdout.take().expect("it is piped")).lines();
        let port = async {
            while let Some(line) = lines.next_line().await.expect("its output") {
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').to_owned();
                }
            }
            panic!("chromedriver ended");
        };
        let base = format!("http://127.0.0.1:{}", within("chromedriver", PATIENCE, port).await);
        // It writes on, and must find somebody who reads.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let profile = tempfile::tempdir().expect("a temporary folder");
        let arguments = [
            "--headless=new".to_owned(),
            // It has no sandbox as root, and in most containers.
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-proxy-server".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let began = within("a browser", PATIENCE, call("POST", &format!("{base}/session"), &wanted)).await;
        let session = format!("{base}/session/{}", began["sessionId"].as_str().expect("a session"));
        Some(Self { session, _driver: driver, _profile: profile })
    }

    async fn command(&self, method: &str, path: &str, body: Value) -> Value {
        call(method, &format!("{}{path}", self.session), &body).await
    }

    async fn open(&self, url: &str) {
        self.command("POST", "/url", json!({"url": url})).await;
    }

    async fn url(&self) -> String {
        self.command("GET", "/url", Value::Null).await.as_str().expect("a URL").to_owned()
    }

    async fn find(&self, selector: &str) -> Option<String> {
        let found =
            self.command("POST", "/elements", json!({"using": "css selector", "value": selector})).await;
        Some(found.get(0)?.get(ELEMENT)?.as_str()?.to_owned())
    }

    /// Waits for an element.
    async fn element(&self, selector: &str) -> String {
        let what = format!("{selector} in the browser");
        eventually(&what, PATIENCE, async || self.find(selector).await).await
    }

    async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.command("POST", &format!("/element/{element}/click"), json!({})).await;
    }

    async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.command("POST", &format!("/element/{element}/value"), json!({"text": text})).await;
    }

    async fn text(&self) -> String {
        let body = self.element("body").await;
        let text = self.command("GET", &format!("/element/{body}/text"), Value::Null).await;
        text.as_str().expect("a text").to_owned()
    }

    /// Waits until the page shows this.
    async fn shows(&self, text: &str) {
        let what = format!("{text:?} in the browser");
        eventually(&what, PATIENCE, async || self.text().await.contains(text).then_some(())).await;
    }

    /// What the browser complained of.
    async fn complaints(&self) -> Vec<String> {
        let log = self.command("POST", "/se/log", json!({"type": "browser"})).await;
        let severe = log.as_array().expect("a log").iter().filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].to_string()).collect()
    }

    async fn end(self) {
        self.command("DELETE", "", Value::Null).await;
    }
}

async fn call(method: &str, url: &str, body: &Value) -> Value {
    let client = http::client();
    let request = match method {
        "GET" => client.get(url),
        "DELETE" => client.delete(url),
        _ => client.post(url).header("content-type", "application/json").body(body.to_string()),
    };
    let answer = request.timeout(Duration::from_secs(60)).send().await.expect("chromedriver answers");
    let mut answer: Value = serde_json::from_str(&answer.text().await.expect("its answer")).expect("JSON");
    assert!(answer["value"].get("error").is_none(), "{method} {url}: {}", answer["value"]);
    answer["value"].take()
}

/// The page at `localhost`, for one user.
async fn page_at_localhost(world: &World) -> Page {
    let port = free_port();
    let (listen, base) = (format!("127.0.0.1:{port}"), format!("http://localhost:{port}"));
    let arguments = ["login", "--serve", "--user", "u-1", "--listen", &listen, "--public-url", &base];
    let mut running = Running::start(&Cli::of(world), &arguments);
    running.line_with("Serving ").await;
    world.scm.register_redirect(&format!("{base}/callback"));
    Page { running, base }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_connects_and_reconnects_a_host_in_chromium() {
    let Some(chromium) = Chromium::start().await else { return };
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let page = page_at_localhost(&world).await;

    chromium.open(&page.base).await;
    chromium.shows("not connected").await;
    for expected in ["Connect", "Reconnect"] {
        assert!(chromium.text().await.contains(expected));
        chromium.click("button").await;
        // The page in between goes on by itself, without a script.
        chromium.fill("#user", "jdoe").await;
        chromium.click("#allow").await;
        chromium.shows("connected until").await;
        assert_eq!(chromium.url().await, format!("{}/", page.base), "no code stays in the address");
        let token = world.scm.latest_pair("jdoe").unwrap().access_token;
        assert_eq!(world.request("u-1").await["token"]["value"], token);
    }
    let cookies = chromium.command("GET", "/cookie", Value::Null).await;
    let cookie = &cookies[0];
    assert_eq!((&cookie["httpOnly"], &cookie["sameSite"]), (&json!(true), &json!("Lax")), "{cookies}");

    // The user says no.
    chromium.click("button").await;
    chromium.click("#deny").await;
    chromium.shows("access_denied").await;
    chromium.click("a").await;
    chromium.shows("connected until").await;
    let complaints = chromium.complaints().await;
    // The answer to a refusal has the status 403, which the browser notes. The simulated host is not asked about here.
    let of_the_page = complaints.iter().filter(|text| text.contains(&page.base));
    let others: Vec<_> =
        of_the_page.filter(|text| !text.contains("403") && !text.contains("favicon")).collect();
    assert!(others.is_empty(), "{others:?}");
    chromium.end().await;
    page.stop(&world).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_site_in_the_same_chromium_begins_no_login_and_shows_no_page_in_a_frame() {
    let Some(chromium) = Chromium::start().await else { return };
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let page = page_at_localhost(&world).await;
    chromium.open(&page.base).await;
    chromium.shows("not connected").await;
    let token = {
        let element = chromium.element("input[name=form_token]").await;
        let value =
            chromium.command("GET", &format!("/element/{element}/attribute/value"), Value::Null).await;
        value.as_str().unwrap().to_owned()
    };

    // Even with a token that it should not have.
    let form = format!(
        "<form method=post action='{}/connect'><input name=host value='{}'><input name=form_token value='{token}'>\
         <button id=go>go</button></form>",
        page.base,
        world.scm.host()
    );
    let evil = Site::serving(&form).await;
    chromium.open(&evil.url).await;
    chromium.click("#go").await;
    chromium.shows("the form was not sent by this page").await;
    assert_eq!(world.scm.authorization_requests().len(), 0);

    let frame = Site::serving(&format!("<iframe src='{}/' id=frame></iframe>", page.base)).await;
    chromium.open(&frame.url).await;
    let frame = chromium.element("#frame").await;
    chromium.command("POST", "/frame", json!({"id": {ELEMENT: frame}})).await;
    assert!(!chromium.text().await.contains("Source-code hosts"), "{}", chromium.text().await);
    chromium.command("POST", "/frame", json!({"id": null})).await;

    // A callback that another site sends the browser to.
    let callback = format!("{}/callback?code=stolen&state=forged", page.base);
    let link = Site::serving(&format!("<a href='{callback}' id=go>go</a>")).await;
    chromium.open(&link.url).await;
    chromium.click("#go").await;
    chromium.shows("this is no login that was begun here").await;
    assert_eq!(world.request("u-1").await["error"]["code"], "user_not_found");
    chromium.end().await;
    page.stop(&world).await;
    worker.stop().await;
}

/// A site of somebody else.
struct Site {
    url: String,
    _task: AbortOnDropHandle<()>,
}

impl Site {
    /// The same page, whatever is asked.
    async fn serving(body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let page = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let page = page.clone();
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    let _ = stream.read(&mut head).await;
                    let _ = stream.write_all(page.as_bytes()).await;
                });
            }
        });
        Self { url, _task: AbortOnDropHandle::new(task) }
    }
}
