//! Serves the admin endpoint: paths, access and TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::tls;
use super::token::BearerToken;
use super::{Metrics, Readiness};
use crate::app::connections::{Connections, LastActive, PATIENCE, converse};
use crate::domain::escape;
use crate::domain::problem::{Problem, of_system};
use crate::settings;
use crate::telemetry;
use crate::telemetry::recorder::UPKEEP_INTERVAL;

/// How long a running answer may still take when the worker stops.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// The pause after a failed accept, for an open file to be closed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Served without the token, because every probe asks for it.
const LIVENESS: &str = "/healthz";

/// The admin endpoint with an open port, before it serves anybody.
pub struct Endpoint {
    listener: TcpListener,
    token: Option<Arc<BearerToken>>,
    tls: Option<TlsAcceptor>,
}

impl Endpoint {
    /// Reads the files of the settings and opens the port. An error names the setting.
    pub async fn open(settings: &settings::Admin) -> anyhow::Result<Self> {
        let token = settings.token.as_ref().map(BearerToken::read).transpose()?.map(Arc::new);
        let tls = settings.tls.as_ref().map(tls::acceptor).transpose()?;
        let listener =
            TcpListener::bind(settings.listen).await.map_err(|error| not_opened(settings.listen, &error))?;
        Ok(Self { listener, token, tls })
    }

    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    pub async fn serve(
        self,
        readiness: Arc<Readiness>,
        metrics: Option<Arc<Metrics>>,
        stop: CancellationToken,
    ) {
        let router = router(readiness, metrics.clone(), self.token.clone());
        tokio::select! {
            () = self.accept(router, &stop) => {}
            () = keep_up(metrics) => {}
        }
    }

    async fn accept(&self, router: Router, stop: &CancellationToken) {
        let mut connections = Connections::new(telemetry::admin_crowded);
        let mut fails = false;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    fails = false;
                    connections.admit(|last_active| {
                        serve_connection(stream, self.tls.clone(), router.clone(), last_active, stop.clone())
                    });
                }
                // Most likely the limit of open files is reached, so close one of ours. Other errors concern only one connection.
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        telemetry::admin_not_accepted(&error);
                    }
                    connections.close_longest_idle();
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
        // A scraper that keeps its connection open must not keep the process alive.
        let _ = timeout(LAST_ANSWERS, connections.ended()).await;
    }
}

fn not_opened(address: SocketAddr, error: &io::Error) -> Problem {
    let what = format!("cannot listen on {address} (admin.listen)");
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => Problem::new(
            what,
            "another program, or another worker, listens there",
            format!("ss -ltnp 'sport = {port}', or another port in admin.listen"),
        ),
        io::ErrorKind::AddrNotAvailable => Problem::new(
            what,
            "this machine does not have that address",
            "an address of this machine, or 0.0.0.0, in admin.listen",
        ),
        io::ErrorKind::PermissionDenied => Problem::new(
            what,
            "this user may not open a port below 1024",
            "a port from 1024 on in admin.listen",
        ),
        _ => Problem::new(what, of_system(error), "another address in admin.listen"),
    }
}

async fn serve_connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    last_active: LastActive,
    stop: CancellationToken,
) {
    match tls {
        None => converse(stream, router, last_active, PATIENCE, stop).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(PATIENCE, tls.accept(stream)).await {
                converse(stream, router, last_active, PATIENCE, stop).await;
            }
        }
    }
}

fn router(
    readiness: Arc<Readiness>,
    metrics: Option<Arc<Metrics>>,
    token: Option<Arc<BearerToken>>,
) -> Router {
    let asked = Arc::clone(&readiness);
    let render = move || async move {
        let Some(metrics) = metrics else { return Ok(String::new()) };
        telemetry::is_ready(asked.problems().is_empty());
        metrics.render().await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    };
    Router::new()
        .route("/metrics", get(render))
        .route(LIVENESS, get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .with_state(readiness)
        .layer(from_fn_with_state(token, guard))
}

/// Checks the token and refuses bodies, which no request here needs.
async fn guard(State(token): State<Option<Arc<BearerToken>>>, request: Request, next: Next) -> Response {
    if !request.body().is_end_stream() {
        let close = [(CONNECTION, HeaderValue::from_static("close"))];
        return (StatusCode::PAYLOAD_TOO_LARGE, close, "send no request body\n").into_response();
    }
    let is_let_through = request.uri().path() == LIVENESS
        || token.is_none_or(|token| token.is_shown_in(request.headers().get(AUTHORIZATION)));
    if is_let_through {
        return next.run(request).await;
    }
    let how = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tokenkeeper\""))];
    (StatusCode::UNAUTHORIZED, how, "send the bearer token of the setting admin.token\n").into_response()
}

async fn readyz(State(readiness): State<Arc<Readiness>>) -> impl IntoResponse {
    let problems = readiness.problems();
    if problems.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, a_line_each(&problems))
    }
}

/// Escaped, because problems quote the database and the broker.
fn a_line_each(problems: &[String]) -> String {
    problems.iter().map(|problem| escape::line(problem) + "\n").collect()
}

async fn keep_up(metrics: Option<Arc<Metrics>>) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        if let Some(metrics) = &metrics {
            metrics.keep_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::problem::documented;

    #[test]
    fn a_port_that_cannot_be_opened_is_told_as_it_is_documented() {
        let listen: SocketAddr = "127.0.0.1:9464".parse().unwrap();
        for (event, kind) in [
            ("admin port in use", io::ErrorKind::AddrInUse),
            ("admin address of another machine", io::ErrorKind::AddrNotAvailable),
            ("admin port below 1024", io::ErrorKind::PermissionDenied),
        ] {
            documented(event, &not_opened(listen, &kind.into()));
        }
    }

    #[test]
    fn a_problem_is_one_line_whatever_it_quotes() {
        let problems = ["database: \u{1b}[2J\u{9b}\nready".to_owned(), "broker: away".to_owned()];
        assert_eq!(a_line_each(&problems), "database: \\u001b[2J\\u009b\\u000aready\nbroker: away\n");
    }
}
