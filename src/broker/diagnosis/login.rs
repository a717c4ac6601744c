//! Where the broker is, as whom we log in there, and what that user must be allowed.

use lapin::uri::AMQPUri;
use secrecy::ExposeSecret;

use crate::settings::{Broker, Topology};
use crate::tls::{ClientTls, LinkTls};

/// What `broker.url` and `broker.prefix` say, without the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub host: String,
    pub port: u16,
    /// Host and port; where any of several nodes is meant, all of theirs.
    pub(super) address: String,
    pub user: String,
    pub vhost: String,
    /// The name that the broker's certificate must have.
    pub(super) server_name: String,
    pub(super) prefix: String,
    pub(super) topology: Topology,
    pub(super) role: Role,
}

/// What the user does at the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Worker,
    Publisher {
        /// It publishes to partitions.
        to_partitions: bool,
    },
}

/// RabbitMQ's three permissions of a user in a virtual host: regular expressions over the names of exchanges and queues
/// (<https://www.rabbitmq.com/docs/access-control>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    pub configure: String,
    pub write: String,
    pub read: String,
}

impl Login {
    pub fn of(settings: &Broker) -> Self {
        let nodes = settings.nodes.urls().iter();
        // The settings were checked with the same parser.
        let nodes = nodes.map(|url| Self::at(settings, &url.expose_secret().parse().unwrap_or_default()));
        let nodes: Vec<Self> = nodes.collect();
        let addresses: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
        let first = nodes.into_iter().next().unwrap_or_else(|| Self::at(settings, &AMQPUri::default()));
        Self { address: addresses.join(", "), ..first }
    }

    /// The same of one node.
    pub(in crate::broker) fn at(settings: &Broker, uri: &AMQPUri) -> Self {
        let AMQPUri { authority, vhost, .. } = uri.clone();
        let server_name = match &settings.tls {
            LinkTls::Verified(ClientTls { server_name: Some(name), .. }) => name.clone(),
            _ => authority.host.clone(),
        };
        Self {
            address: format!("{}:{}", authority.host, authority.port),
            host: authority.host,
            port: authority.port,
            user: authority.userinfo.username,
            vhost,
            server_name,
            prefix: settings.prefix.clone(),
            topology: settings.topology,
            role: Role::Worker,
        }
    }

    /// The same for a publisher that gets its replies by direct reply-to.
    pub fn of_publisher(settings: &Broker) -> Self {
        Self { role: Role::Publisher { to_partitions: settings.partitions > 0 }, ..Self::of(settings) }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the user needs. A worker's replies go through the default exchange, which permissions call `amq.default`.
    pub fn permissions(&self) -> Permissions {
        let prefix = self.prefix.replace('.', "\\.");
        if let Role::Publisher { to_partitions } = self.role {
            let partitions =
                if to_partitions { r"(\.(token-requests|workspace-starts|token-stores))?" } else { "" };
            let nothing = "^$".to_owned();
            let write = format!("^{prefix}{partitions}$");
            return Permissions { configure: nothing.clone(), write, read: nothing };
        }
        let ours = format!("{prefix}(\\..*)?");
        let configure = match self.topology {
            Topology::Declare => format!("^{ours}$"),
            Topology::Passive | Topology::None => "^$".to_owned(),
        };
        Permissions { configure, write: format!("^(amq\\.default|{ours})$"), read: format!("^{ours}$") }
    }

    /// The command that gives the user what it needs.
    pub fn grant(&self) -> String {
        let Permissions { configure, write, read } = self.permissions();
        let (vhost, user) = (word(&self.vhost), word(&self.user));
        format!("rabbitmqctl set_permissions -p {vhost} {user} '{configure}' '{write}' '{read}'")
    }
}

/// One word of a POSIX shell.
pub(in crate::broker) fn word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@%+,=".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
