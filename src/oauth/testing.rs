//! Fixtures: a provider, and a token endpoint that answers byte for byte as told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use url::{Url, form_urlencoded};

use crate::domain::clock::Timestamp;
use crate::domain::provider::{ClientAuth, LoginSettings, Provider, ProviderKind, RequiredWhileReserved};

pub(super) fn provider(kind: ProviderKind) -> Provider {
    let profile = kind.profile();
    let host = "git.example.org";
    Provider {
        id: 1,
        host: host.into(),
        other_hosts: Vec::new(),
        token_hosts: Vec::new(),
        allow_private_network: false,
        kind,
        client_id: "tokenkeeper-client".into(),
        client_secret: "cl1ent-s3cret".into(),
        spare_client_secrets: Vec::new(),
        token_url: kind
            .token_url(host)
            .unwrap_or_else(|| Url::parse("https://git.example.org/token").expect("a URL")),
        client_auth: profile.client_auth.unwrap_or(ClientAuth::Body),
        redirect_uri: None,
        username: profile.username.into(),
        refresh_parameters: Vec::new(),
        validate_url: None,
        old_token_grace: profile.old_token_grace,
        refresh_token_grace: profile.refresh_token_grace,
        unstated_lifetime: profile.unstated_lifetime,
        refresh_token_idle_lifetime: profile.refresh_token_idle_lifetime,
        opportunistic_refresh: profile.opportunistic_refresh,
        opportunistic_refresh_window: None,
        required_while_reserved: RequiredWhileReserved::default(),
        max_concurrent_refreshes: profile.max_concurrent_refreshes,
        login: LoginSettings::default(),
        updated_at: Timestamp::from_millis(0),
        refusing_since: None,
    }
}

#[derive(Clone)]
pub(super) enum Reply {
    /// Sends these bytes and closes the connection.
    Bytes(Vec<u8>),
    /// Sends the first bytes, and then the second ones until the client closes.
    Endless(&'static [u8], &'static [u8]),
    /// Sends these bytes and keeps the connection open.
    Stall(Vec<u8>),
    /// Sends these bytes over and over, one at a time with pauses.
    Drip(Vec<u8>),
    Close,
}

#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) line: String,
    /// Names in lower case.
    pub(super) headers: HashMap<String, String>,
    pub(super) body: String,
}

/// An HTTP server on a free local port that lives as long as the test.
pub(super) struct Endpoint {
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    left: mpsc::UnboundedReceiver<()>,
}

impl Endpoint {
    pub(super) async fn start(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (leave, left) = mpsc::unbounded_channel();
        let (all, reply) = (Arc::clone(&seen), Arc::new(reply));
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (all, reply, leave) = (Arc::clone(&all), Arc::clone(&reply), leave.clone());
                tokio::spawn(async move {
                    serve(connection, &all, reply.as_ref()).await;
                    let _ = leave.send(());
                });
            }
        });
        Self { port, seen, left }
    }

    pub(super) async fn replying(reply: Reply) -> Self {
        Self::start(move |_| reply.clone()).await
    }

    /// `headers` are whole lines.
    pub(super) async fn answering(status: &str, headers: &str, body: &str) -> Self {
        Self::replying(Reply::Bytes(http(status, headers, body))).await
    }

    /// `provider` with this endpoint as its token URL, under the same path.
    pub(super) fn of(&self, provider: Provider) -> Provider {
        let url = format!("http://127.0.0.1:{}{}", self.port, provider.token_url.path());
        Provider { token_url: Url::parse(&url).expect("a URL"), ..provider }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no test thread panicked").clone()
    }

    pub(super) async fn client_left(&mut self) {
        let left = tokio::time::timeout(Duration::from_secs(10), self.left.recv()).await;
        left.expect("the client keeps reading");
    }
}

impl Seen {
    pub(super) fn form(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }
}

pub(super) fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
        .into()
}

async fn serve(mut connection: TcpStream, all: &Mutex<Vec<Seen>>, reply: impl Fn(&Seen) -> Reply) {
    let Some(seen) = read_request(&mut connection).await else { return };
    all.lock().expect("no test thread panicked").push(seen.clone());
    match reply(&seen) {
        Reply::Bytes(bytes) => {
            let _ = connection.write_all(&bytes).await;
        }
        Reply::Endless(head, more) => {
            let more = more.repeat(4096_usize.div_ceil(more.len()));
            let mut open = connection.write_all(head).await;
            while open.is_ok() {
                open = connection.write_all(&more).await;
            }
        }
        Reply::Stall(bytes) => {
            let _ = connection.write_all(&bytes).await;
            let _ = connection.read(&mut [0]).await;
        }
        Reply::Drip(bytes) => {
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            for byte in bytes.into_iter().cycle() {
                ticks.tick().await;
                if connection.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
        }
        Reply::Close => {}
    }
}

/// The next request of a connection, or `None` once it is closed.
pub(super) async fn read_request(connection: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let count = connection.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let mut lines = head.lines().map(str::to_owned);
        let line = lines.next()?;
        let headers: HashMap<_, _> = lines
            .filter_map(|line| {
                line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            })
            .collect();
        if body.len() >= headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0) {
            return Some(Seen { line, headers, body: body.to_owned() });
        }
    }
}
