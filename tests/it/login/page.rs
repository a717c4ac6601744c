//! The page for a team: what it answers to browsers, and to what only looks like one.

mod browser;
mod refused;

use reqwest::{RequestBuilder, Response};
use tokenkeeper_testkit::http;
use tokio::process::Command;

use super::{Running, free_port};
use crate::cli::{Cli, Ended, signal};
use crate::harness::{Dialect, Kind, ScmOptions, World};

/// `tokenkeeper login --serve`.
struct Page {
    running: Running,
    base: String,
}

impl Page {
    /// On a free port of this machine, with these arguments, and known to the world's host.
    async fn start(world: &World, arguments: &[&str]) -> Self {
        Self::start_by(world, &Cli::of(world), arguments).await
    }

    async fn start_by(world: &World, cli: &Cli, arguments: &[&str]) -> Self {
        let all = [&["login", "--serve", "--listen", "127.0.0.1:0"], arguments].concat();
        let mut running = Running::start(cli, &all);
        let line = running.line_with("Serving ").await;
        let base = line.split(' ').nth(1).expect("its URL").trim_end_matches('/').to_owned();
        world.scm.register_redirect(&format!("{base}/callback"));
        Self { running, base }
    }

    fn browser(&self) -> Browser {
        Browser { base: self.base.clone(), cookie: None, headers: Vec::new() }
    }

    /// A browser behind a proxy that names its user.
    fn browser_of(&self, user: &str) -> Browser {
        Browser { headers: vec![("x-forwarded-user", user.to_owned())], ..self.browser() }
    }

    async fn stop(self, world: &World) -> Ended {
        signal(&self.running.child, "TERM").await;
        self.running.ended().await.good().keeps_secrets_of(world)
    }
}

/// What a browser does, without scripts: it keeps the cookie, and says where a form comes from.
#[derive(Clone)]
struct Browser {
    base: String,
    cookie: Option<String>,
    headers: Vec<(&'static str, String)>,
}

/// A page as a browser got it.
struct Shown {
    status: u16,
    text: String,
    location: Option<String>,
}

impl Browser {
    fn dressed(&self, request: RequestBuilder) -> RequestBuilder {
        let mut request = request;
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        match &self.cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        }
    }

    async fn take(&mut self, answer: Response) -> Shown {
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        if let Some(cookie) = header("set-cookie") {
            self.cookie = cookie.split(';').next().map(str::to_owned);
        }
        for (name, value) in [
            ("cache-control", "no-store"),
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(header(name).as_deref(), Some(value));
        }
        let policy = header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
        let location = header("location");
        Shown { status: answer.status().as_u16(), location, text: answer.text().await.unwrap() }
    }

    async fn get(&mut self, path: &str) -> Shown {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) };
        let answer = self.dressed(http::client().get(url)).send().await.expect("the page answers");
        self.take(answer).await
    }

    /// The first form of the overview for this host.
    async fn form_token(&mut self) -> String {
        let page = self.get("/").await;
        assert_eq!(page.status, 200, "{}", page.text);
        page.field("form_token")
    }

    fn posting(&self, host: &str, form_token: &str) -> RequestBuilder {
        let form = [("host", host), ("form_token", form_token)];
        let request = self.dressed(http::client().post(format!("{}/connect", self.base)).form(&form));
        request.header("sec-fetch-site", "same-origin")
    }

    async fn post(&mut self, host: &str, form_token: &str) -> Shown {
        let request = self.posting(host, form_token).header("origin", &self.base);
        let answer = request.send().await.expect("the page answers");
        self.take(answer).await
    }

    /// Begins a login: where the browser goes.
    async fn leave_for(&mut self, host: &str) -> String {
        let form_token = self.form_token().await;
        let page = self.post(host, &form_token).await;
        assert_eq!(page.status, 200, "{}", page.text);
        let (before, _) = page.text.split_once("\" id=\"on\">").expect("a link");
        before.rsplit_once("href=\"").expect("a link").1.replace("&amp;", "&")
    }

    /// Logs in as this account.
    async fn connect(&mut self, world: &World, account: &str) -> Shown {
        let away = self.leave_for(&world.scm.host()).await;
        let back = world.scm.allow(&away, account).await;
        self.get(&back).await
    }
}

impl Shown {
    fn field(&self, name: &str) -> String {
        let (_, rest) = self.text.split_once(&format!("name=\"{name}\" value=\"")).expect("the field");
        rest.split('"').next().expect("its value").to_owned()
    }

    #[track_caller]
    fn says(&self, status: u16, text: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        assert!(self.text.contains(text), "{} does not say {text}", self.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_connects_a_host_sees_until_when_and_reconnects() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("access.require_sealed_stores", true);
    let worker = world.start_worker().await;
    let page = Page::start(&world, &["--user", "u-1"]).await;
    assert!(page.running.printed.contains(&format!("redirect URI  {}/callback", page.base)));
    let (mut browser, host) = (page.browser(), world.scm.host());

    browser.get("/").await.says(200, "not connected");
    let back = browser.connect(&world, "jdoe").await;
    assert_eq!((back.status, back.location.as_deref()), (303, Some("/")), "{}", back.text);
    let overview = browser.get("/").await;
    overview.says(200, "<span class=\"good\">connected");
    overview.says(200, "Reconnect");
    let first = world.scm.latest_pair("jdoe").unwrap().access_token;
    assert_eq!(world.request("u-1").await["token"]["value"], first);
    assert!(!overview.text.contains(&first));

    // The user takes the authorisation back at the host; the next refresh finds out.
    world.scm.revoke("jdoe");
    assert_eq!(world.request_for("u-1", 3 * 3600).await["error"]["code"], "reauthorization_required");
    browser.get("/").await.says(200, "must be connected again");
    assert_eq!(browser.connect(&world, "jdoe").await.status, 303);
    let second = world.scm.latest_pair("jdoe").unwrap().access_token;
    assert_eq!(world.request("u-1").await["token"]["value"], second);
    let asked = world.scm.authorization_requests();
    assert!(
        asked[0]["state"] != asked[1]["state"] && asked[0]["code_challenge"] != asked[1]["code_challenge"]
    );

    let style = http::client().get(format!("{}/style.css", page.base)).send().await.unwrap();
    assert_eq!(style.headers()["content-type"], "text/css; charset=utf-8");
    let log = page.stop(&world).await.stderr;
    assert!(log.contains("a login was stored") && log.contains(&host), "{log}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_users_that_a_proxy_names_see_and_connect_their_own_hosts() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let page = Page::start(&world, &["--user-header", "X-Forwarded-User"]).await;
    let (mut one, mut other) = (page.browser_of("u-1"), page.browser_of("u-<2>"));
    assert_eq!(one.connect(&world, "jdoe").await.status, 303);
    one.get("/").await.says(200, "connected until");
    other.get("/").await.says(200, "Source-code hosts of u-&lt;2&gt;");
    other.get("/").await.says(200, "not connected");
    assert_eq!(other.connect(&world, "other").await.status, 303);
    for (user, account) in [("u-1", "jdoe"), ("u-<2>", "other")] {
        let token = world.scm.latest_pair(account).unwrap().access_token;
        assert_eq!(world.request(user).await["token"]["value"], token);
    }
    page.browser().get("/").await.says(403, "the proxy does not say who you are");
    page.stop(&world).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_secret_of_the_proxy_nobody_else_on_the_machine_names_a_user() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world);
    cli.write("proxy-secret", "a-secret-of-the-proxy\n");
    let arguments = ["--user-header", "X-Forwarded-User", "--proxy-secret-file", "proxy-secret"];
    let page = Page::start_by(&world, &cli, &arguments).await;
    let mut forger = page.browser_of("u-1");
    forger.get("/").await.says(403, "reached through its proxy alone");
    forger.headers.push(("x-tokenkeeper-proxy-secret", "a-secret-of-the-proxx".to_owned()));
    forger.get("/").await.says(403, "reached through its proxy alone");
    let mut proxied = page.browser_of("u-1");
    proxied.headers.push(("x-tokenkeeper-proxy-secret", "a-secret-of-the-proxy".to_owned()));
    proxied.get("/").await.says(200, "not connected");
    let log = page.stop(&world).await.stderr;
    assert!(!log.contains("a-secret-of-the-prox"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_compares_redirect_uris_is_offered_at_its_own_alone() {
    let world = World::new(Kind::Sqlite, Dialect::GitLab).await;
    let page = Page::start(&world, &["--user", "u-1"]).await;
    let overview = page.browser().get("/").await;
    overview.says(200, "not here: the provider&#39;s redirect_uri is https://app.example.org/callback");
    let mut browser = page.browser();
    browser.get("/").await;
    let log = page.stop(&world).await.stderr;
    assert!(log.contains("warning: nobody can log in at"), "{log}");

    let port = free_port();
    let here = format!("http://localhost:{port}/callback");
    let redirect_uri = Some(here.clone());
    let world =
        World::with_scm(Kind::Sqlite, ScmOptions { redirect_uri, ..ScmOptions::new(Dialect::GitLab) }).await;
    let worker = world.start_worker().await;
    let public = format!("http://localhost:{port}");
    let listen = format!("127.0.0.1:{port}");
    let cli = Cli::of(&world);
    let arguments = ["login", "--serve", "--user", "u-1", "--listen", &listen, "--public-url", &public];
    let mut running = Running::start(&cli, &arguments);
    running.line_with("Serving ").await;
    world.scm.register_redirect(&here);
    let page = Page { running, base: public };
    assert_eq!(page.browser().connect(&world, "jdoe").await.status, 303);
    assert_eq!(world.request_for("u-1", 3 * 3600).await["status"], "ok", "it is refreshed");
    page.stop(&world).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_on_which_anybody_could_be_anybody_does_not_start() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world);
    cli.write("short", "short\n");
    for (arguments, text) in [
        (&["--listen", "127.0.0.1:0"][..], "who are the users? Write --user-header NAME"),
        (&["--listen", "0.0.0.0:0", "--user", "u-1"], "everybody who reaches the page would be u-1"),
        (
            &["--listen", "0.0.0.0:0", "--user-header", "X-User", "--public-url", "https://x.example"],
            "anybody could name a user",
        ),
        (
            &["--listen", "127.0.0.1:0", "--user", "u-1", "--public-url", "http://logins.example.org"],
            "must be https",
        ),
        (
            &["--listen", "127.0.0.1:0", "--user", "u-1", "--public-url", "https://x.example/path"],
            "without a path",
        ),
        (&["--listen", "0.0.0.0:0", "--user-header", "X-User", "--proxy", "10.0.0.1"], "must be https"),
        (&["--user-header", "X User"], "is no name of a header"),
        (&["--user-header", "X-User", "--proxy-secret-file", "short"], "at least 16 characters"),
        (&["--user", "u-1", "--proxy", "10.0.0.1"], "--user-header"),
    ] {
        let ended = cli.run(&[&["login", "--serve"], arguments].concat()).await.with_code(2);
        ended.says(text);
    }
    // The file is for its owner alone, as every file with a secret.
    let folder = cli.folder.path().join("short");
    let opened = Command::new("chmod").arg("644").arg(folder).status().await.unwrap();
    assert!(opened.success());
    let ended =
        cli.run(&["login", "--serve", "--user-header", "X-User", "--proxy-secret-file", "short"]).await;
    ended.with_code(2).says("chmod 600");
}
