//! What goes wrong on this machine while it connects, and says nothing about the host.

use std::io;

use rustix::io::Errno;

/// Why this machine could not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalCause {
    /// It has as many files open as it may.
    OpenFiles,
    /// It has no memory for another connection.
    Memory,
    /// It has no port or address left to connect from.
    Ports,
    /// Its own rules forbid it: a firewall, a sandbox.
    Denied,
    /// It has no network, or no way out of it.
    Network,
    /// It does not find out the address behind a name.
    NameLookup,
    /// Its proxy is not there, or lets nothing through.
    Proxy,
}

impl LocalCause {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::OpenFiles,
        Self::Memory,
        Self::Ports,
        Self::Denied,
        Self::Network,
        Self::NameLookup,
        Self::Proxy,
    ];

    /// As a label of metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenFiles => "open_files",
            Self::Memory => "memory",
            Self::Ports => "ports",
            Self::Denied => "denied",
            Self::Network => "network",
            Self::NameLookup => "name_lookup",
            Self::Proxy => "proxy",
        }
    }

    /// What an error from opening a connection says about this machine. None: it is about the other one, or may be.
    ///
    /// `EHOSTUNREACH` is told by a router on the way, or by nobody at the address, so it is the host's.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        Some(match Errno::from_io_error(error)? {
            Errno::MFILE | Errno::NFILE => Self::OpenFiles,
            Errno::NOBUFS | Errno::NOMEM => Self::Memory,
            Errno::ADDRNOTAVAIL | Errno::ADDRINUSE => Self::Ports,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            Errno::NETDOWN | Errno::NETUNREACH => Self::Network,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_lacks_is_told_from_what_the_other_one_does() {
        let of = |errno: Errno| LocalCause::of(&errno.into());
        for (errno, cause) in [
            (Errno::MFILE, LocalCause::OpenFiles),
            (Errno::NFILE, LocalCause::OpenFiles),
            (Errno::NOBUFS, LocalCause::Memory),
            (Errno::NOMEM, LocalCause::Memory),
            (Errno::ADDRNOTAVAIL, LocalCause::Ports),
            (Errno::ACCESS, LocalCause::Denied),
            (Errno::PERM, LocalCause::Denied),
            (Errno::NETUNREACH, LocalCause::Network),
        ] {
            assert_eq!(of(errno), Some(cause), "{errno:?}");
        }
        for errno in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::HOSTUNREACH, Errno::TIMEDOUT, Errno::PIPE]
        {
            assert_eq!(of(errno), None, "{errno:?}");
        }
        assert_eq!(LocalCause::of(&io::Error::other("TLS")), None);
    }
}
