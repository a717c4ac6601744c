use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::reader::Reader;
use crate::domain::secret::SecretString;

/// The endpoint for metrics and health.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address and port it listens on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What must be shown to see more than that the process lives. None: nothing.
    pub token: Option<AdminToken>,
    /// None: it speaks plain HTTP.
    pub tls: Option<TlsFiles>,
}

/// Where the admin endpoint's bearer token comes from. Files are read when the worker starts: other commands do without.
#[derive(Debug, Clone)]
pub enum AdminToken {
    /// The settings.
    Given(SecretString),
    /// A file that holds it.
    File(PathBuf),
}

/// Where the admin endpoint's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate in PEM, followed by those it is signed with.
    pub cert: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
}

/// What an admin endpoint's token looks like.
pub const ADMIN_TOKEN_SHAPE: &str = "16 to 512 letters, digits and signs of ASCII, without blanks";

/// Whether a text can be an admin endpoint's token.
pub fn is_admin_token(text: &str) -> bool {
    (16..=512).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Admin {
    pub(super) fn read(from: &mut Reader) -> Self {
        let listen = from.address("admin.listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)));
        let token = from.secret("admin.token", is_admin_token, ADMIN_TOKEN_SHAPE).map(AdminToken::Given);
        let token_file = from.path("admin.token_file").map(AdminToken::File);
        if token.is_some() && token_file.is_some() {
            from.problem("admin.token_file", "is set beside `admin.token`; set one of the two");
        }
        let tls = match (from.path("admin.tls_cert_file"), from.path("admin.tls_key_file")) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (Some(_), None) => {
                from.problem("admin.tls_key_file", "must be set beside `admin.tls_cert_file`");
                None
            }
            (None, Some(_)) => {
                from.problem("admin.tls_cert_file", "must be set beside `admin.tls_key_file`");
                None
            }
            (None, None) => None,
        };
        Self { listen, token: token.or(token_file), tls }
    }
}
