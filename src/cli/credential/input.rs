//! What git says: lines `key=value` (git-credential(1)). A hostile repository may have named the URL that it comes from.

use std::borrow::Cow;
use std::io::{self, BufRead};

use tokenkeeper::contract::CloneUrl;
use tokenkeeper::domain::escape::is_printable;
use tokenkeeper::domain::network::is_this_machine;
use tokenkeeper::domain::secret::SecretString;
use tokenkeeper::domain::text::Host;
use zeroize::Zeroizing;

/// More than git ever says.
const LONGEST: u64 = 256 * 1024;

#[derive(Debug, Default)]
pub(super) struct Input {
    protocol: String,
    host: String,
    pub(super) password: Option<SecretString>,
    /// Whether the password came with a date of expiry, as each one from here does. git hands it back since 2.40.
    pub(super) expires: bool,
    /// Whether git knows the attributes that came with 2.46: `authtype`, `credential`, `ephemeral`.
    pub(super) knows_authtype: bool,
}

/// Whose token git wants. Its path does not matter, whatever `credential.useHttpPath` says: a user has one token for a host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: Host,
}

/// Repeats nothing of the input.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    #[error("tokenkeeper: cannot read what git says")]
    Unreadable(#[source] io::Error),
    #[error("tokenkeeper: what git says is longer than {LONGEST} bytes")]
    TooLong,
    #[error("tokenkeeper: what git says is not lines of key=value")]
    Malformed,
    #[error("tokenkeeper: the {0} that git says has a character that none may have")]
    Unprintable(&'static str),
}

impl Input {
    /// Reads up to an empty line, or to the end.
    pub(super) fn read(from: impl BufRead) -> Result<Self, InputError> {
        let mut input = Self::default();
        let mut lines = from.take(LONGEST + 1);
        let mut left = LONGEST;
        // It may be the password's. Wiped, and of one size, so that no copy is left behind.
        let mut line = Zeroizing::new(Vec::with_capacity(usize::try_from(LONGEST + 1).unwrap_or_default()));
        loop {
            line.clear();
            let length = lines.read_until(b'\n', &mut line).map_err(InputError::Unreadable)?;
            left = left.checked_sub(length as u64).ok_or(InputError::TooLong)?;
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            if text.is_empty() {
                return Ok(input);
            }
            input.take(text)?;
        }
    }

    /// The last of several lines with one key counts, as git has it.
    fn take(&mut self, line: &[u8]) -> Result<(), InputError> {
        let line = std::str::from_utf8(line).map_err(|_| InputError::Malformed)?;
        let (key, value) = line.split_once('=').ok_or(InputError::Malformed)?;
        let checked = |name| if is_printable(value) { Ok(value) } else { Err(InputError::Unprintable(name)) };
        match key {
            "protocol" => checked("protocol")?.clone_into(&mut self.protocol),
            "host" => checked("host")?.clone_into(&mut self.host),
            "password" => self.password = Some(SecretString::from(checked("password")?)),
            "password_expiry_utc" => self.expires = true,
            "capability[]" if value == "authtype" => self.knows_authtype = true,
            // path, username, wwwauth[], and whatever a newer git says.
            _ if value.contains('\0') => return Err(InputError::Unprintable("text")),
            _ => {}
        }
        Ok(())
    }

    /// None: not one of ours. The host is that of a clone URL, as a workspace start has it.
    pub(super) fn target(&self, allow_http: bool) -> Option<Target> {
        let host = &self.host;
        // Any of these would make a URL of another host.
        if host.is_empty() || host.contains(['/', '\\', '@', '?', '#', '%', ' ']) {
            return None;
        }
        let url = CloneUrl::try_from(Cow::Owned(format!("https://{host}/x"))).ok()?;
        match &*self.protocol {
            "https" => {}
            "http" if allow_http || is_this_machine(without_port(url.host())) => {}
            _ => return None,
        }
        Some(Target { host: url.host().clone() })
    }
}

fn without_port(host: &Host) -> &str {
    match host.as_str().rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Input, InputError> {
        Input::read(text.as_bytes())
    }

    fn host_of(protocol: &str, host: &str, allow_http: bool) -> Option<String> {
        let input = read(&format!("protocol={protocol}\nhost={host}\n\n")).unwrap();
        input.target(allow_http).map(|target| target.host.to_string())
    }

    #[test]
    fn what_git_says_is_read_to_the_empty_line_and_the_rest_does_not_matter() {
        let input = read(
            "capability[]=authtype\ncapability[]=state\nprotocol=https\nhost=Git.Example.org.:8443\npath=a=b.git\n\
             username=x\npassword=p=w\nwwwauth[]=Basic realm=\"x\"\nnew=1\n\nhost=other\n",
        )
        .unwrap();
        assert!(input.knows_authtype);
        assert_eq!(input.target(false).unwrap().host.as_str(), "git.example.org:8443");
        assert!(!format!("{input:?}").contains("p=w"));
        // Without an empty line at the end.
        assert_eq!(read("protocol=https\nhost=h").unwrap().target(false).unwrap().host.as_str(), "h");
        assert!(read("").unwrap().target(false).is_none());
    }

    #[test]
    fn only_encrypted_links_and_this_machine_get_a_token() {
        for (protocol, host, allow_http, expected) in [
            ("https", "h", false, Some("h")),
            ("https", "h:443", false, Some("h:443")),
            ("http", "h", false, None),
            ("http", "127.0.0.1.example.org:80", false, None),
            ("http", "h:80", true, Some("h:80")),
            ("http", "127.0.0.1:8080", false, Some("127.0.0.1:8080")),
            ("http", "[::1]:8080", false, Some("[::1]:8080")),
            ("http", "[::1]", false, Some("[::1]")),
            ("http", "[2001:db8::1]:80", false, None),
            ("http", "LocalHost:8080", false, Some("localhost:8080")),
            ("http", "localhost", false, Some("localhost")),
            ("ssh", "h", true, None),
            ("cert", "h", true, None),
            ("", "h", true, None),
            ("https", "", true, None),
        ] {
            assert_eq!(host_of(protocol, host, allow_http).as_deref(), expected, "{protocol} {host}");
        }
    }

    #[test]
    fn a_host_that_would_be_another_one_in_a_url_is_nobodys() {
        for host in ["h/x", "u@h", "h?x", "h#x", "h\\x", "h%2fx", "h x"] {
            assert_eq!(host_of("https", host, false), None, "{host}");
        }
        // No port, or one that there is not.
        for host in ["h:x", "h:99999"] {
            assert_eq!(host_of("https", host, false), None, "{host}");
        }
        assert_eq!(host_of("https", "evil@good", false), None);
    }

    #[test]
    fn what_is_no_line_of_gits_is_refused_and_not_repeated() {
        for (text, expected) in [
            ("s3cret\n", "not lines of key=value"),
            ("host=s3cret\0\n", "the host that git says"),
            ("host=s3cret\r\n", "the host that git says"),
            ("host=\u{1b}[2Js3cret\n", "the host that git says"),
            ("host=\u{202e}s3cret\n", "the host that git says"),
            ("password=s3cret\0\n", "the password that git says"),
            ("protocol=https\u{7f}\n", "the protocol that git says"),
            ("path=s3cret\0\n", "the text that git says"),
        ] {
            let told = read(text).unwrap_err().to_string();
            assert!(told.contains(expected) && !told.contains("s3cret") && is_printable(&told), "{told}");
        }
        assert!(matches!(Input::read(&b"host=\xff\n"[..]), Err(InputError::Malformed)));
        let long = format!("path={}", "x".repeat(usize::try_from(LONGEST).unwrap()));
        assert!(matches!(read(&long), Err(InputError::TooLong)));
        let many = "path=x\n".repeat(100_000);
        assert!(matches!(read(&many), Err(InputError::TooLong)));
    }
}
