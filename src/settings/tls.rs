//! How each link is protected: what its URL says, and its settings.
//!
//! A link that leaves this machine is encrypted, and its server verified, unless the operator says `tls = "off"`.

use std::path::PathBuf;

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use rustls::pki_types::ServerName;
use sea_orm::sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};
use secrecy::ExposeSecret;
use url::Url;

use super::nodes::Nodes;
use super::reader::Reader;
use super::url::ConnectionUrl;
use crate::domain::network::is_this_machine;
use crate::private_file::FileRule;
use crate::tls::{ClientTls, Identity, LinkTls, TlsFile};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Verify,
    Off,
}

const WANTED: [(&str, Wanted); 2] = [("verify", Wanted::Verify), ("off", Wanted::Off)];

/// The keys of a link's files: authorities, client certificate, its private key.
type FileKeys = [&'static str; 3];

const BROKER_FILES: FileKeys = ["broker.tls_ca_file", "broker.tls_cert_file", "broker.tls_key_file"];
const DATABASE_FILES: FileKeys = ["database.tls_ca_file", "database.tls_cert_file", "database.tls_key_file"];
const PROVIDER_FILES: FileKeys = ["refresh.tls_ca_file", "refresh.tls_cert_file", "refresh.tls_key_file"];

const SERVER_NAME: &str = "broker.tls_server_name";
const SERVER_NAME_SHAPE: &str = "a host name or an IP address, as it stands in the broker's certificate";

/// The link to the broker. `amqps://` is TLS, `amqp://` is not.
pub(super) fn broker(from: &mut Reader, nodes: &Nodes, rule: FileRule) -> LinkTls {
    let wanted = from.one_of("broker.tls", &WANTED);
    let mut tls = files(from, BROKER_FILES, UrlFiles::default(), rule);
    tls.server_name =
        from.text(SERVER_NAME, |text| ServerName::try_from(text.to_owned()).is_ok(), SERVER_NAME_SHAPE);
    // A wrong URL was told already, and is this machine's here.
    let hosts = nodes.urls().iter().map(|url| url.expose_secret().parse().unwrap_or_default());
    let remote = hosts.map(|uri: AMQPUri| uri.authority.host).find(|host| !is_this_machine(host));
    let uri = nodes.uri();
    let key = if from.is_set("broker.urls") { "broker.urls" } else { "broker.url" };
    let is_encrypted = uri.scheme == AMQPScheme::AMQPS;
    if uri.query.auth_mechanism == Some(SASLMechanism::External) && tls.identity.is_none() {
        let text = "logs in by certificate (auth_mechanism=external), which needs amqps://, \
                    `broker.tls_cert_file` and `broker.tls_key_file`";
        from.problem(key, text);
    }
    match (is_encrypted, wanted) {
        (true, Some(Wanted::Off)) => {
            from.problem(
                "broker.tls",
                "is \"off\", but `broker.url` begins with amqps://; change one of the two",
            );
            LinkTls::Verified(tls)
        }
        (true, _) => LinkTls::Verified(tls),
        (false, Some(Wanted::Verify)) => {
            from.problem(
                "broker.tls",
                "is \"verify\", but `broker.url` begins with amqp://, which is without TLS; write amqps://",
            );
            LinkTls::Off { crosses_network: false }
        }
        (false, None) if remote.is_some() => {
            let host = remote.unwrap_or_default();
            let text = format!(
                "would send passwords and tokens to {host} in plain text; write amqps://, or, on a network that nobody \
                 else reads, set `broker.tls` = \"off\" (TOKENKEEPER__BROKER__TLS=off)"
            );
            from.problem(key, text);
            LinkTls::Off { crosses_network: true }
        }
        (false, _) => {
            has_no_use(from, &tls, "`broker.url` begins with amqp://, which is without TLS; write amqps://");
            LinkTls::Off { crosses_network: remote.is_some() }
        }
    }
}

/// The link to the database. Its URL may say more, in the words of its driver.
pub(super) fn database(from: &mut Reader, url: &ConnectionUrl, rule: FileRule) -> LinkTls {
    let wanted = from.one_of("database.tls", &WANTED);
    let driver = Driver::of_all(url);
    let tls = files(from, DATABASE_FILES, driver.files, rule);
    if url.is_sqlite() {
        if wanted == Some(Wanted::Verify) {
            from.problem("database.tls", "is \"verify\", but an SQLite database is a file of this machine");
        }
        has_no_use(from, &tls, "an SQLite database is a file of this machine");
        return LinkTls::Off { crosses_network: false };
    }
    let is_contradicted = match (wanted, driver.mode) {
        (None, _) | (_, None) => false,
        (Some(Wanted::Verify), Some(mode)) => mode != Mode::Verified,
        (Some(Wanted::Off), Some(mode)) => mode != Mode::Off,
    };
    if is_contradicted {
        from.problem(
            "database.tls",
            "contradicts the sslmode (ssl-mode) in `database.url`; remove one of the two",
        );
    }
    match (wanted, driver.mode) {
        (Some(Wanted::Off), _) | (None, Some(Mode::Off)) => {
            has_no_use(from, &tls, "the link to the database has no TLS");
            LinkTls::Off { crosses_network: !driver.is_local }
        }
        (None, Some(Mode::Unverified)) if !driver.is_local || tls != ClientTls::default() => {
            from.problem(
                "database.url",
                "has an sslmode (ssl-mode) that takes any server for the right one; write sslmode=verify-full \
                 (ssl-mode=VERIFY_IDENTITY), or leave it out, which means the same",
            );
            LinkTls::Verified(tls)
        }
        (None, Some(Mode::Unverified)) => LinkTls::AsOffered,
        (None, None) if driver.is_local && tls == ClientTls::default() => LinkTls::AsOffered,
        (Some(Wanted::Verify), _) | (None, Some(Mode::Verified) | None) => LinkTls::Verified(tls),
    }
}

/// The links to the providers, which are always encrypted.
pub(super) fn providers(from: &mut Reader, rule: FileRule) -> ClientTls {
    files(from, PROVIDER_FILES, UrlFiles::default(), rule)
}

/// What a database's URL says of files.
#[derive(Debug, Default)]
struct UrlFiles {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// Reads the keys of a link's files, and the files.
fn files(
    from: &mut Reader,
    [ca_key, cert_key, key_key]: FileKeys,
    in_url: UrlFiles,
    rule: FileRule,
) -> ClientTls {
    let mut file = |setting: &'static str, in_url: Option<PathBuf>| match (from.path(setting), in_url) {
        (Some(_), Some(_)) => {
            from.problem(setting, "is set beside the same in `database.url`; set one of the two");
            None
        }
        (Some(path), None) => Some(TlsFile { setting, path }),
        (None, in_url) => in_url.map(|path| TlsFile { setting: "database.url", path }),
    };
    let (ca, cert, key) = (file(ca_key, in_url.ca), file(cert_key, in_url.cert), file(key_key, in_url.key));
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some(Identity { cert, key, rule }),
        (Some(_), None) => {
            from.problem(key_key, format!("must be set beside `{cert_key}`"));
            None
        }
        (None, Some(_)) => {
            from.problem(cert_key, format!("must be set beside `{key_key}`"));
            None
        }
        (None, None) => None,
    };
    let tls = ClientTls { ca, identity, server_name: None };
    if let Err(error) = tls.check() {
        from.problem(error.setting, format!("names {}, which {}", error.path.display(), error.reason));
    }
    tls
}

/// A link without TLS reads no file, and an operator who names one believes otherwise.
fn has_no_use(from: &mut Reader, tls: &ClientTls, why: &str) {
    let ClientTls { ca, identity, server_name } = tls;
    let files = [ca.as_ref(), identity.as_ref().map(|identity| &identity.cert)];
    let mut keys = files.into_iter().flatten().map(|file| file.setting);
    let server_name = server_name.as_ref().map(|_| SERVER_NAME);
    if let Some(key) = keys.next().or(server_name) {
        from.problem(key, format!("is set, but {why}"));
    }
}

/// What the driver reads in the URL of a database server.
#[derive(Debug, Default)]
struct Driver {
    is_local: bool,
    /// None: the URL does not say.
    mode: Option<Mode>,
    files: UrlFiles,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    /// The server is not verified, or its name is not.
    Unverified,
    Verified,
}

impl Driver {
    /// They differ in their hosts alone.
    fn of_all(url: &ConnectionUrl) -> Self {
        let mut servers = url.servers().iter().map(|server| Self::of(server.expose_secret()));
        let first = servers.next().unwrap_or_default();
        Self { is_local: first.is_local && servers.all(|server| server.is_local), ..first }
    }

    /// A URL that the driver does not take counts as that of another machine. To open it says what is wrong.
    fn of(text: &str) -> Self {
        let mut driver = Self::default();
        let Ok(url) = Url::parse(text) else { return driver };
        for (key, value) in url.query_pairs() {
            let path = || Some(PathBuf::from(&*value));
            match &*key {
                "sslrootcert" | "ssl-root-cert" | "ssl-ca" | "sslca" => driver.files.ca = path(),
                "sslcert" | "ssl-cert" => driver.files.cert = path(),
                "sslkey" | "ssl-key" => driver.files.key = path(),
                _ => {}
            }
        }
        let says_mode = url.query_pairs().any(|(key, _)| matches!(&*key, "sslmode" | "ssl-mode"));
        let mode = match url.scheme() {
            "postgres" | "postgresql" => {
                let Ok(options) = text.parse::<PgConnectOptions>() else { return driver };
                driver.is_local = options.get_socket().is_some() || is_this_machine(options.get_host());
                match options.get_ssl_mode() {
                    PgSslMode::Disable => Mode::Off,
                    PgSslMode::VerifyFull => Mode::Verified,
                    _ => Mode::Unverified,
                }
            }
            "mysql" => {
                let Ok(options) = text.parse::<MySqlConnectOptions>() else { return driver };
                driver.is_local = options.get_socket().is_some() || is_this_machine(options.get_host());
                match options.get_ssl_mode() {
                    MySqlSslMode::Disabled => Mode::Off,
                    MySqlSslMode::VerifyIdentity => Mode::Verified,
                    _ => Mode::Unverified,
                }
            }
            _ => return driver,
        };
        driver.mode = says_mode.then_some(mode);
        driver
    }
}
