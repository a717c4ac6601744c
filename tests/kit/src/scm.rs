//! A simulated source-code host: token endpoint, API and `git` over HTTP, all checking the same tokens.
//!
//! ```no_run
//! # use tokenkeeper_testkit::scm::{Dialect, Fault, ScmOptions, SimulatedScm};
//! # async fn example() {
//! let scm = SimulatedScm::start(ScmOptions::new(Dialect::BitbucketServer)).await;
//! let pair = scm.authorize("alice");
//! scm.fail_next(2, Fault::Status(500));
//! // ... a worker refreshes ...
//! assert!(!scm.is_alive(&pair.access_token), "Bitbucket Server kills the old token");
//! assert_eq!((scm.refreshes("alice"), scm.max_overlap("alice")), (1, 1));
//! # }
//! ```

mod answer;
mod authorization;
mod connection;
mod dialect;
mod fault;
mod gate;
mod git;
mod ledger;
mod login;
mod options;
mod refresh;
mod server;
#[cfg(test)]
mod tests;
mod traffic;

use std::sync::{Arc, atomic::Ordering};

use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};
use url::Url;

pub use self::{
    dialect::{ClientAuth, Dialect},
    fault::Fault,
    gate::{GitGate, HoldPoint, RefreshGate},
    git::{CloneError, Pace, git_clone},
    ledger::IssuedPair,
    login::Parameters,
    options::{Connections, ScmOptions, SpentRefreshToken},
    traffic::{Clock, RefreshEvent, RefreshOutcome},
};
use self::{
    fault::{FaultPlan, Victim},
    server::{Scm, Server},
};

/// A source-code host on 127.0.0.1 that ends when it is dropped.
pub struct SimulatedScm {
    scm: Arc<Scm>,
    _server: Server,
}

impl SimulatedScm {
    /// Starts one.
    pub async fn start(options: ScmOptions) -> Self {
        let (scm, server) = Server::start(options).await;
        Self { scm, _server: server }
    }

    /// Starts one that does what the dialect does by itself.
    pub async fn start_as(dialect: Dialect) -> Self {
        Self::start(ScmOptions::new(dialect)).await
    }

    // --- Where it is ---

    /// `127.0.0.1:PORT`, as it stands in clone URLs and in tokenkeeper's messages.
    pub fn host(&self) -> String {
        self.scm.address.to_string()
    }

    /// The token endpoint.
    pub fn token_url(&self) -> String {
        self.scm.url(self.scm.options.dialect.token_path())
    }

    /// The API path that answers 200 to a living token and 401 to any other.
    pub fn user_url(&self) -> String {
        self.scm.url("/api/user")
    }

    /// Where a repository is cloned from, without credentials.
    pub fn clone_url(&self, project: &str, repository: &str) -> String {
        self.scm.url(&format!("/scm/{project}/{repository}.git"))
    }

    /// The same with a token in it, as it is: a test's own tokens are letters and digits.
    pub fn clone_url_with_token(&self, project: &str, repository: &str, access_token: &str) -> String {
        let userinfo = format!("{}:{access_token}", self.scm.options.dialect.username());
        self.clone_url_with_userinfo(project, repository, &userinfo)
    }

    /// The same with the `userinfo` of a reply in it, as a workspace's git uses it.
    pub fn clone_url_with_userinfo(&self, project: &str, repository: &str, userinfo: &str) -> String {
        self.clone_url(project, repository).replacen("http://", &format!("http://{userinfo}@"), 1)
    }

    /// The OAuth client id.
    pub fn client_id(&self) -> &str {
        &self.scm.options.client_id
    }

    /// The OAuth client secret.
    pub fn client_secret(&self) -> &str {
        &self.scm.options.client_secret
    }

    /// A `[[provider]]` block for `tokenkeeper provider apply`. Lines of `overrides` (`key = value`) replace or
    /// join the ones that this SCM needs; `client_secret_env` and `client_secret_file` replace the secret.
    pub fn provider_toml(&self, overrides: &str) -> String {
        let overridden = |key: &str| overrides.lines().filter_map(toml_key).any(|given| replaces(given, key));
        let own = self.provider_settings().into_iter().filter(|(key, _)| !overridden(key));
        // JSON's string escapes are TOML's.
        let own = own.map(|(key, value)| format!("{key} = {}", Value::from(value)));
        let lines = ["[[provider]]".to_owned()].into_iter().chain(own).chain([overrides.to_owned()]);
        lines.collect::<Vec<_>>().join("\n").trim_end().to_owned() + "\n"
    }

    fn provider_settings(&self) -> Vec<(&'static str, String)> {
        let options = &self.scm.options;
        let mut settings = vec![
            ("host", self.host()),
            ("kind", options.dialect.kind().to_owned()),
            ("client_id", options.client_id.clone()),
            ("client_secret", options.client_secret.clone()),
            ("token_url", self.token_url()),
        ];
        if options.dialect == Dialect::Generic || options.client_auth != options.dialect.client_auth() {
            let client_auth = match options.client_auth {
                ClientAuth::Basic => "basic",
                ClientAuth::Body => "body",
            };
            settings.push(("client_auth", client_auth.to_owned()));
        }
        settings.extend(options.redirect_uri.clone().map(|uri| ("redirect_uri", uri)));
        settings
    }

    /// The authorisation endpoint.
    pub fn authorize_url(&self) -> String {
        self.scm.url(self.scm.options.dialect.authorize_path())
    }

    // --- Users and their tokens ---

    /// Issues a pair as a login does. Pairs of earlier logins live on.
    pub fn authorize(&self, user: &str) -> IssuedPair {
        self.authorize_until(user, self.now_ms() + self.scm.lifetime_ms())
    }

    /// Issues a pair whose access token expires at this time, in epoch milliseconds; it may be over.
    pub fn authorize_until(&self, user: &str, expires_at_ms: i64) -> IssuedPair {
        let dialect = self.scm.options.dialect;
        self.scm.ledger().authorize(dialect, user, self.now_ms(), expires_at_ms)
    }

    /// Issues a pair with this access token: providers choose what their tokens look like.
    pub fn authorize_with(&self, user: &str, access_token: &str) -> IssuedPair {
        let pair = IssuedPair { access_token: access_token.to_owned(), ..self.authorize(user) };
        self.scm.ledger().enter(pair)
    }

    /// The pair that was issued last to `user`, by a login or a refresh.
    pub fn latest_pair(&self, user: &str) -> Option<IssuedPair> {
        self.scm.ledger().latest(user).cloned()
    }

    /// The body of the `token.store` message that a login flow publishes for this pair.
    pub fn token_store_body(&self, pair: &IssuedPair) -> Value {
        let dialect = self.scm.options.dialect;
        json!({
            "user_id": pair.user,
            "host": self.host(),
            "auth_id": pair.user,
            "auth_name": pair.user,
            "token": {
                "value": pair.access_token,
                "refresh_token": pair.refresh_token,
                "username": dialect.username(),
                "scopes": dialect.scopes(),
                "expires_at": rfc3339(pair.expires_at_ms),
            },
        })
    }

    /// Whether the SCM takes this access token: issued here, not killed, not expired.
    pub fn is_alive(&self, access_token: &str) -> bool {
        self.scm.is_alive(access_token)
    }

    /// The number of the pair that this access token is in, dead or alive: the later pair has the greater one.
    pub fn number_of(&self, access_token: &str) -> Option<u64> {
        self.scm.ledger().number_of(access_token)
    }

    /// Kills this access token alone, as when somebody revokes a token that leaked.
    pub fn kill(&self, access_token: &str) {
        self.scm.ledger().kill(access_token);
    }

    /// Kills every token of `user`, as when the user withdraws the authorisation.
    pub fn revoke(&self, user: &str) {
        self.scm.ledger().revoke(user);
    }

    /// Everything that must never be seen in a log: each token ever issued, and the client secret.
    pub fn secrets(&self) -> Vec<String> {
        let ledger = self.scm.ledger();
        let tokens = ledger.all_tokens().chain([&self.scm.options.client_secret]).cloned();
        tokens.chain(self.scm.logins.secrets()).collect()
    }

    /// The SCM's clock, in epoch milliseconds.
    pub fn now_ms(&self) -> i64 {
        (self.scm.options.clock)()
    }

    // --- Logins ---

    /// Lets browsers be sent back to exactly this URI.
    pub fn register_redirect(&self, uri: &str) {
        self.scm.logins.register(uri);
    }

    /// Goes to the authorisation endpoint as the browser of this user, and allows. Gives back where the SCM sends the browser.
    pub async fn allow(&self, authorization_url: &str, user: &str) -> String {
        self.decide(authorization_url, &[("user", user), ("decision", "allow")]).await
    }

    /// The same, but the user denies.
    pub async fn deny(&self, authorization_url: &str) -> String {
        self.decide(authorization_url, &[("decision", "deny")]).await
    }

    async fn decide(&self, authorization_url: &str, decision: &[(&str, &str)]) -> String {
        let http = crate::http::client();
        let page = http.get(authorization_url).send().await.expect("the authorisation endpoint answers");
        let (status, text) = (page.status(), page.text().await.expect("its page"));
        assert_eq!(status, 200, "{text}");
        let asked: Parameters =
            Url::parse(authorization_url).expect("a URL").query_pairs().into_owned().collect();
        let hidden = asked.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let form: Vec<(&str, &str)> = hidden.chain(decision.iter().copied()).collect();
        let answer = http.post(self.authorize_url()).form(&form).send().await.expect("it takes the decision");
        let location = answer.headers().get("location").expect("it sends the browser back");
        location.to_str().expect("a URL").to_owned()
    }

    /// Every good request of the authorisation endpoint.
    pub fn authorization_requests(&self) -> Vec<Parameters> {
        self.scm.logins.asked()
    }

    /// The next redirect names this issuer (RFC 9207).
    pub fn send_issuer(&self, issuer: &str) {
        self.scm.logins.send_issuer(issuer);
    }

    /// Types a code on another device, and allows as this user or denies. Whether the SCM knows the code.
    pub fn type_code(&self, user_code: &str, user: Option<&str>) -> bool {
        self.scm.logins.type_code(user_code, user)
    }

    /// The next questions about a code for a device are answered `slow_down`.
    pub fn slow_down(&self, polls: usize) {
        self.scm.logins.slow_down(polls);
    }

    // --- What happened ---

    /// How many new pairs refreshes of this user have led to, also where the answer was lost on the way.
    pub fn refreshes(&self, user: &str) -> usize {
        self.scm.traffic.count(|event| event.rotated && event.user.as_deref() == Some(user))
    }

    /// How many refresh requests have come for this user, however they ended.
    pub fn refresh_requests(&self, user: &str) -> usize {
        self.scm.traffic.count(|event| event.user.as_deref() == Some(user))
    }

    /// The most refresh requests for this user that were in flight at once.
    pub fn max_overlap(&self, user: &str) -> usize {
        self.scm.traffic.max_overlap(user)
    }

    /// The most refresh requests that were in flight at once.
    pub fn max_overlap_total(&self) -> usize {
        self.scm.traffic.max_overlap_total()
    }

    /// The most refreshes that the SCM was acting on at once: 1 where it takes a lock.
    pub fn max_at_work(&self) -> usize {
        self.scm.traffic.max_at_work()
    }

    /// Every refresh request, in the order of arrival.
    pub fn log(&self) -> Vec<RefreshEvent> {
        self.scm.traffic.log()
    }

    /// How often a client has come to the login page, which following [`Fault::Redirect`] leads to.
    pub fn login_page_views(&self) -> usize {
        self.scm.login_page_views.load(Ordering::Relaxed)
    }

    /// Waits until at least `count` refresh requests are in flight at once.
    pub async fn wait_for_refreshes_in_flight(&self, count: usize) {
        self.scm.traffic.wait_for_in_flight(count).await;
    }

    // --- Making it fail and wait ---

    /// The next `count` refresh requests fail like this. Plans add up in the order in which they are made.
    pub fn fail_next(&self, count: usize, fault: Fault) {
        self.plan(|faults| faults.fail_next(Victim::Everybody, count, fault));
    }

    /// The next `count` refresh requests of `user` fail like this.
    pub fn fail_next_for(&self, user: &str, count: usize, fault: Fault) {
        self.plan(|faults| faults.fail_next(Victim::User(user), count, fault));
    }

    /// All refresh requests fail like this from now on.
    pub fn fail_always(&self, fault: Fault) {
        self.plan(|faults| faults.fail_always(Victim::Everybody, fault));
    }

    /// All refresh requests of `user` fail like this from now on.
    pub fn fail_always_for(&self, user: &str, fault: Fault) {
        self.plan(|faults| faults.fail_always(Victim::User(user), fault));
    }

    /// So many of a hundred refresh requests fail from now on, each like one of `faults`. The same seed leads to
    /// the same sequence.
    pub fn fail_now_and_then(&self, percent: u8, faults: Vec<Fault>, seed: u64) {
        self.plan(|plan| plan.fail_now_and_then(percent, faults, seed));
    }

    /// Forgets every planned fault. Requests that already hang go on hanging.
    pub fn heal(&self) {
        self.plan(FaultPlan::heal);
    }

    /// Parks refresh requests inside the token endpoint, received but not yet acted on.
    pub fn hold_refreshes(&self) -> RefreshGate {
        RefreshGate::new(self.scm.refresh_gate.hold())
    }

    /// Holds clones at this point.
    pub fn hold_clones(&self, point: HoldPoint) -> GitGate {
        let post = match point {
            HoldPoint::BetweenRequests => &self.scm.between_requests_gate,
            HoldPoint::InPack => &self.scm.in_pack_gate,
        };
        GitGate::new(post.hold())
    }

    fn plan(&self, change: impl FnOnce(&mut FaultPlan)) {
        change(&mut self.scm.faults.lock().expect("the plan of faults"));
    }

    // --- Repositories ---

    /// Makes a repository with a few commits of together about `size_bytes` that do not compress.
    pub async fn create_repo(&self, project: &str, repository: &str, size_bytes: usize) {
        self.scm.repositories.create(project, repository, size_bytes).await;
    }
}

fn replaces(key: &str, default_key: &str) -> bool {
    let names_the_secret = matches!(key, "client_secret_env" | "client_secret_file");
    key == default_key || (names_the_secret && default_key == "client_secret")
}

fn toml_key(line: &str) -> Option<&str> {
    line.split_once('=').map(|(key, _)| key.trim())
}

fn rfc3339(epoch_ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(epoch_ms).expect("a time that RFC 3339 can write");
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
