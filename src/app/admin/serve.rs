//! Serves the admin endpoint: its paths, who may ask for them, and over what.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::Health;
use super::connections::{Connections, PATIENCE, SignOfLife, converse};
use super::tls;
use super::token::BearerToken;
use crate::domain::escape;
use crate::settings;
use crate::telemetry;
use crate::telemetry::recorder::UPKEEP_INTERVAL;

/// How long an answer that is under way may still take when the worker stops.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// How long is waited for a file to be closed, where there are none left for another connection.
const NO_FILES_LEFT: Duration = Duration::from_millis(50);

/// Asked by every probe, so that it is no secret whether the process lives.
const LIVENESS: &str = "/healthz";

/// The admin endpoint, with its port open and nobody served yet.
pub struct Endpoint {
    listener: TcpListener,
    token: Option<Arc<BearerToken>>,
    tls: Option<TlsAcceptor>,
}

impl Endpoint {
    /// Reads the files that the settings name, and opens the port.
    ///
    /// # Errors
    /// One that cannot be used, or a port that is taken. The error names the setting.
    pub async fn open(settings: &settings::Admin) -> anyhow::Result<Self> {
        let token = settings.token.as_ref().map(BearerToken::read).transpose()?.map(Arc::new);
        let tls = settings.tls.as_ref().map(tls::acceptor).transpose()?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .with_context(|| format!("cannot listen on {} (setting admin.listen)", settings.listen))?;
        Ok(Self { listener, token, tls })
    }

    /// Where it listens.
    pub fn address(&self) -> anyhow::Result<std::net::SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves until `stop`.
    pub async fn serve(
        self,
        health: Arc<Health>,
        metrics: Option<PrometheusHandle>,
        stop: CancellationToken,
    ) {
        let router = router(health, metrics.clone(), self.token.clone());
        tokio::select! {
            () = self.accept(router, &stop) => {}
            () = keep_up(metrics) => {}
        }
    }

    async fn accept(&self, router: Router, stop: &CancellationToken) {
        let mut connections = Connections::default();
        let mut fails = false;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    fails = false;
                    connections.admit(|sign| {
                        serve_connection(stream, self.tls.clone(), router.clone(), sign, stop.clone())
                    });
                }
                // Most likely no file is left: one of ours is, then. What else goes wrong is over with the connection.
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        telemetry::admin_not_accepted(&error);
                    }
                    connections.close_most_silent();
                    sleep(NO_FILES_LEFT).await;
                }
            }
        }
        // A scraper that holds its connection open does not hold the process.
        let _ = timeout(LAST_ANSWERS, connections.ended()).await;
    }
}

async fn serve_connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    sign: SignOfLife,
    stop: CancellationToken,
) {
    match tls {
        None => converse(stream, router, sign, stop).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(PATIENCE, tls.accept(stream)).await {
                converse(stream, router, sign, stop).await;
            }
        }
    }
}

fn router(health: Arc<Health>, metrics: Option<PrometheusHandle>, token: Option<Arc<BearerToken>>) -> Router {
    // One at a time, and on no thread of the runtime: whoever asks all the time must not slow down everybody.
    let rendering = Arc::new(Mutex::new(metrics));
    let render = move || async move {
        let Some(metrics) = rendering.lock().await.clone() else { return Ok(String::new()) };
        spawn_blocking(move || rendered(&metrics)).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    };
    Router::new()
        .route("/metrics", get(render))
        .route(LIVENESS, get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .with_state(health)
        .layer(from_fn_with_state(token, guard))
}

/// Lets through who may ask. Nobody has anything to send beside a question.
async fn guard(State(token): State<Option<Arc<BearerToken>>>, request: Request, next: Next) -> Response {
    if !request.body().is_end_stream() {
        let close = [(CONNECTION, HeaderValue::from_static("close"))];
        return (StatusCode::PAYLOAD_TOO_LARGE, close, "a request has no body here\n").into_response();
    }
    let is_let_through = request.uri().path() == LIVENESS
        || token.is_none_or(|token| token.is_shown_in(request.headers().get(AUTHORIZATION)));
    if is_let_through {
        return next.run(request).await;
    }
    let how = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tokenkeeper\""))];
    (StatusCode::UNAUTHORIZED, how, "bring the bearer token of the setting admin.token\n").into_response()
}

async fn readyz(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let problems = health.problems();
    if problems.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, a_line_each(&problems))
    }
}

/// They quote what the database and the broker say.
fn a_line_each(problems: &[String]) -> String {
    problems.iter().map(|problem| escape::line(problem) + "\n").collect()
}

/// The exposition format has escapes for line breaks and quotes alone; a host in a label is a database's text.
fn rendered(metrics: &PrometheusHandle) -> String {
    escape::lines_without_escapes(&metrics.render()).into_owned()
}

/// Drains histograms; without it the recorder keeps every sample.
async fn keep_up(metrics: Option<PrometheusHandle>) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        if let Some(metrics) = &metrics {
            metrics.run_upkeep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_whatever_it_quotes() {
        let problems = ["database: \u{1b}[2J\u{9b}\nready".to_owned(), "broker: away".to_owned()];
        assert_eq!(a_line_each(&problems), "database: \\u001b[2J\\u009b\\u000aready\nbroker: away\n");
    }
}
