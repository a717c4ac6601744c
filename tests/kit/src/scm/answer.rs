//! One HTTP answer of the token endpoint, whole or damaged.

use std::{convert::Infallible, io};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde_json::Value;

/// Status, headers and body.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, String)>,
    body: String,
}

impl Answer {
    pub(super) fn new(status: StatusCode, content_type: &str, body: impl Into<String>) -> Self {
        Self { status, headers: vec![(header::CONTENT_TYPE, content_type.to_owned())], body: body.into() }
    }

    pub(super) fn json(status: StatusCode, body: &Value) -> Self {
        Self::new(status, "application/json;charset=UTF-8", body.to_string())
            .with_header(header::CACHE_CONTROL, "no-store")
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Half the body that the headers announce, and then the connection ends.
    pub(super) fn into_truncated_response(self) -> Response {
        let announced = self.body.len();
        let half = self.body[..announced / 2].to_owned();
        let mut response = self.with_header(header::CONTENT_LENGTH, announced.to_string()).into_response();
        let chunks = stream::unfold(Some(half), async |half| match half {
            Some(half) if !half.is_empty() => Some((Ok(half), Some(String::new()))),
            Some(_) => {
                // One turn for the server to send what it has before the error ends the connection.
                tokio::task::yield_now().await;
                Some((Err(io::Error::other("truncated")), None))
            }
            None => None,
        });
        *response.body_mut() = Body::from_stream(chunks);
        response
    }

    /// The body in chunks without an announced length, so that only reading it shows how long it is.
    pub(super) fn into_chunked_response(self) -> Response {
        let chunks: Vec<_> =
            self.body.as_bytes().chunks(8 * 1024).map(|chunk| Ok::<_, Infallible>(chunk.to_vec())).collect();
        let mut response = self.into_response();
        *response.body_mut() = Body::from_stream(stream::iter(chunks));
        response
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            let value = HeaderValue::from_str(&value).expect("a header value of printable characters");
            response.headers_mut().insert(name, value);
        }
        response
    }
}
