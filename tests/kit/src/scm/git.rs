//! `git` over HTTP: the smart protocol, through `git http-backend`
//! (<https://git-scm.com/docs/git-http-backend>), with the token checked at every request and at every chunk.

mod backend;
mod client;
mod repository;

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{Stream, stream};

use self::backend::{Backend, BackendRequest};
pub use self::client::{CloneError, git_clone};
pub(super) use self::repository::Repositories;
use super::{Scm, authorization::basic_credentials};

/// How fast the SCM sends what git asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Bytes sent at once. Before each chunk the SCM checks that the token is still alive.
    pub chunk_bytes: usize,
    /// The pause before each chunk but the first.
    pub pause: Duration,
}

impl Default for Pace {
    /// As fast as it goes.
    fn default() -> Self {
        Self { chunk_bytes: 64 * 1024, pause: Duration::ZERO }
    }
}

/// Serves `/scm/{project}/{repository}.git/...`.
pub(super) async fn serve(State(scm): State<Arc<Scm>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    if head.method == Method::POST && path.ends_with("/git-upload-pack") {
        scm.between_requests_gate.pass().await;
    }
    let Some(token) = living_token(&scm, &head.headers) else { return unauthorized() };
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let backend = Backend::start(BackendRequest {
        repositories: scm.repositories.root(),
        path: path.strip_prefix(&scm.url_path("/scm")).unwrap_or_default(),
        query: head.uri.query().unwrap_or_default(),
        method: &head.method,
        headers: &head.headers,
        body,
    });
    let (status, headers, backend) = backend.await;
    let mut response = Body::from_stream(guarded_chunks(scm, token, backend)).into_response();
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The password of the request, which is an access token with any user name, while it is alive.
fn living_token(scm: &Scm, headers: &HeaderMap) -> Option<String> {
    let (_, token) = basic_credentials(headers)?;
    scm.is_alive(&token).then_some(token)
}

fn unauthorized() -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"simulated SCM\"")]).into_response()
}

/// The backend's output, which breaks off when the token dies: an error in a body ends its connection.
fn guarded_chunks(scm: Arc<Scm>, token: String, backend: Backend) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold(Some((backend, 0_u64)), move |transfer| {
        let (scm, token) = (scm.clone(), token.clone());
        async move {
            let (mut backend, sent) = transfer?;
            let chunk = match backend.next_chunk(scm.options.pace.chunk_bytes).await {
                Ok(chunk) if chunk.is_empty() => return None,
                Ok(chunk) => chunk,
                Err(error) => return Some((Err(error), None)),
            };
            if sent > 0 {
                if !scm.options.pace.pause.is_zero() {
                    tokio::time::sleep(scm.options.pace.pause).await;
                }
                scm.in_pack_gate.pass().await;
            }
            if scm.is_alive(&token) {
                Some((Ok(chunk), Some((backend, sent + 1))))
            } else {
                Some((Err(io::Error::other("the access token died during the transfer")), None))
            }
        }
    })
}
