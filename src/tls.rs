//! TLS of the links that this program opens: whom a link trusts, who it says it is, and what an error means.
//!
//! The links to the broker and to the providers are made with [`ClientTls::config`]. The driver of the database makes its own
//! configuration from the same files.

mod fault;
mod file;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls_platform_verifier::{BuilderVerifierExt, Verifier};

pub use self::fault::TlsFault;
pub use self::file::{TlsFile, TlsFileError};
use crate::private_file::FileRule;

/// How a link to a server is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkTls {
    /// Nothing protects it.
    Off {
        /// Whether it leaves this machine, so that others may read passwords and tokens on their way.
        crosses_network: bool,
    },
    /// As the server offers it, and unverified. Only within this machine.
    AsOffered,
    /// By TLS with a server that was verified.
    Verified(ClientTls),
}

/// Whom a link trusts, and who it says it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// The certificates of the authorities that are trusted. None: those that this machine trusts.
    pub ca: Option<TlsFile>,
    /// The client certificate. None: the link has none to show.
    pub identity: Option<Identity>,
    /// The name that the server's certificate must have. None: the name of its host.
    pub server_name: Option<String>,
}

/// A client certificate, and the key that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate in PEM, followed by those it is signed with.
    pub cert: TlsFile,
    /// Its private key in PEM, without a password.
    pub key: TlsFile,
    /// Whether the key is refused if others may read it.
    pub rule: FileRule,
}

/// What a file of authorities does to those that this machine trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaFile {
    /// It takes their place: one server is meant, and its authority is known.
    Replaces,
    /// It adds to them: many servers are meant.
    Adds,
}

/// Why TLS cannot be set up on this side.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    File(#[from] TlsFileError),
    /// This machine trusts no authority at all.
    #[error("this machine trusts no certificate authority")]
    NoAuthorities(#[source] rustls::Error),
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`]: a file cannot be used, or nobody is trusted.
    pub fn config(&self, ca_file: CaFile) -> Result<ClientConfig, TlsError> {
        let crypto = CryptoProvider::get_default().cloned();
        let crypto = crypto.unwrap_or_else(|| Arc::new(ring::default_provider()));
        let builder = ClientConfig::builder_with_provider(Arc::clone(&crypto))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::NoAuthorities)?;
        let builder = match (&self.ca, ca_file) {
            (None, _) => builder.with_platform_verifier().map_err(TlsError::NoAuthorities)?,
            (Some(file), CaFile::Replaces) => builder.with_root_certificates(file.authorities()?),
            (Some(file), CaFile::Adds) => {
                let verifier = Verifier::new_with_extra_roots(file.certificates()?, crypto);
                let verifier = Arc::new(verifier.map_err(TlsError::NoAuthorities)?);
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
        };
        let Some(identity) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let (chain, key) = (identity.cert.certificates()?, identity.key.private_key(identity.rule)?);
        let with_identity = builder.with_client_auth_cert(chain, key);
        with_identity.map_err(|_| identity.key.does_not_fit(&identity.cert).into())
    }

    /// Whether every file can be used.
    ///
    /// # Errors
    /// [`TlsFileError`] of the first one that cannot.
    pub fn check(&self) -> Result<(), TlsFileError> {
        if let Some(ca) = &self.ca {
            ca.authorities()?;
        }
        if let Some(Identity { cert, key, rule }) = &self.identity {
            key.belongs_to(cert, *rule)?;
        }
        Ok(())
    }
}

impl LinkTls {
    /// Whether passwords and tokens cross a network in plain text.
    pub const fn is_exposed(&self) -> bool {
        matches!(self, Self::Off { crosses_network: true })
    }

    /// Whether every file can be used.
    ///
    /// # Errors
    /// As [`ClientTls::check`].
    pub fn check(&self) -> Result<(), TlsFileError> {
        match self {
            Self::Off { .. } | Self::AsOffered => Ok(()),
            Self::Verified(tls) => tls.check(),
        }
    }
}
