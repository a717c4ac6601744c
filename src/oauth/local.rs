//! Failures to connect whose cause is this machine, not the host.

use std::io;

use rustix::io::Errno;

use crate::telemetry::label;

label! {
    pub enum LocalCause {
        /// The limit of open files is reached.
        OpenFiles = "open_files",
        /// No memory for another connection.
        Memory = "memory",
        /// No local port or address is free.
        Ports = "ports",
        /// A firewall or sandbox of this machine forbids it.
        Denied = "denied",
        /// No network, or no route out of it.
        Network = "network",
        /// DNS or the resolver fails.
        NameLookup = "name_lookup",
        /// The configured proxy is unreachable or refuses the connection.
        Proxy = "proxy",
    }
}

impl LocalCause {
    /// `None`: the error is, or may be, the host's. `EHOSTUNREACH` is the host's: a router on the way reports it, or
    /// nobody answers at the address.
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
    fn local_failures_are_told_from_failures_of_the_host() {
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
