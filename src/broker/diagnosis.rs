//! What keeps the broker from being of use, told apart and put into words that an operator can act on.
//!
//! `docs/operating.md` lists these words; a test compares the two.

mod login;
mod said;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::time::Duration;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

pub(super) use self::login::word;
pub use self::login::{Login, Permissions};
pub(super) use self::said::plainly;
pub use self::said::{Difference, Permission};
use super::BrokerError;
use crate::domain::problem::Problem;
use crate::retry::Backoff;
use crate::settings::Topology;
use crate::tls::{TlsError, TlsFault, TlsFileError};

/// Why the broker is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Diagnosis {
    NotRunning,
    UnknownHost,
    Unreachable,
    Silent {
        after: Duration,
    },
    NotAmqp,
    Tls(TlsFault),
    /// A file that TLS needs cannot be used any more.
    TlsFile(TlsFileError),
    LoginRefused,
    /// The name in our client certificate is no user's.
    CertificateLoginRefused,
    NoVhost,
    NoAccess,
    /// A limit of the user or the virtual host.
    TooManyConnections,
    Forbidden {
        permission: Permission,
        /// As `queue tokenkeeper.suspects`.
        object: String,
    },
    Missing {
        object: String,
    },
    Different {
        object: String,
        difference: Difference,
    },
    Locked {
        object: String,
    },
    NoHashExchange {
        exchange: String,
    },
    /// More than half of the nodes that keep the queue are away.
    NoQuorum {
        queue: String,
    },
    /// The broker stopped delivering.
    Cancelled {
        queue: String,
    },
    /// The connection was there.
    Lost,
    Other {
        action: String,
        reason: String,
    },
}

impl Diagnosis {
    pub fn of(error: &BrokerError) -> Self {
        let other = |action: &str, reason: String| Self::Other { action: action.to_owned(), reason };
        match error {
            BrokerError::Connect { diagnosis, .. } => Self::clone(diagnosis),
            BrokerError::Amqp { action, error } => Self::of_call(action, error),
            BrokerError::Closed => Self::Lost,
            BrokerError::Timeout { after, .. } => Self::Silent { after: *after },
            BrokerError::NoHashExchange { exchange } => Self::NoHashExchange { exchange: exchange.clone() },
            BrokerError::NoQuorum { queue } => Self::NoQuorum { queue: queue.clone() },
            BrokerError::Cancelled { queue } => Self::Cancelled { queue: queue.clone() },
            BrokerError::NoQueue { queue } => Self::Missing { object: format!("queue {queue}") },
            BrokerError::NoDeadLetters { exchange } => {
                Self::Missing { object: format!("queue bound to exchange {exchange}") }
            }
            BrokerError::Url { .. } | BrokerError::TooLong { .. } => {
                other("use the settings", error.to_string())
            }
            BrokerError::Refused { .. } => other("publish", error.to_string()),
            BrokerError::NoAcks { .. } => other("acknowledge messages", error.to_string()),
        }
    }

    /// Of an error while connecting.
    pub(super) fn of_connect(error: &lapin::Error) -> Self {
        match error.kind() {
            ErrorKind::IOError(error) => Self::of_io(error),
            ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => Self::NotAmqp,
            ErrorKind::ProtocolError(error) => {
                let text = error.get_message().as_str();
                match error.kind() {
                    AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) if text.contains("EXTERNAL") => {
                        Self::CertificateLoginRefused
                    }
                    AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::LoginRefused,
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.contains("limit") => {
                        Self::TooManyConnections
                    }
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.contains("not found") => {
                        Self::NoVhost
                    }
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Self::NoAccess,
                    AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED) => Self::Lost,
                    _ => Self::Other { action: "connect".to_owned(), reason: text.to_owned() },
                }
            }
            _ => Self::Lost,
        }
    }

    /// Of TLS that could not be set up on this side.
    pub(super) fn of_tls(error: TlsError) -> Self {
        match error {
            TlsError::File(error) => Self::TlsFile(error),
            TlsError::NoAuthorities(_) => Self::Tls(TlsFault::NoAuthorities),
        }
    }

    fn of_io(error: &io::Error) -> Self {
        if let Some(fault) = TlsFault::of_io(error) {
            return Self::Tls(fault);
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::NotRunning,
            io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::PermissionDenied => Self::Unreachable,
            // It listens, and ends the connection before it has said a word of AMQP.
            io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::NotAmqp,
            _ => Self::Other { action: "connect".to_owned(), reason: error.kind().to_string() },
        }
    }

    /// Of an error of a call over a connection that was there.
    pub(super) fn of_call(action: &str, error: &lapin::Error) -> Self {
        let other = |reason: &str| Self::Other { action: action.to_owned(), reason: reason.to_owned() };
        let error = match error.kind() {
            ErrorKind::ProtocolError(error) => error,
            ErrorKind::ChannelsLimitReached | ErrorKind::SerialisationError(_) => {
                return other(&plainly(error));
            }
            _ => return Self::Lost,
        };
        let text = error.get_message().as_str();
        let object = said::object(text);
        match (error.kind(), object) {
            (AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED), Some(object)) => {
                if text.contains("exclusive use") {
                    return Self::Locked { object };
                }
                let permission = said::permission(text, action, &object);
                Self::Forbidden { permission, object }
            }
            (AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND), Some(object)) => Self::Missing { object },
            (AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED), Some(object)) => Self::Locked { object },
            (AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED), Some(object)) => {
                match said::difference(text) {
                    Some(difference) => Self::Different { object, difference },
                    None => other(text),
                }
            }
            (AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED), _) => Self::Lost,
            _ => other(text),
        }
    }

    /// Whether it is for an operator to mend.
    pub(super) fn is_refusal(&self) -> bool {
        self.again() == super::AFTER_A_REFUSAL
    }

    /// How long to wait before the next try. What an operator must mend is not tried every second: each login that
    /// fails is a line in the broker's log.
    pub const fn again(&self) -> Backoff {
        match self {
            Self::NotRunning
            | Self::UnknownHost
            | Self::Unreachable
            | Self::Silent { .. }
            | Self::NotAmqp
            | Self::NoQuorum { .. }
            | Self::Cancelled { .. }
            | Self::Lost
            | Self::Other { .. } => super::AGAIN,
            Self::Tls(_)
            | Self::TlsFile(_)
            | Self::LoginRefused
            | Self::CertificateLoginRefused
            | Self::NoVhost
            | Self::NoAccess
            | Self::TooManyConnections
            | Self::Forbidden { .. }
            | Self::Missing { .. }
            | Self::Different { .. }
            | Self::Locked { .. }
            | Self::NoHashExchange { .. } => super::AFTER_A_REFUSAL,
        }
    }

    /// What an operator reads of it.
    #[allow(clippy::too_many_lines, reason = "a table of texts")]
    pub fn problem(&self, login: &Login) -> Problem {
        let (address, host, user, vhost) = (login.address(), &login.host, &login.user, &login.vhost);
        let (user_word, vhost_word) = (word(user), word(vhost));
        match self {
            Self::NotRunning => Problem::new(
                format!("nothing listens at {address} (broker.url)"),
                "RabbitMQ is not running there, or has another port",
                "start RabbitMQ, or correct the setting; `rabbitmq-diagnostics listeners` shows its ports",
            ),
            Self::UnknownHost => Problem::new(
                format!("the host {host} is unknown (broker.url)"),
                "this machine finds no address for the name",
                format!("`getent hosts {}`, then correct the setting or the name service", word(host)),
            ),
            Self::Unreachable => Problem::new(
                format!("{address} cannot be reached (broker.url)"),
                "there is no way to it, or a firewall closes it",
                format!("`nc -vz {} {}` on this machine", word(host), login.port),
            ),
            Self::Silent { after } => Problem::new(
                format!("{address} gives no answer within {} s (broker.url)", after.as_secs()),
                "the broker is overloaded or still starting, or a firewall drops the packets",
                "`rabbitmq-diagnostics check_running` where it runs",
            ),
            Self::NotAmqp => Problem::new(
                format!("what listens at {address} does not speak AMQP (broker.url)"),
                "it is another program's port, or one for TLS (amqps://), or a proxy whose broker is away",
                "`rabbitmq-diagnostics listeners` shows the broker's ports; correct the setting",
            ),
            Self::Tls(fault) => tls::problem(*fault, login),
            Self::TlsFile(error) => error.problem(),
            Self::LoginRefused => Problem::new(
                format!("the broker refuses the login of user {user} (broker.url)"),
                "the password is wrong, there is no such user, or `guest` comes from another machine",
                format!("`rabbitmqctl authenticate_user {user_word}`, then correct the setting or the user"),
            ),
            Self::CertificateLoginRefused => Problem::new(
                "the broker refuses the login by our certificate (broker.tls_cert_file)",
                "the name in it is no user's, or the broker reads the user from another part of it",
                "`rabbitmqctl list_users`, and ssl_cert_login_from in rabbitmq.conf",
            ),
            Self::NoVhost => Problem::new(
                format!("there is no virtual host {vhost} (broker.url)"),
                "nobody made it, or the name is wrong",
                format!("`rabbitmqctl add_vhost {vhost_word}`, then `{}`", login.grant()),
            ),
            Self::NoAccess => Problem::new(
                format!("user {user} may not use the virtual host {vhost} (broker.url)"),
                "it has no permissions there",
                format!("`{}`", login.grant()),
            ),
            Self::TooManyConnections => Problem::new(
                format!("the broker takes no more connections of user {user} (broker.url)"),
                format!("a limit of the user or of the virtual host {vhost} is reached"),
                format!(
                    "`rabbitmqctl list_user_limits --user {user_word}` and \
                     `rabbitmqctl list_vhost_limits -p {vhost_word}`"
                ),
            ),
            Self::Forbidden { permission, object } => Problem::new(
                format!("user {user} has no {permission} permission for {object} (broker.url)"),
                format!("its permissions in the virtual host {vhost} leave it out"),
                format!("`{}`", login.grant()),
            ),
            Self::Missing { object } => {
                let (cause, next) = match login.topology {
                    Topology::Declare => ("somebody deleted it", "none: the worker declares it again"),
                    Topology::Passive | Topology::None => (
                        "broker.topology leaves it to you, and nobody declared it",
                        "declare it, or set broker.topology = \"declare\"",
                    ),
                };
                Problem::new(format!("there is no {object} in {vhost} (broker.prefix)"), cause, next)
            }
            Self::Different { object, difference } => different(object, difference, &vhost_word),
            Self::Locked { object } => Problem::new(
                format!("{object} is locked (broker.prefix)"),
                "another connection has it for itself (exclusive)",
                format!(
                    "`rabbitmqctl list_queues -p {vhost_word} name exclusive owner_pid`, then end that connection"
                ),
            ),
            Self::NoHashExchange { exchange } => Problem::new(
                format!("exchange {exchange} cannot be declared (broker.partitions)"),
                "the broker has no exchanges of the type x-consistent-hash",
                "`rabbitmq-plugins enable rabbitmq_consistent_hash_exchange` on each of its nodes, or \
                 broker.partitions = 0",
            ),
            Self::NoQuorum { queue } => Problem::new(
                format!("queue {queue} has no quorum (broker.prefix)"),
                "more than half of the nodes that keep it are away, or no node leads it",
                format!(
                    "start the nodes that `rabbitmq-queues quorum_status -p {vhost_word} {}` misses",
                    word(queue)
                ),
            ),
            Self::Cancelled { queue } => Problem::new(
                format!("the broker delivers nothing more from queue {queue} (broker.prefix)"),
                "the queue was deleted, or its node is away",
                "none: the worker consumes it again",
            ),
            Self::Lost => Problem::new(
                format!("the connection to {address} broke (broker.url)"),
                "the broker was stopped, or the network cut it",
                "none: the worker connects again; if that fails, `rabbitmq-diagnostics check_running`",
            ),
            Self::Other { action, reason } => Problem::new(
                format!("cannot {action} (broker.url)"),
                reason.as_str(),
                "the broker's log, at this time",
            ),
        }
    }
}

fn different(object: &str, difference: &Difference, vhost: &str) -> Problem {
    let Difference { argument, wanted, found } = difference;
    let is_by_policy = [wanted, found].into_iter().any(|value| value == "none");
    let setting = match (argument.as_str(), object.rsplit('.').next()) {
        ("x-delivery-limit", _) if is_by_policy => "broker.queue_arguments",
        ("x-message-ttl", Some("again")) => "broker.retry_delay_secs",
        ("x-message-ttl", Some("dead-letters")) => "broker.dead_letters_max_age_secs",
        ("x-max-length" | "x-overflow", Some("dead-letters")) => "broker.dead_letters_max_length",
        ("x-delivery-limit", name) if !matches!(name, Some("again" | "dead-letters" | "parked-pairs")) => {
            "broker.delivery_limit"
        }
        _ => "broker.prefix",
    };
    let next = match object.strip_prefix("queue ") {
        Some(queue) => format!("once it is empty, `rabbitmqctl delete_queue -p {vhost} {}`", word(queue)),
        None => "delete it".to_owned(),
    };
    Problem::new(
        format!("{object} exists with another {argument} ({setting})"),
        format!("it has {found}, and this worker wants {wanted}"),
        format!("set it as it was, or {next}, or set broker.topology = \"passive\""),
    )
}
