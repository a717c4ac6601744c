//! The running server: its state, its routes, its end.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    ScmOptions,
    authorization::{basic_credentials, bearer_token},
    connection::{ClosableListener, ConnectionCloser},
    fault::{Fault, FaultPlan},
    gate::GatePost,
    git::{self, Repositories},
    ledger::{IssuedPair, Ledger},
    login::{self, Logins},
    refresh,
    traffic::Traffic,
};

/// What the handlers share.
pub(super) struct Scm {
    pub(super) options: ScmOptions,
    pub(super) address: SocketAddr,
    pub(super) traffic: Arc<Traffic>,
    pub(super) faults: Mutex<FaultPlan>,
    pub(super) refresh_gate: GatePost,
    pub(super) between_requests_gate: GatePost,
    pub(super) in_pack_gate: GatePost,
    /// Bitbucket Data Center's cluster-wide lock.
    pub(super) refresh_lock: tokio::sync::Mutex<()>,
    pub(super) repositories: Repositories,
    pub(super) login_page_views: AtomicUsize,
    pub(super) logins: Logins,
    ledger: Mutex<Ledger>,
}

impl Scm {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("the ledger of tokens")
    }

    pub(super) fn is_alive(&self, access_token: &str) -> bool {
        self.user_of_living(access_token).is_some()
    }

    pub(super) fn pair_of_refresh_token(&self, refresh_token: &str) -> Option<(String, u64)> {
        self.ledger().pair_of_refresh_token(refresh_token)
    }

    pub(super) fn take_fault(&self, user: Option<&str>) -> Option<Fault> {
        self.faults.lock().expect("the plan of faults").take(user)
    }

    pub(super) fn lifetime_ms(&self) -> i64 {
        i64::try_from(self.options.token_lifetime.as_millis()).expect("a token lifetime that fits")
    }

    /// Issues a pair as a login does.
    pub(super) fn authorize(&self, user: &str) -> IssuedPair {
        let now_ms = (self.options.clock)();
        self.ledger().authorize(self.options.dialect, user, now_ms, now_ms + self.lifetime_ms())
    }

    /// `path` below the context path.
    pub(super) fn url_path(&self, path: &str) -> String {
        format!("{}{path}", self.options.context_path)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{}", self.address, self.url_path(path))
    }

    fn user_of_living(&self, access_token: &str) -> Option<String> {
        self.ledger().user_of_living(access_token, (self.options.clock)()).map(str::to_owned)
    }
}

/// Serves until it is dropped; then all connections end at once.
pub(super) struct Server {
    stopped: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(options: ScmOptions) -> (Arc<Scm>, Self) {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port.unwrap_or(0)));
        let listener = TcpListener::bind(wanted)
            .await
            .unwrap_or_else(|error| panic!("the simulated SCM cannot listen on {wanted}: {error}"));
        let scm = Arc::new(Scm {
            address: listener.local_addr().expect("the address of a listener"),
            traffic: Arc::new(Traffic::new(options.clock.clone())),
            faults: Mutex::default(),
            refresh_gate: GatePost::default(),
            between_requests_gate: GatePost::default(),
            in_pack_gate: GatePost::default(),
            refresh_lock: tokio::sync::Mutex::default(),
            repositories: Repositories::new(),
            login_page_views: AtomicUsize::default(),
            logins: Logins::default(),
            ledger: Mutex::default(),
            options,
        });
        let stopped = CancellationToken::new();
        let accepting = tokio::spawn(accept(
            ClosableListener::new(listener, stopped.clone()),
            routes(&scm).with_state(scm.clone()),
        ));
        (scm, Self { stopped, accepting })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.cancel();
        self.accepting.abort();
    }
}

async fn accept(listener: ClosableListener, routes: Router) {
    let service = routes.into_make_service_with_connect_info::<ConnectionCloser>();
    axum::serve(listener, service).await.expect("serve");
}

fn routes(scm: &Scm) -> Router<Arc<Scm>> {
    let dialect = scm.options.dialect;
    let router = Router::new()
        .route(&scm.url_path(dialect.token_path()), post(refresh::serve))
        .route(&scm.url_path(dialect.authorize_path()), get(login::authorize).post(login::decide))
        .route(&scm.url_path("/api/user"), get(current_user))
        .route(&scm.url_path("/login"), any(login_page))
        .route(&scm.url_path("/scm/{*path}"), any(git::serve));
    match dialect.device_path() {
        Some(path) => router.route(&scm.url_path(path), post(login::begin_device)),
        None => router,
    }
}

/// Tells whose token this is, so that a test can ask over HTTP whether a token is alive.
async fn current_user(State(scm): State<Arc<Scm>>, headers: HeaderMap) -> Response {
    let token = bearer_token(&headers).or_else(|| basic_credentials(&headers).map(|(_, password)| password));
    match token.and_then(|token| scm.user_of_living(&token)) {
        Some(user) => Json(json!({"login": user})).into_response(),
        None => (StatusCode::UNAUTHORIZED, Json(json!({"message": "Bad credentials"}))).into_response(),
    }
}

async fn login_page(State(scm): State<Arc<Scm>>) -> Response {
    scm.login_page_views.fetch_add(1, Ordering::Relaxed);
    refresh::login_page().into_response()
}
