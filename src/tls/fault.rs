//! What an error of TLS means to an operator.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// The kinds of error that an operator mends in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    /// What answers does not speak TLS.
    NotTls,
    /// The certificate is signed by nobody who is trusted.
    UnknownAuthority,
    Expired,
    NotYetValid,
    /// The certificate is another server's.
    WrongName,
    /// The certificate cannot be accepted for another reason, for example because it was revoked.
    BadCertificate,
    /// The server wants a client certificate, and was shown none.
    WantsCertificate,
    /// The server does not accept our client certificate.
    RefusesCertificate,
    /// No version or cipher in common. A server with TLS 1.2 says the same if it misses a client certificate.
    NothingInCommon,
    /// This machine trusts no authority at all.
    NoAuthorities,
}

impl TlsFault {
    pub const ALL: [Self; 10] = [
        Self::NotTls,
        Self::UnknownAuthority,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongName,
        Self::BadCertificate,
        Self::WantsCertificate,
        Self::RefusesCertificate,
        Self::NothingInCommon,
        Self::NoAuthorities,
    ];

    /// None: the error is not one of TLS.
    pub fn of_io(error: &io::Error) -> Option<Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map(Self::of)
    }

    pub const fn of(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::AlertReceived(alert) => Self::of_alert(*alert),
            Error::PeerIncompatible(_) | Error::PeerMisbehaved(_) => Self::NothingInCommon,
            _ => Self::NotTls,
        }
    }

    const fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            _ => Self::BadCertificate,
        }
    }

    /// What the server says of us: RFC 8446, section 6.2.
    const fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateRequired => Self::WantsCertificate,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied => Self::RefusesCertificate,
            _ => Self::NothingInCommon,
        }
    }

    /// In a few words, for the end of a sentence.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NotTls => "what answers does not speak TLS",
            Self::UnknownAuthority => "its certificate is signed by no authority that is trusted here",
            Self::Expired => "its certificate has expired, or this machine's clock is wrong",
            Self::NotYetValid => "its certificate is not valid yet, or this machine's clock is wrong",
            Self::WrongName => "its certificate is for another name",
            Self::BadCertificate => "its certificate is not accepted",
            Self::WantsCertificate => "it wants a client certificate",
            Self::RefusesCertificate => "it refuses our client certificate",
            Self::NothingInCommon => "it offers no TLS that this program takes",
            Self::NoAuthorities => "this machine trusts no certificate authority",
        }
    }
}
