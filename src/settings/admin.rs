use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::reader::Reader;
use crate::domain::secret::SecretString;
use crate::private_file::{FileRule, PrivateFile};

/// The endpoint for metrics and health.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Port 0: any free port.
    pub listen: SocketAddr,
    /// Needed for everything but `/healthz`. None: no token is needed.
    pub token: Option<AdminToken>,
    /// None: plain HTTP.
    pub tls: Option<TlsFiles>,
}

/// The admin endpoint's bearer token. Only the worker reads the file, because other commands need no token.
#[derive(Debug, Clone)]
pub enum AdminToken {
    Given(SecretString),
    File(PrivateFile),
}

/// The admin endpoint's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate in PEM, followed by those it is signed with.
    pub cert: PathBuf,
    /// Its private key in PEM.
    pub key: PrivateFile,
}

/// What an admin endpoint's token looks like.
pub const ADMIN_TOKEN_SHAPE: &str = "16 to 512 letters, digits and signs of ASCII, without blanks";

pub fn is_admin_token(text: &str) -> bool {
    (16..=512).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Admin {
    pub(super) fn read(from: &mut Reader, files: FileRule) -> Self {
        let listen = from.address("admin.listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)));
        let token = from.secret("admin.token", is_admin_token, ADMIN_TOKEN_SHAPE).map(AdminToken::Given);
        let token_file = from.path("admin.token_file").map(|path| AdminToken::File(files.file(path)));
        if token.is_some() && token_file.is_some() {
            from.problem("admin.token_file", "is set beside `admin.token`; set one of the two");
        }
        let tls = match (from.path("admin.tls_cert_file"), from.path("admin.tls_key_file")) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key: files.file(key) }),
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
