//! One run of `git http-backend`, a CGI program (RFC 3875).

use std::{io, path::Path, process::Stdio};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdout, Command},
};

use super::client::isolate;

/// What the backend is told of an HTTP request.
pub(super) struct BackendRequest<'a> {
    pub(super) repositories: &'a Path,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Bytes,
}

/// A running backend, its CGI headers read. It is killed when this is dropped.
pub(super) struct Backend {
    output: BufReader<ChildStdout>,
    _process: Child,
}

impl Backend {
    /// Starts the backend, gives it the body and reads its headers.
    pub(super) async fn start(request: BackendRequest<'_>) -> (StatusCode, HeaderMap, Self) {
        let mut process = command(&request).spawn().expect("start git http-backend: is git installed?");
        let mut input = process.stdin.take().expect("the backend's stdin");
        let output = process.stdout.take().expect("the backend's stdout");
        let body = request.body;
        tokio::spawn(async move {
            // It fails when the backend has seen enough, which the backend's answer tells better.
            let _ = input.write_all(&body).await;
        });
        let mut backend = Self { output: BufReader::new(output), _process: process };
        let (status, headers) = backend.read_headers().await.expect("read the headers of git http-backend");
        (status, headers, backend)
    }

    /// Up to `size` bytes of the body, fewer only at its end; empty after it.
    pub(super) async fn next_chunk(&mut self, size: usize) -> io::Result<Bytes> {
        let mut chunk = Vec::with_capacity(size);
        let limit = u64::try_from(size).unwrap_or(u64::MAX);
        (&mut self.output).take(limit).read_to_end(&mut chunk).await?;
        Ok(chunk.into())
    }

    /// CGI headers end with an empty line; `Status` is the one that is not an HTTP header.
    async fn read_headers(&mut self) -> io::Result<(StatusCode, HeaderMap)> {
        let mut status = StatusCode::OK;
        let mut headers = HeaderMap::new();
        let mut line = String::new();
        while self.output.read_line(&mut line).await? > 0 {
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("status") {
                status = value.get(..3).and_then(|code| code.parse().ok()).unwrap_or(status);
            } else if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
            line.clear();
        }
        Ok((status, headers))
    }
}

fn command(request: &BackendRequest<'_>) -> Command {
    let mut command = Command::new("git");
    isolate(&mut command)
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", request.repositories)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", request.path)
        .env("QUERY_STRING", request.query)
        .env("REQUEST_METHOD", request.method.as_str())
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let from_headers = [
        ("CONTENT_TYPE", header::CONTENT_TYPE),
        ("HTTP_CONTENT_ENCODING", header::CONTENT_ENCODING),
        ("GIT_PROTOCOL", HeaderName::from_static("git-protocol")),
    ];
    for (variable, name) in from_headers {
        if let Some(value) = request.headers.get(name).and_then(|value| value.to_str().ok()) {
            command.env(variable, value);
        }
    }
    command
}
