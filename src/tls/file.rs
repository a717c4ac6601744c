//! The files that a link's TLS is made of.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::domain::problem::{Problem, of_system};
use crate::private_file::{FileRule, PrivateFileError};

/// A file in PEM, and the setting that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFile {
    /// As `broker.tls_ca_file`.
    pub setting: &'static str,
    pub path: PathBuf,
}

/// Why a file cannot be used. Never holds what is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {reason} ({setting})", path.display())]
pub struct TlsFileError {
    /// As `broker.tls_ca_file`.
    pub setting: &'static str,
    pub path: PathBuf,
    /// Goes on from the file's name: `holds no certificate in PEM`.
    pub reason: String,
}

const NO_CERTIFICATE: &str = "holds no certificate in PEM";
const NO_KEY: &str = "holds no private key in PEM; one with a password cannot be used";

impl TlsFile {
    /// All certificates in it, at least one.
    ///
    /// # Errors
    /// [`TlsFileError`]
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
        let read = CertificateDer::pem_file_iter(&self.path);
        let read = read.and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates = read.map_err(|error| self.unusable(&error, NO_CERTIFICATE))?;
        if certificates.is_empty() { Err(self.error(NO_CERTIFICATE)) } else { Ok(certificates) }
    }

    /// All certificates in it, as those of authorities.
    ///
    /// # Errors
    /// [`TlsFileError`]
    pub fn authorities(&self) -> Result<RootCertStore, TlsFileError> {
        let mut authorities = RootCertStore::empty();
        for certificate in self.certificates()? {
            authorities.add(certificate).map_err(|_| self.error("holds a certificate that is damaged"))?;
        }
        Ok(authorities)
    }

    /// The private key in it.
    ///
    /// # Errors
    /// [`TlsFileError`]: also that others may read it, where `rule` forbids that.
    pub fn private_key(&self, rule: FileRule) -> Result<PrivateKeyDer<'static>, TlsFileError> {
        let text = rule.file(self.path.clone()).read().map_err(|error| match error {
            PrivateFileError::Unreadable(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.error(NO_KEY)
            }
            error @ PrivateFileError::Exposed { .. } => self.error(format!("is not private: {error}")),
            error @ PrivateFileError::Unreadable(_) => self.error(error),
        })?;
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| self.unusable(&error, NO_KEY))
    }

    /// Whether the private key in it is that of a certificate.
    pub(super) fn belongs_to(&self, cert: &Self, rule: FileRule) -> Result<(), TlsFileError> {
        let chain = cert.certificates()?;
        let key = any_supported_type(&self.private_key(rule)?)
            .map_err(|_| self.error("holds a private key of a kind that is not supported"))?;
        // Fails where the certificate is damaged, or is another key's.
        CertifiedKey::new(chain, key).keys_match().map_err(|_| self.does_not_fit(cert))
    }

    pub(super) fn does_not_fit(&self, cert: &Self) -> TlsFileError {
        self.error(format!("is not the key of the certificate in {}", cert.path.display()))
    }

    fn unusable(&self, error: &pem::Error, nothing: &str) -> TlsFileError {
        match error {
            pem::Error::Io(error) => self.error(format!("cannot be read: {}", of_system(error))),
            pem::Error::NoItemsFound => self.error(nothing),
            _ => self.error("is damaged: it is not PEM to its end"),
        }
    }

    fn error(&self, reason: impl Display) -> TlsFileError {
        TlsFileError { setting: self.setting, path: self.path.clone(), reason: reason.to_string() }
    }
}

impl TlsFileError {
    /// As an operator reads it of a link.
    pub fn problem(&self) -> Problem {
        let Self { setting, path, reason } = self;
        Problem::new(
            format!("no encrypted connection ({setting})"),
            format!("{} {reason}", path.display()),
            format!("correct the file, or {setting}"),
        )
    }
}
