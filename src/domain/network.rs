//! Where an IP address leads, as far as it matters to whoever sends secrets there.
//!
//! A name says nothing about that: whoever runs its name server may point it at this machine, at a company's inner
//! network or at a cloud's metadata service. So the rule is about addresses, and is applied to what a lookup returned.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// What kind of network an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Zone {
    /// The internet.
    Public,
    /// A network of one's own, or one that nobody has been given.
    Private,
    /// This machine.
    Loopback,
    /// Link-local addresses, metadata services of clouds, multicast, and "any address". No provider lives there.
    Forbidden,
}

/// Which addresses a connection may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    Public,
    /// Public and private ones, and this machine.
    Private,
    /// This machine alone: the URL says so.
    Loopback,
    /// Every address. For servers that the operator of this machine names, such as its proxy.
    Any,
}

impl Zone {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let bits = address.to_bits();
        let holds = |&&(network, length, _): &&Block<Ipv4Addr>| {
            (bits ^ network.to_bits()).checked_shr(32 - length).is_none_or(|rest| rest == 0)
        };
        zone_of_longest(V4.iter().filter(holds)).unwrap_or(Self::Public)
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if let Some(inner) = inner_v4(address) {
            return inner;
        }
        let bits = address.to_bits();
        let holds = |&&(network, length, _): &&Block<Ipv6Addr>| {
            (bits ^ network.to_bits()).checked_shr(128 - length).is_none_or(|rest| rest == 0)
        };
        // Outside 2000::/3 nothing has been given to the internet (RFC 4291, section 2.4).
        zone_of_longest(V6.iter().filter(holds)).unwrap_or(Self::Private)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::Forbidden => "link-local, metadata or multicast",
        })
    }
}

impl Reach {
    /// A URL that names loopback itself stays on this machine, whatever is allowed beyond it.
    pub fn of(url: &Url, allow_private_network: bool) -> Self {
        match (names_loopback(url), allow_private_network) {
            (true, _) => Self::Loopback,
            (false, true) => Self::Private,
            (false, false) => Self::Public,
        }
    }

    pub fn permits(self, zone: Zone) -> bool {
        match self {
            Self::Public => zone == Zone::Public,
            Self::Private => zone != Zone::Forbidden,
            Self::Loopback => zone == Zone::Loopback,
            Self::Any => true,
        }
    }
}

/// Whether the URL itself says that it means this machine: a loopback address, or `localhost` (RFC 6761, section 6.3).
pub fn names_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => is_this_machine(name),
        None => false,
    }
}

/// Whether a host, without its port, names this machine: a loopback address, in brackets or not, or `localhost` in any case.
pub fn is_this_machine(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// First address, length of the prefix in bits, and where it leads.
type Block<A> = (A, u32, Zone);

/// The most specific block decides.
fn zone_of_longest<'a, A: 'a>(blocks: impl Iterator<Item = &'a Block<A>>) -> Option<Zone> {
    blocks.max_by_key(|(_, length, _)| *length).map(|(_, _, zone)| *zone)
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

/// IANA's registry of special-purpose IPv4 addresses (RFC 6890), multicast, and the metadata services of clouds.
const V4: [Block<Ipv4Addr>; 21] = [
    (v4(0, 0, 0, 0), 8, Zone::Forbidden), // "This network", RFC 791; Linux takes it for loopback.
    (v4(10, 0, 0, 0), 8, Zone::Private),  // RFC 1918
    (v4(100, 64, 0, 0), 10, Zone::Private), // Carriers' NAT, RFC 6598
    (v4(100, 100, 100, 200), 32, Zone::Forbidden), // Metadata of Alibaba Cloud
    (v4(127, 0, 0, 0), 8, Zone::Loopback), // RFC 1122, section 3.2.1.3
    (v4(168, 63, 129, 16), 32, Zone::Forbidden), // Azure's WireServer
    (v4(169, 254, 0, 0), 16, Zone::Forbidden), // Link-local, RFC 3927; the metadata of most clouds
    (v4(172, 16, 0, 0), 12, Zone::Private), // RFC 1918
    (v4(192, 0, 0, 0), 24, Zone::Private), // IETF protocols, RFC 6890
    (v4(192, 0, 0, 192), 32, Zone::Forbidden), // Metadata of Oracle Cloud
    (v4(192, 0, 2, 0), 24, Zone::Private), // Documentation, RFC 5737
    (v4(192, 31, 196, 0), 24, Zone::Private), // AS112, RFC 7535
    (v4(192, 52, 193, 0), 24, Zone::Private), // AMT, RFC 7450
    (v4(192, 88, 99, 0), 24, Zone::Private), // 6to4 relays, RFC 7526
    (v4(192, 168, 0, 0), 16, Zone::Private), // RFC 1918
    (v4(198, 18, 0, 0), 15, Zone::Private), // Benchmarks, RFC 2544
    (v4(198, 51, 100, 0), 24, Zone::Private), // Documentation, RFC 5737
    (v4(203, 0, 113, 0), 24, Zone::Private), // Documentation, RFC 5737
    (v4(224, 0, 0, 0), 4, Zone::Forbidden), // Multicast, RFC 5771
    (v4(240, 0, 0, 0), 4, Zone::Private), // Reserved, RFC 1112
    (v4(255, 255, 255, 255), 32, Zone::Forbidden), // Broadcast, RFC 919
];

const fn v6(first: u16, second: u16) -> Ipv6Addr {
    Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0)
}

/// IANA's registry of special-purpose IPv6 addresses (RFC 6890), multicast, and the metadata services of clouds. What is private
/// because it lies outside of the internet's block is not listed: unique local (`fc00::/7`), site-local (`fec0::/10`), segment routing
/// (`5f00::/16`).
const V6: [Block<Ipv6Addr>; 11] = [
    (v6(0x2000, 0), 3, Zone::Public),              // Global unicast, RFC 4291
    (Ipv6Addr::UNSPECIFIED, 128, Zone::Forbidden), // RFC 4291, section 2.5.2
    (Ipv6Addr::LOCALHOST, 128, Zone::Loopback),    // RFC 4291, section 2.5.3
    (v6(0x0100, 0), 64, Zone::Forbidden),          // Discarded, RFC 6666
    (v6(0x2001, 0), 23, Zone::Private),            // IETF protocols, RFC 2928; Teredo
    (v6(0x2001, 0x0db8), 32, Zone::Private),       // Documentation, RFC 3849
    (v6(0x3fff, 0), 20, Zone::Private),            // Documentation, RFC 9637
    (Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254), 128, Zone::Forbidden), // Metadata of AWS
    (Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254), 128, Zone::Forbidden), // Metadata of Google Cloud
    (v6(0xfe80, 0), 10, Zone::Forbidden),          // Link-local, RFC 4291
    (v6(0xff00, 0), 8, Zone::Forbidden),           // Multicast, RFC 4291
];

/// An IPv6 address that carries an IPv4 address leads at least where that one does. `None`: it carries none.
fn inner_v4(address: Ipv6Addr) -> Option<Zone> {
    let low = |[.., g, h]: [u16; 8]| Zone::of_v4(Ipv4Addr::from_bits((u32::from(g) << 16) | u32::from(h)));
    let segments = address.segments();
    match segments {
        // Unspecified and loopback, which have blocks of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // IPv4-mapped, RFC 4291, section 2.5.5.2; NAT64, RFC 6052.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x0064, 0xff9b, 0, 0, 0, 0, ..] => Some(low(segments)),
        // IPv4-compatible, which is deprecated (RFC 4291, section 2.5.5.1), and NAT64 of one network, RFC 8215.
        [0, 0, 0, 0, 0, 0, ..] | [0x0064, 0xff9b, 1, ..] => Some(low(segments).max(Zone::Private)),
        // 6to4, RFC 3056.
        [0x2002, b, c, ..] => Some(Zone::of_v4(Ipv4Addr::from_bits((u32::from(b) << 16) | u32::from(c)))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(address: &str) -> Zone {
        Zone::of(address.parse().unwrap_or_else(|_| panic!("{address} is no address")))
    }

    #[test]
    fn every_range_leads_where_its_rfc_says() {
        use Zone::{Forbidden, Loopback, Private, Public};
        for (expected, addresses) in [
            (
                Public,
                "8.8.8.8 1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0",
            ),
            (
                Public,
                "169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0 223.255.255.255",
            ),
            (Public, "2606:4700::1111 2a00:1450:4001::200e 2400::1 3ffe:ffff::1"),
            // RFC 1918
            (Private, "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0 192.168.255.255"),
            // RFC 6598, RFC 6890, RFC 5737, RFC 2544, RFC 1112
            (
                Private,
                "100.64.0.0 100.127.255.255 192.0.0.1 192.0.2.1 198.51.100.1 203.0.113.1 198.18.0.1 240.0.0.1",
            ),
            // RFC 7535, RFC 7450, RFC 7526
            (Private, "192.31.196.1 192.31.196.255 192.52.193.1 192.52.193.255 192.88.99.0 192.88.99.255"),
            (Public, "192.31.195.255 192.31.197.0 192.52.192.255 192.52.194.0 192.88.98.255 192.88.100.0"),
            // RFC 4193, RFC 3879, RFC 3849, RFC 9637, Teredo, what nobody has been given
            (Private, "fc00::1 fdff:ffff::1 fec0::1 2001:db8::1 3fff:fff::1 2001::1 4000::1 8000::1 5f00::1"),
            (Loopback, "127.0.0.1 127.255.255.254 ::1"),
            // RFC 791, RFC 3927, RFC 5771, RFC 919
            (
                Forbidden,
                "0.0.0.0 0.1.2.3 169.254.0.1 169.254.169.254 169.254.255.255 224.0.0.1 239.1.1.1 255.255.255.255",
            ),
            (Forbidden, "100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 fd20:ce::254"),
            (Forbidden, ":: fe80::1 febf:ffff::1 ff02::1 100::1"),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(zone(address), expected, "{address}");
            }
        }
    }

    #[test]
    fn an_ipv4_address_inside_an_ipv6_address_counts() {
        for inner in
            ["8.8.8.8", "10.1.2.3", "127.0.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "0.0.0.0"]
        {
            let expected = zone(inner);
            // Mapped (RFC 4291), NAT64 (RFC 6052).
            for prefix in ["::ffff:", "64:ff9b::"] {
                assert_eq!(zone(&format!("{prefix}{inner}")), expected, "{prefix}{inner}");
            }
            // 6to4 (RFC 3056).
            let [a, b, c, d] = inner.parse::<Ipv4Addr>().unwrap().octets();
            assert_eq!(zone(&format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1")), expected, "6to4 of {inner}");
            // Compatible (deprecated), and NAT64 of one network (RFC 8215): never the internet.
            for prefix in ["64:ff9b:1::", "::"] {
                let address = format!("{prefix}{inner}");
                if address != "::0.0.0.0" {
                    assert_eq!(zone(&address), expected.max(Zone::Private), "{address}");
                }
            }
        }
    }

    #[test]
    fn a_url_reaches_as_far_as_it_says_and_its_provider_allows() {
        let reach = |url: &str, allowed| Reach::of(&Url::parse(url).unwrap(), allowed);
        for url in
            ["http://127.0.0.1:7990/t", "http://localhost/t", "https://[::1]/t", "https://2130706433/t"]
        {
            assert_eq!((reach(url, false), reach(url, true)), (Reach::Loopback, Reach::Loopback), "{url}");
        }
        for url in [
            "https://git.example.org/t",
            "https://10.1.2.3/t",
            "https://[::ffff:127.0.0.1]/t",
            "https://x.localhost/t",
        ] {
            assert_eq!((reach(url, false), reach(url, true)), (Reach::Public, Reach::Private), "{url}");
        }
    }

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        for host in ["localhost", "LocalHost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            "[]",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "127.0.0.1:80",
            "10.0.0.1",
            "[[::1]]",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn no_setting_opens_what_is_forbidden_but_that_for_this_machines_own_proxy() {
        use Zone::{Forbidden, Loopback, Private, Public};
        for (reach, permitted) in [
            (Reach::Public, vec![Public]),
            (Reach::Private, vec![Public, Private, Loopback]),
            (Reach::Loopback, vec![Loopback]),
            (Reach::Any, vec![Public, Private, Loopback, Forbidden]),
        ] {
            let all = [Public, Private, Loopback, Forbidden].into_iter();
            assert_eq!(all.filter(|zone| reach.permits(*zone)).collect::<Vec<_>>(), permitted, "{reach:?}");
        }
    }
}
