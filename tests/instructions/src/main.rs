//! The pure path, decode → decide → encode, for counting its instructions under callgrind: scripts/instructions.sh.
//!
//! `instructions CASE` runs one case a fixed number of times, inside [`measured`]: the function whose instructions are
//! collected. `instructions --cases` lists the names of all, `instructions --rounds` says how often a case runs.
//! Everything that a case stands on is made before, so the count is the path's own, allocations included.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of ours for a script of ours")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString};
use tokenkeeper::contract::{
    Echo, Envelope, ErrorBody, ErrorCode, ErrorReply, GrantedToken, LifetimeSecs, MessageKind, Refresh,
    Reply, Request, Status, TokenGrant, TokenReply, TokenValue, Wanted, WorkspaceStartReply, decode,
};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::decide::{Decision, Demand, Policy, TokenState, decide};
use tokenkeeper::domain::provider::{Lifespan, RequiredWhileReserved};

/// How often a case runs: enough for an allocator that takes memory in portions now and then.
const ROUNDS: u32 = 100;

/// What is measured, by name.
type Case = (&'static str, fn(&Stage));

const CASES: [Case; 5] = [
    ("token-request-served", token_request_served),
    ("token-request-refused", token_request_refused),
    ("workspace-start-three-hosts", workspace_start_three_hosts),
    ("malformed-message", malformed_message),
    ("decision-table", decision_table),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--cases"] => CASES.iter().for_each(|(name, _)| println!("{name}")),
        ["--rounds"] => println!("{ROUNDS}"),
        [wanted] => {
            let Some((_, case)) = CASES.into_iter().find(|(name, _)| *name == wanted) else {
                eprintln!("there is no case {wanted}");
                return ExitCode::from(2);
            };
            let stage = Stage::new();
            // Once before: what is made at the first use is not the path's.
            case(&stage);
            measured(case, &stage);
        }
        // `cargo bench` and whoever wonders.
        _ => eprintln!("run by scripts/instructions.sh; instructions CASE | --cases | --rounds"),
    }
    ExitCode::SUCCESS
}

/// The function that callgrind collects in: its name is known to scripts/instructions.sh.
#[inline(never)]
fn measured(case: fn(&Stage), stage: &Stage) {
    for _ in 0..ROUNDS {
        case(black_box(stage));
    }
}

fn token_request_served(stage: &Stage) {
    let envelope = Envelope::read(&stage.properties, "tokenkeeper");
    let Ok(Request::Token(request)) = decode(MessageKind::TokenRequest, &stage.token_request) else {
        unreachable!("the request is good")
    };
    let lifetime = request.requested_lifetime_secs.map_or(LifetimeSecs::DEFAULT, LifetimeSecs::duration);
    let reply = stage.serve(request.user_id.as_str(), request.host.as_str(), lifetime);
    black_box((Reply::Token(reply).encode(), envelope));
}

fn token_request_refused(stage: &Stage) {
    let envelope = Envelope::read(&stage.properties, "tokenkeeper");
    let Ok(Request::Token(request)) = decode(MessageKind::TokenRequest, &stage.token_request) else {
        unreachable!("the request is good")
    };
    let decision = decide(None, stage.now, &stage.demand(LifetimeSecs::DEFAULT), &stage.policy);
    assert_eq!(black_box(decision), Decision::TokenNotFound);
    let message = format!("the identity at {} has no token", request.host);
    let error = ErrorBody::new(ErrorCode::TokenNotFound, message);
    let reply = TokenReply::Error(ErrorReply::new(Echo::of(&Request::Token(request)), error));
    black_box((Reply::Token(reply).encode(), envelope));
}

fn workspace_start_three_hosts(stage: &Stage) {
    let envelope = Envelope::read(&stage.properties, "tokenkeeper");
    let Ok(Request::WorkspaceStart(request)) = decode(MessageKind::WorkspaceStart, &stage.workspace_start)
    else {
        unreachable!("the request is good")
    };
    let lifetime = request.requested_lifetime_secs.map_or(LifetimeSecs::DEFAULT, LifetimeSecs::duration);
    let user_id = request.user_id.as_str();
    let host = |wanted| match wanted {
        Wanted::TokenFor(host) => Some(host),
        Wanted::Unreadable(_) => None,
    };
    let hosts = request.wanted().into_iter().filter_map(host);
    let tokens: Vec<TokenReply> = hosts.map(|host| stage.serve(user_id, host.as_str(), lifetime)).collect();
    assert_eq!(tokens.len(), 3);
    let reply = WorkspaceStartReply {
        status: Status::Ok,
        workspace_id: Some(request.workspace_id.to_string()),
        user_id: Some(user_id.to_owned()),
        tokens,
        error: None,
        warnings: Vec::new(),
    };
    black_box((Reply::WorkspaceStart(reply).encode(), envelope));
}

fn malformed_message(stage: &Stage) {
    let envelope = Envelope::read(&stage.properties, "tokenkeeper");
    let Err(invalid) = decode(MessageKind::TokenRequest, &stage.malformed) else {
        unreachable!("the request is malformed")
    };
    let error = ErrorBody::new(ErrorCode::InvalidRequest, invalid.reason);
    let reply = Reply::Token(TokenReply::Error(ErrorReply::new(*invalid.echo, error)));
    black_box((reply.encode(), envelope));
}

/// Every way through the table, once.
fn decision_table(stage: &Stage) {
    let demand = stage.demand(LifetimeSecs::DEFAULT);
    black_box(decide(None, stage.now, &demand, &stage.policy));
    for expires_in in [-60, 60, 7200] {
        for reserved_for in [None, Some(-60), Some(180)] {
            for refreshable in [true, false] {
                let token = TokenState {
                    expires_at: Some(stage.after(expires_in)),
                    reserved_until: reserved_for.map(|secs| stage.after(secs)),
                    granted_lifetime: None,
                    refreshable,
                    in_doubt: false,
                    reported: false,
                };
                for required_while_reserved in [
                    RequiredWhileReserved::Refresh,
                    RequiredWhileReserved::Wait,
                    RequiredWhileReserved::GrantRemaining,
                ] {
                    let policy = Policy { required_while_reserved, ..stage.policy };
                    black_box(decide(Some(black_box(&token)), stage.now, &demand, &policy));
                }
            }
        }
    }
}

/// What a case stands on.
struct Stage {
    properties: BasicProperties,
    token_request: Vec<u8>,
    workspace_start: Vec<u8>,
    malformed: Vec<u8>,
    now: Timestamp,
    /// The row that was loaded: valid, and held by somebody.
    token: TokenState,
    username: String,
    scopes: Vec<String>,
    policy: Policy,
}

impl Stage {
    fn new() -> Self {
        let now = Timestamp::from_millis(1_577_840_700_123);
        let after = |secs| now.plus(Duration::from_secs(secs));
        let mut headers = FieldTable::default();
        let trace = LongString::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        headers.insert("traceparent".into(), AMQPValue::LongString(trace));
        Self {
            properties: BasicProperties::default()
                .with_reply_to("server-7f6c9d.replies".into())
                .with_correlation_id("0198c2f1-7a9e-7c1d-9a53-2f60d5a4b911".into())
                .with_message_id("0198c2f1-7a9e-7c1d-9a53-2f60d5a4b911".into())
                .with_user_id("server".into())
                .with_expiration("30000".into())
                .with_timestamp(1_577_840_700)
                .with_headers(headers),
            token_request:
                br#"{"user_id": "u-1234567", "host": "bitbucket.example.org", "requested_lifetime_secs": 300}"#
                    .to_vec(),
            workspace_start: br#"{"workspace_id": "ws-1234567", "user_id": "u-1234567",
                "repositories": ["https://bitbucket.example.org/scm/proj/repo.git",
                                 "git@github.com:owner/repo.git",
                                 "ssh://git@gitlab.example.org:2222/group/repo.git",
                                 "https://bitbucket.example.org/scm/proj/other.git"],
                "requested_lifetime_secs": 600}"#
                .to_vec(),
            malformed: br#"{"user_id": "u-1234567", "host": "bitbucket.example.org",
                "requested_lifetime_secs": "five minutes"}"#
                .to_vec(),
            now,
            token: TokenState {
                expires_at: Some(after(7200)),
                reserved_until: Some(after(120)),
                granted_lifetime: Some(Duration::from_hours(2)),
                refreshable: true,
                in_doubt: false,
                reported: false,
            },
            username: "x-token-auth".to_owned(),
            scopes: vec!["repo".to_owned(), "read:user".to_owned()],
            policy: Policy {
                opportunistic: true,
                opportunistic_window: None,
                old_token_grace: Lifespan::NONE,
                required_while_reserved: RequiredWhileReserved::Refresh,
            },
        }
    }

    fn after(&self, secs: i64) -> Timestamp {
        Timestamp::from_millis(self.now.as_millis() + 1000 * secs)
    }

    fn demand(&self, lifetime: Duration) -> Demand {
        Demand { received_at: self.now, lifetime, deadline: self.now.plus(Duration::from_secs(30)) }
    }

    /// Decides and words the reply, as `handle` does between its queries.
    fn serve(&self, user_id: &str, host: &str, lifetime: Duration) -> TokenReply {
        let demand = self.demand(lifetime);
        let Decision::Serve { reserved, notices } =
            decide(Some(black_box(&self.token)), self.now, &demand, &self.policy)
        else {
            unreachable!("somebody holds the token")
        };
        assert!(reserved);
        TokenReply::Ok(TokenGrant {
            user_id: user_id.to_owned(),
            host: host.to_owned(),
            token: GrantedToken {
                value: TokenValue::Clear("bb-at-0123456789abcdef0123456789abcdef01234567".into()),
                username: self.username.clone(),
                scopes: self.scopes.clone(),
                updated_at: self.now,
                expires_at: self.token.expires_at,
                reserved_until: demand.until(),
            },
            refresh: Refresh::Reserved,
            warnings: notices.into_iter().map(Into::into).collect(),
        })
    }
}
