//! What is asked for, and of which user.

use std::io::Write as _;

use anyhow::Result;
use tokenkeeper_testkit::queues::{TOKEN_REQUEST, WORKSPACE_START};

/// Every user's name is as long as every other's.
const NAME_DIGITS: usize = 8;

/// The number of the first user who is put straight into the tables.
pub(crate) const SEEDED_USERS: usize = 10_000_000;

/// A kind of request.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// One token.
    Token {
        /// Of which host.
        host: &'static str,
        /// Of whom.
        users: Users,
    },
    /// A workspace that starts, with a repository on each of these hosts.
    Workspace {
        /// The hosts.
        hosts: &'static [&'static str],
        /// Whose workspace.
        users: Users,
    },
}

/// Who is asked for, request by request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Users {
    /// The number of the first one.
    pub(crate) first: usize,
    /// How many there are.
    pub(crate) count: usize,
    /// In which order they come.
    pub(crate) order: Order,
}

/// In which order users come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// One after the other, and from the beginning again.
    InTurn,
    /// By chance, and the same chance in every run, after so many who came before.
    Random(usize),
    /// One after the other, each so many times in a row.
    Each(usize),
}

impl Users {
    /// By chance out of `count`.
    pub(crate) const fn random(first: usize, count: usize) -> Self {
        Self { first, count, order: Order::Random(0) }
    }

    /// One after the other.
    pub(crate) const fn in_turn(first: usize, count: usize) -> Self {
        Self { first, count, order: Order::InTurn }
    }

    /// Each of them so many times in a row.
    pub(crate) const fn each(self, times: usize) -> Self {
        Self { order: Order::Each(times), ..self }
    }

    fn number(self, request: usize) -> usize {
        let index = match self.order {
            Order::InTurn => request,
            Order::Random(before) => scattered(before + request),
            Order::Each(times) => request / times.max(1),
        };
        self.first + index % self.count.max(1)
    }
}

impl Ask {
    /// The same, after so many requests: users by chance are others then. The other orders begin again.
    pub(crate) fn after(&self, requests: usize) -> Self {
        let mut ask = self.clone();
        let (Self::Token { users, .. } | Self::Workspace { users, .. }) = &mut ask;
        if let Order::Random(before) = &mut users.order {
            *before += requests;
        }
        ask
    }

    /// The routing key of the message.
    pub(crate) const fn routing_key(&self) -> &'static str {
        match self {
            Self::Token { .. } => TOKEN_REQUEST,
            Self::Workspace { .. } => WORKSPACE_START,
        }
    }

    /// Writes the body of a request.
    pub(super) fn write(&self, request: usize, to: &mut Vec<u8>) -> Result<()> {
        let user = user_name(self.user(request));
        match self {
            Self::Token { host, .. } => write!(to, r#"{{"user_id":"{user}","host":"{host}"}}"#)?,
            Self::Workspace { hosts, .. } => {
                write!(to, r#"{{"workspace_id":"ws-{request}","user_id":"{user}","repositories":["#)?;
                for (index, host) in hosts.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(to, r#"{comma}"https://{host}/scm/project/repository.git""#)?;
                }
                to.extend_from_slice(b"]}");
            }
        }
        Ok(())
    }

    /// Whether what follows `"status":"ok"` is an answer to this request. An echo worker names nobody.
    pub(super) fn is_answered_by(&self, request: usize, rest: &[u8]) -> bool {
        const USER: &[u8] = br#","user_id":""#;
        let Self::Token { .. } = self else { return true };
        let Some(rest) = rest.strip_prefix(USER) else { return rest.starts_with(br#","filling""#) };
        rest.starts_with(user_name(self.user(request)).as_bytes())
    }

    pub(super) fn user(&self, request: usize) -> usize {
        match self {
            Self::Token { users, .. } | Self::Workspace { users, .. } => users.number(request),
        }
    }
}

/// The platform's user with this number.
pub(crate) fn user_name(number: usize) -> String {
    format!("u-{number:0NAME_DIGITS$}")
}

/// A number that looks random (splitmix64), and can be worked out again when the reply comes.
fn scattered(number: usize) -> usize {
    let mut mixed = (number as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // Of 64 bits, what fits a machine's word is random enough.
    usize::try_from((mixed ^ (mixed >> 31)) >> 1).unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: Ask = Ask::Token { host: "git.example.org", users: Users::random(5, 3) };

    #[test]
    fn users_come_by_chance_out_of_their_range_and_the_same_ones_again() {
        let numbers: Vec<_> = (0..100).map(|request| ASK.user(request)).collect();
        assert!(
            (5..8).all(|user| numbers.contains(&user)) && numbers.iter().all(|user| (5..8).contains(user))
        );
        assert_eq!(numbers, (0..100).map(|request| ASK.user(request)).collect::<Vec<_>>());
    }

    #[test]
    fn users_by_chance_go_on_with_others() {
        let numbers = |ask: &Ask| (0..100).map(|request| ask.user(request)).collect::<Vec<_>>();
        let later = ASK.after(50);
        assert_eq!(numbers(&ASK)[50..], numbers(&later)[..50]);
        let in_turn = Ask::Token { host: "git.example.org", users: Users::in_turn(5, 3) };
        assert_eq!(numbers(&in_turn), numbers(&in_turn.after(50)));
    }

    #[test]
    fn a_reply_for_another_user_answers_nothing() {
        let named = |number| format!(r#","user_id":"{}","host""#, user_name(number));
        assert!(ASK.is_answered_by(0, named(ASK.user(0)).as_bytes()));
        assert!(!ASK.is_answered_by(0, named(99).as_bytes()));
        assert!(!ASK.is_answered_by(0, b"}"));
    }

    #[test]
    fn a_request_is_the_contracts() {
        let mut body = Vec::new();
        let hosts = &["a.example.org", "b.example.org"];
        Ask::Workspace { hosts, users: Users::in_turn(0, 1) }.write(7, &mut body).unwrap();
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"workspace_id":"ws-7","user_id":"u-00000000","repositories":["https://a.example.org/scm/project/repository.git","https://b.example.org/scm/project/repository.git"]}"#
        );
    }
}
