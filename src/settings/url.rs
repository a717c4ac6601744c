mod hosts;

use std::fmt;

use lapin::uri::AMQPUri;
use secrecy::ExposeSecret;
use url::Url;

use crate::domain::network::is_this_machine;
use crate::domain::secret::SecretString;

/// A URL with a password. Shown without it. Only the driver gets the whole URL.
#[derive(Clone)]
pub struct ConnectionUrl {
    secret: SecretString,
    redacted: String,
    servers: Vec<ServerUrl>,
}

/// The URL of one server. Shown without its password.
#[derive(Clone)]
pub struct ServerUrl {
    secret: SecretString,
    redacted: String,
}

impl ConnectionUrl {
    /// A URL that lapin connects to.
    ///
    /// # Errors
    /// Says what would be right; never repeats the URL.
    pub fn broker(text: &str) -> Result<Self, &'static str> {
        let url = server_url(text, &["amqp", "amqps"]).ok_or(BROKER_SHAPE)?;
        // lapin replaces a host that it cannot parse with localhost.
        if url.domain().is_none() {
            return Err("must name its host, or give it as an IPv4 address");
        }
        if url.path() == "/" {
            return Err("names no virtual host behind its last `/`; the default one is written `/%2f`");
        }
        text.parse::<AMQPUri>().map_err(|_| BROKER_SHAPE)?;
        Ok(Self::new(text, &url))
    }

    /// A URL that sqlx connects to.
    ///
    /// # Errors
    /// Says what would be right; never repeats the URL.
    pub fn database(text: &str) -> Result<Self, &'static str> {
        if text.starts_with("sqlite:") {
            let url = Url::parse(text).map_err(|_| DATABASE_SHAPE)?;
            return Ok(Self::new(text, &url));
        }
        // sea-orm and sqlx know MariaDB by the name of MySQL alone.
        let text = match text.strip_prefix("mariadb://") {
            Some(rest) => &format!("mysql://{rest}"),
            None => text,
        };
        let servers: Option<Vec<ServerUrl>> = hosts::for_each_host(text)
            .iter()
            .map(|text| {
                server_url(text, &["postgres", "postgresql", "mysql"]).map(|url| ServerUrl::new(text, &url))
            })
            .collect();
        let servers = servers.ok_or(DATABASE_SHAPE)?;
        let redacted: Vec<&str> = servers.iter().map(ServerUrl::redacted).collect();
        Ok(Self { secret: text.into(), redacted: hosts::joined(&redacted), servers })
    }

    /// Each server that the URL names, in the order in which they are tried.
    pub fn servers(&self) -> &[ServerUrl] {
        &self.servers
    }

    /// For logs and errors: without password and parameters.
    pub fn redacted(&self) -> &str {
        &self.redacted
    }

    /// Replaces a wrong URL until the settings are refused.
    pub(super) fn refused() -> Self {
        Self { secret: SecretString::default(), redacted: String::new(), servers: Vec::new() }
    }

    /// Whether it holds a secret. RabbitMQ's `guest` is none: it may log in from the broker's own machine alone.
    pub(super) fn has_password(&self) -> bool {
        // They have one login.
        let Some(server) = self.servers.first() else { return false };
        let Ok(url) = Url::parse(server.expose_secret()) else { return false };
        let is_password = |name: &str| name.to_ascii_lowercase().contains("password");
        url.password().is_some_and(|password| password != "guest")
            || url.query_pairs().any(|(name, _)| is_password(&name))
    }

    pub(super) fn is_sqlite(&self) -> bool {
        self.redacted.starts_with("sqlite:")
    }

    /// Whether only programs of this machine reach it.
    pub(super) fn is_on_this_machine(&self) -> bool {
        let url = Url::parse(&self.redacted).ok();
        // Such a URL's host is a name even where it is an IPv4 address.
        url.as_ref().and_then(Url::host_str).is_some_and(is_this_machine)
    }

    /// Whether each connection would open a database of its own.
    pub(crate) fn is_in_memory(&self) -> bool {
        let url = self.secret.expose_secret();
        self.is_sqlite() && (url.contains(":memory:") || url.contains("mode=memory"))
    }

    fn new(text: &str, url: &Url) -> Self {
        let server = ServerUrl::new(text, url);
        Self { secret: server.secret.clone(), redacted: server.redacted.clone(), servers: vec![server] }
    }
}

impl ServerUrl {
    fn new(text: &str, url: &Url) -> Self {
        Self { secret: text.into(), redacted: redact(url.clone()) }
    }

    /// For logs and errors: without password and parameters.
    pub fn redacted(&self) -> &str {
        &self.redacted
    }
}

impl ExposeSecret<str> for ConnectionUrl {
    fn expose_secret(&self) -> &str {
        self.secret.expose_secret()
    }
}

impl ExposeSecret<str> for ServerUrl {
    fn expose_secret(&self) -> &str {
        self.secret.expose_secret()
    }
}

impl fmt::Debug for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.redacted, f)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.redacted, f)
    }
}

const BROKER_SHAPE: &str = "must be a URL like amqp://user:password@host:5672/%2f (or amqps://), with `/`, \
                            `?`, `#`, `@` and `%` in user and password percent-encoded";
const DATABASE_SHAPE: &str = "must be a URL like sqlite://tokenkeeper.db, postgres://user:password@host/database \
                              or mysql://user:password@host/database (or with several servers: @one:5432,two:5432), with `/`, `?`, `#`, `@` and `%` in user \
                              and password percent-encoded";

/// Parses `scheme://authority/…`. If a password has a bare `/`, the rest of it would be shown as a path. An `@` behind the
/// authority reveals that.
fn server_url(text: &str, schemes: &[&str]) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let fits = schemes.contains(&url.scheme()) && url.has_host();
    let behind = [Some(url.path()), url.query(), url.fragment()];
    (fits && !behind.into_iter().flatten().any(|part| part.contains('@'))).then_some(url)
}

/// Drops the parameters, too: some dialects have `password` among them.
fn redact(mut url: Url) -> String {
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return format!("{}://***", url.scheme());
    }
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: Result<ConnectionUrl, &'static str>) -> String {
        url.unwrap().redacted().to_owned()
    }

    #[test]
    fn a_url_is_shown_without_its_password_and_exposed_with_it() {
        let url = ConnectionUrl::broker("amqps://worker:s3cret@mq.example.org/%2f?heartbeat=10").unwrap();
        assert_eq!(url.redacted(), "amqps://worker:***@mq.example.org/%2f");
        assert_eq!(format!("{url:?}"), r#""amqps://worker:***@mq.example.org/%2f""#);
        assert_eq!(url.expose_secret(), "amqps://worker:s3cret@mq.example.org/%2f?heartbeat=10");
        assert_eq!(
            shown(ConnectionUrl::database("postgres://db.example.org/tokens?user=u&password=s3cret")),
            "postgres://db.example.org/tokens"
        );
        assert_eq!(shown(ConnectionUrl::database("sqlite://a.db?mode=rwc")), "sqlite://a.db");
    }

    #[test]
    fn mariadb_becomes_mysql() {
        let url = ConnectionUrl::database("mariadb://root:s3cret@localhost/tokens").unwrap();
        assert_eq!(url.expose_secret(), "mysql://root:s3cret@localhost/tokens");
        assert_eq!(url.redacted(), "mysql://root:***@localhost/tokens");
    }

    #[test]
    fn a_database_may_have_several_servers_and_none_is_shown_with_the_password() {
        let url =
            ConnectionUrl::database("mariadb://tk:a,%40s3cret@one:3307,two,[::1]/tokens?ssl-mode=DISABLED");
        let url = url.unwrap();
        assert_eq!(url.redacted(), "mysql://tk:***@one:3307,two,[::1]/tokens");
        assert!(url.has_password());
        let shown: Vec<&str> = url.servers().iter().map(ServerUrl::redacted).collect();
        assert_eq!(
            shown,
            ["mysql://tk:***@one:3307/tokens", "mysql://tk:***@two/tokens", "mysql://tk:***@[::1]/tokens"]
        );
        assert_eq!(url.servers()[1].expose_secret(), "mysql://tk:a,%40s3cret@two/tokens?ssl-mode=DISABLED");
        assert!(!format!("{url:?} {:?}", url.servers()).contains("s3cret"));
    }

    #[test]
    fn sqlite_is_told_from_the_servers() {
        for url in
            ["sqlite://tokenkeeper.db", "sqlite:tokenkeeper.db", "sqlite:///var/lib/t.db", "sqlite::memory:"]
        {
            assert!(ConnectionUrl::database(url).unwrap().is_sqlite(), "{url}");
        }
        assert!(!ConnectionUrl::database("postgresql://localhost/tokens").unwrap().is_sqlite());
    }

    #[test]
    fn a_broker_of_this_machine_is_told_from_others() {
        for (url, here) in [
            ("amqp://guest:guest@127.0.0.1:5672/%2f", true),
            ("amqp://127.9.9.9", true),
            ("amqps://LocalHost/%2f", true),
            ("amqp://localhost.example.org", false),
            ("amqp://10.0.0.1:5672/%2f", false),
            ("amqps://mq.example.org/%2f", false),
        ] {
            assert_eq!(ConnectionUrl::broker(url).unwrap().is_on_this_machine(), here, "{url}");
        }
    }

    #[test]
    fn a_url_that_the_driver_would_misread_is_refused_and_not_repeated() {
        let broker = [
            "",
            "http://u:s3cret@host/",
            "amqp:u:s3cret@host",
            "amqp://u:12/s3cret@host/%2f",
            "amqp://u:s3cret@host:port/%2f",
            "amqp://u:s3cret@[::1]:5672/%2f",
            "amqp://u:s3cret@host:5672/",
            "amqp://u:s3cret@host/%2f?heartbeat=s3cret",
        ];
        let database = [
            "",
            "oracle://u:s3cret@host/db",
            "mysql:u:s3cret@host/db",
            "postgres://u:1/s3cret@host/db",
            "postgres://u:s3cret@host,/db",
            "postgres://u:s3cret@one:5432,two:port/db",
        ];
        let refused = broker.map(ConnectionUrl::broker).into_iter();
        for error in refused.chain(database.map(ConnectionUrl::database)).map(Result::unwrap_err) {
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert!(ConnectionUrl::broker("amqp://localhost").is_ok(), "the virtual host may be left out whole");
    }
}
