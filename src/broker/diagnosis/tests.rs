use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use lapin::protocol::AMQPError;

use super::login::Role;
use super::*;

const DOCUMENT: &str = include_str!("../../../docs/operating.md");

fn login() -> Login {
    Login {
        host: "HOST".to_owned(),
        port: 5672,
        address: "HOST:5672".to_owned(),
        user: "USER".to_owned(),
        vhost: "VHOST".to_owned(),
        server_name: "HOST".to_owned(),
        prefix: "tokenkeeper".to_owned(),
        topology: Topology::Declare,
        role: Role::Worker,
    }
}

fn queue(name: &str) -> String {
    format!("queue tokenkeeper.{name}")
}

fn different(object: String, argument: &str, wanted: &str, found: &str) -> Diagnosis {
    let difference =
        Difference { argument: argument.to_owned(), wanted: wanted.to_owned(), found: found.to_owned() };
    Diagnosis::Different { object, difference }
}

/// One of each, as the document shows them.
fn examples() -> Vec<Diagnosis> {
    let forbidden = |permission, object: &str| Diagnosis::Forbidden { permission, object: object.to_owned() };
    let mut examples = vec![
        Diagnosis::NotRunning,
        Diagnosis::UnknownHost,
        Diagnosis::Unreachable,
        Diagnosis::Silent { after: Duration::from_secs(10) },
        Diagnosis::NotAmqp,
        Diagnosis::LoginRefused,
        Diagnosis::CertificateLoginRefused,
        Diagnosis::NoVhost,
        Diagnosis::NoAccess,
        Diagnosis::TooManyConnections,
        forbidden(Permission::Configure, "exchange tokenkeeper.dead-letters"),
        forbidden(Permission::Write, "exchange amq.default"),
        forbidden(Permission::Read, "queue tokenkeeper.token-requests"),
        Diagnosis::Missing { object: queue("token-requests") },
        different(queue("token-requests"), "x-queue-type", "quorum", "classic"),
        different(queue("token-requests"), "x-delivery-limit", "7", "5"),
        different(queue("token-requests"), "x-delivery-limit", "none", "5"),
        Diagnosis::Locked { object: queue("token-requests") },
        Diagnosis::NoHashExchange { exchange: "tokenkeeper.token-requests".to_owned() },
        Diagnosis::NoQuorum { queue: "tokenkeeper.token-requests".to_owned() },
        Diagnosis::Cancelled { queue: "tokenkeeper.token-requests".to_owned() },
        Diagnosis::Lost,
        Diagnosis::Other { action: "ACTION".to_owned(), reason: "what RabbitMQ says".to_owned() },
        Diagnosis::TlsFile(TlsFileError {
            setting: "broker.tls_key_file",
            path: "/etc/tokenkeeper/broker-key.pem".into(),
            reason: "cannot be read: Permission denied".to_owned(),
        }),
    ];
    drop(examples.splice(5..5, TlsFault::ALL.map(Diagnosis::Tls)));
    examples
}

/// A new variant does not compile here before it has a number, and then wants an example.
const fn number(diagnosis: &Diagnosis) -> u8 {
    match diagnosis {
        Diagnosis::NotRunning => 0,
        Diagnosis::UnknownHost => 1,
        Diagnosis::Unreachable => 2,
        Diagnosis::Silent { .. } => 3,
        Diagnosis::NotAmqp => 4,
        Diagnosis::Tls(_) => 5,
        Diagnosis::TlsFile(_) => 6,
        Diagnosis::LoginRefused => 7,
        Diagnosis::NoVhost => 8,
        Diagnosis::NoAccess => 9,
        Diagnosis::TooManyConnections => 10,
        Diagnosis::Forbidden { .. } => 11,
        Diagnosis::Missing { .. } => 12,
        Diagnosis::Different { .. } => 13,
        Diagnosis::Locked { .. } => 14,
        Diagnosis::NoHashExchange { .. } => 15,
        Diagnosis::Cancelled { .. } => 16,
        Diagnosis::Lost => 17,
        Diagnosis::Other { .. } => 18,
        Diagnosis::CertificateLoginRefused => 19,
        Diagnosis::NoQuorum { .. } => 20,
    }
}

#[test]
fn the_document_lists_the_words_of_every_first_error() {
    let numbers: BTreeSet<u8> = examples().iter().map(number).collect();
    assert_eq!(numbers, (0..=20).collect(), "an example of each");
    let passive = Login { topology: Topology::Passive, ..login() };
    let missing = Diagnosis::Missing { object: queue("token-requests") };
    let problems = examples().into_iter().map(|diagnosis| diagnosis.problem(&login()));
    let rows = problems.chain([missing.problem(&passive)]).map(|Problem { what, cause, next }| {
        let cell = |text: &str| text.replace('|', r"\|");
        format!("| {} | {} | {} |", cell(&what), cell(&cause), cell(&next))
    });
    let rows: Vec<String> = rows.collect();
    assert!(DOCUMENT.contains(&rows.join("\n")), "docs/operating.md should have:\n{}", rows.join("\n"));
    let publisher = |to_partitions| Login {
        user: "PUBLISHER".to_owned(),
        role: Role::Publisher { to_partitions },
        ..login()
    };
    for grant in [login().grant(), passive.grant(), publisher(false).grant(), publisher(true).grant()] {
        assert!(DOCUMENT.contains(&grant), "docs/operating.md should have:\n{grant}");
    }
}

#[test]
fn every_first_error_is_one_line_of_plain_words() {
    for diagnosis in examples() {
        let problem = diagnosis.problem(&login());
        let text = problem.to_string();
        assert!(!problem.what.is_empty() && !problem.cause.is_empty() && !problem.next.is_empty(), "{text}");
        for inner in
            ["\n", "os error", "lapin", "AMQP hard error", "AMQP soft error", "ShortString", "ErrorKind"]
        {
            assert!(!text.contains(inner), "{text}");
        }
    }
}

#[test]
fn odd_names_stay_one_word_of_the_shell_and_dots_stay_dots() {
    let odd = Login {
        user: "o'brien; reboot".to_owned(),
        vhost: "/".to_owned(),
        prefix: "a.b".to_owned(),
        ..login()
    };
    assert_eq!(
        odd.grant(),
        r"rabbitmqctl set_permissions -p / 'o'\''brien; reboot' '^a\.b(\..*)?$' '^(amq\.default|a\.b(\..*)?)$' '^a\.b(\..*)?$'"
    );
    assert_eq!(word(""), "''");
}

fn said(kind: impl Into<AMQPErrorKind>, text: &str) -> lapin::Error {
    ErrorKind::ProtocolError(AMQPError::new(kind.into(), text.into())).into()
}

#[test]
fn what_the_broker_answers_to_a_login_is_told_apart() {
    let of = |kind: AMQPErrorKind, text| Diagnosis::of_connect(&said(kind, text));
    let not_allowed = |text| of(AMQPHardError::NOTALLOWED.into(), text);
    let refused = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.";
    assert_eq!(of(AMQPSoftError::ACCESSREFUSED.into(), refused), Diagnosis::LoginRefused);
    assert_eq!(not_allowed("NOT_ALLOWED - vhost nowhere not found"), Diagnosis::NoVhost);
    assert_eq!(not_allowed("NOT_ALLOWED - access to vhost '/' refused for user 'u'"), Diagnosis::NoAccess);
    for limit in [
        "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (1) is reached",
        "NOT_ALLOWED - connection refused for user 'u': user connection limit (1) is reached",
    ] {
        assert_eq!(not_allowed(limit), Diagnosis::TooManyConnections);
    }
    let refused = refused.replace("PLAIN", "EXTERNAL");
    assert_eq!(of(AMQPSoftError::ACCESSREFUSED.into(), &refused), Diagnosis::CertificateLoginRefused);
    let down = "INTERNAL_ERROR - access to vhost '/' refused for user 'u': vhost '/' is down";
    assert!(
        matches!(of(AMQPHardError::INTERNALERROR.into(), down), Diagnosis::Other { reason, .. } if reason == down)
    );
}

#[test]
fn what_keeps_from_connecting_is_told_apart() {
    let of = |error: io::Error| Diagnosis::of_connect(&ErrorKind::IOError(Arc::new(error)).into());
    let tls = |error: rustls::Error| of(io::Error::new(io::ErrorKind::InvalidData, error));
    assert_eq!(of(io::ErrorKind::ConnectionRefused.into()), Diagnosis::NotRunning);
    assert_eq!(of(io::ErrorKind::NetworkUnreachable.into()), Diagnosis::Unreachable);
    for ended in
        [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof]
    {
        assert_eq!(of(ended.into()), Diagnosis::NotAmqp);
    }
    assert_eq!(
        tls(rustls::CertificateError::UnknownIssuer.into()),
        Diagnosis::Tls(TlsFault::UnknownAuthority)
    );
    assert_eq!(tls(rustls::InvalidMessage::InvalidContentType.into()), Diagnosis::Tls(TlsFault::NotTls));
}

/// As RabbitMQ 3.10 says it, and as 4.x does.
#[test]
fn a_missing_permission_is_named_with_its_object_whatever_the_version() {
    let of = |action: &str, text: &str| {
        Diagnosis::of_call(
            action,
            &said(AMQPSoftError::ACCESSREFUSED, &format!("ACCESS_REFUSED - {text} refused for user 'u'")),
        )
    };
    for (action, text, permission, object) in [
        ("declare exchange x", "access to exchange 'x' in vhost '/'", Permission::Configure, "exchange x"),
        ("declare queue q", "access to queue 'q' in vhost '/'", Permission::ConfigureOrRead, "queue q"),
        ("declare queue q", "configure access to queue 'q' in vhost '/'", Permission::Configure, "queue q"),
        ("declare queue q", "access to exchange 'dlx' in vhost '/'", Permission::Write, "exchange dlx"),
        ("bind queue q to exchange x", "access to queue 'q' in vhost '/'", Permission::Write, "queue q"),
        ("bind queue q to exchange x", "access to exchange 'x' in vhost '/'", Permission::Read, "exchange x"),
        ("consume queue q", "access to queue 'q' in vhost '/'", Permission::Read, "queue q"),
        ("consume queue q", "read access to queue 'q' in vhost '/'", Permission::Read, "queue q"),
        (
            "publish to exchange amq.default",
            "access to exchange 'amq.default' in vhost '/'",
            Permission::Write,
            "exchange amq.default",
        ),
    ] {
        let object = object.to_owned();
        assert_eq!(of(action, text), Diagnosis::Forbidden { permission, object }, "{action}: {text}");
    }
}

#[test]
fn queues_that_are_missing_locked_or_different_are_told_apart() {
    let of = |kind: AMQPSoftError, text: &str| Diagnosis::of_call("declare queue q", &said(kind, text));
    let object = || "queue q".to_owned();
    assert_eq!(
        of(AMQPSoftError::NOTFOUND, "NOT_FOUND - no queue 'q' in vhost '/'"),
        Diagnosis::Missing { object: object() }
    );
    for (kind, text) in [
        (
            AMQPSoftError::RESOURCELOCKED,
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'. It could be …",
        ),
        (AMQPSoftError::ACCESSREFUSED, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use"),
    ] {
        assert_eq!(of(kind, text), Diagnosis::Locked { object: object() });
    }
    for (received, wanted, current, found) in [
        ("the value '7' of type 'signedint'", "7", "the value '5' of type 'signedint'", "5"),
        ("'quorum'", "quorum", "'classic'", "classic"),
        ("none", "none", "the value '5' of type 'signedint'", "5"),
    ] {
        let text = format!(
            "PRECONDITION_FAILED - inequivalent arg 'x-a' for queue 'q' in vhost '/': received {received} but current is {current}"
        );
        assert_eq!(of(AMQPSoftError::PRECONDITIONFAILED, &text), different(object(), "x-a", wanted, found));
    }
    let cut = "PRECONDITION_FAILED - inequivalent arg 'x-a' for queue 'q' in vh...";
    assert!(
        matches!(of(AMQPSoftError::PRECONDITIONFAILED, cut), Diagnosis::Other { reason, .. } if reason == cut)
    );
}

#[test]
fn a_broker_that_goes_away_is_no_refusal() {
    let shut = said(
        AMQPHardError::CONNECTIONFORCED,
        "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
    );
    for error in [
        shut,
        ErrorKind::MissingHeartbeatError.into(),
        io::Error::from(io::ErrorKind::ConnectionReset).into(),
    ] {
        assert_eq!(Diagnosis::of_call("publish", &error), Diagnosis::Lost);
    }
    assert_eq!(Diagnosis::Lost.again(), crate::broker::AGAIN);
    assert_ne!(Diagnosis::LoginRefused.again(), crate::broker::AGAIN);
}
