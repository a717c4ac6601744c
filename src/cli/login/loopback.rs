//! Listens for the browser that a provider sends back to this machine. Others may knock here too, or send a browser: they get a
//! page that says so, and the wait goes on.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use parking_lot::Mutex;
use tokenkeeper::oauth::login::{Callback, PendingLogin};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::web::{accept, escaped, is_for};

/// A listener with a login that a browser has gone for.
pub(super) struct Waiting {
    answered: oneshot::Receiver<(PendingLogin, Callback)>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// A login, and where its answer goes.
struct Expected {
    login: PendingLogin,
    answer: oneshot::Sender<(PendingLogin, Callback)>,
}

struct Door {
    authorities: Vec<String>,
    path: String,
    host: String,
    /// Taken by the first answer to it.
    expected: Mutex<Option<Expected>>,
}

impl Waiting {
    pub(super) fn start(
        listener: TcpListener,
        authority: String,
        path: String,
        host: &str,
        pending: PendingLogin,
    ) -> Self {
        let (answer, answered) = oneshot::channel();
        let expected = Mutex::new(Some(Expected { login: pending, answer }));
        let door = Door { authorities: vec![authority], path, host: host.to_owned(), expected };
        let router = Router::new().fallback(knock).with_state(Arc::new(door));
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, router, stop.clone())));
        Self { answered, stop, task }
    }

    /// The answer to the login, once it has come.
    pub(super) async fn answer(&mut self) -> Option<(PendingLogin, Callback)> {
        (&mut self.answered).await.ok()
    }

    /// Lets a page that is under way reach the browser.
    pub(super) async fn end(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

async fn knock(State(door): State<Arc<Door>>, request: Request) -> Response {
    if !is_for(request.headers(), &door.authorities) {
        return (StatusCode::MISDIRECTED_REQUEST, "another host is meant\n").into_response();
    }
    if request.uri().path() != door.path {
        return (StatusCode::NOT_FOUND, "nothing is here\n").into_response();
    }
    if request.method() != Method::GET {
        return (StatusCode::METHOD_NOT_ALLOWED, "a browser is waited for\n").into_response();
    }
    let Ok(callback) = Callback::read(request.uri().query().unwrap_or_default()) else {
        return page(StatusCode::BAD_REQUEST, "This is no answer of a source-code host.");
    };
    let is_meant = |expected: &mut Expected| expected.login.is_answered_by(&callback.state);
    let Some(Expected { login, answer }) = door.expected.lock().take_if(is_meant) else {
        return page(
            StatusCode::BAD_REQUEST,
            "This is not the login that is waited for. It may be over already.",
        );
    };
    // Nobody receives it if the command was interrupted.
    let _ = answer.send((login, callback));
    let text = format!("The answer of {} is here. Close this window, and look at the terminal.", door.host);
    page(StatusCode::OK, &text)
}

fn page(status: StatusCode, text: &str) -> Response {
    let text = escaped(text);
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>tokenkeeper</title></head>\
         <body><h1>tokenkeeper</h1><p>{text}</p></body></html>\n"
    );
    (status, Html(page)).into_response()
}
