//! What is asked for, of which user, and what is to come back.

use std::io::Write as _;

use anyhow::Result;
use tokenkeeper_testkit::queues::{TOKEN_REQUEST, WORKSPACE_START};

use super::mix::Mix;

/// How every reply begins that is good.
pub(crate) const OK: &[u8] = br#"{"status":"ok""#;

/// How every reply begins that is an error.
const ERROR: &[u8] = br#"{"status":"error""#;

/// Every user's name is as long as every other's.
const NAME_DIGITS: usize = 8;

/// The number of the first user who is put straight into the tables.
pub(crate) const SEEDED_USERS: usize = 10_000_000;

/// What a load asks for, request by request.
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
    /// Requests of several kinds.
    Mixed(Mix),
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
    /// By chance, and the same chance in every run.
    Random,
    /// One after the other, each so many times in a row.
    Each(usize),
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) message: Message,
    pub(crate) user: usize,
    pub(crate) expected: Expected,
    pub(crate) part: Part,
}

/// What is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// A `token.request` for this host.
    Token(&'static str),
    /// A `workspace.start` with a repository on each of these hosts.
    Workspace(&'static [&'static str]),
    /// A `token.request` without its host.
    WithoutHost,
}

/// Which reply is the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The token, or all tokens.
    Ok,
    /// A token that was refreshed because it had to be.
    Refreshed,
    /// The same; or a refusal, where so many wait for the host already that a worker lets no more of them wait.
    RefreshedOrRefused,
    /// This error.
    Error(&'static str),
}

/// What a request counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// It is one of those in flight, and how long it takes is what is measured.
    Timed,
    /// It is one of those in flight.
    Untimed,
    /// It waits for a host that is very slow: it is in flight beside the others, and a run does not wait for it.
    Slow,
}

/// What a reply brings that is a right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Expected,
    /// The refusal that is right as well.
    Refused,
}

impl Users {
    /// By chance out of `count`.
    pub(crate) const fn random(first: usize, count: usize) -> Self {
        Self { first, count, order: Order::Random }
    }

    /// One after the other.
    pub(crate) const fn in_turn(first: usize, count: usize) -> Self {
        Self { first, count, order: Order::InTurn }
    }

    /// Each of them so many times in a row.
    pub(crate) const fn each(self, times: usize) -> Self {
        Self { order: Order::Each(times), ..self }
    }

    pub(super) fn number(self, request: usize) -> usize {
        let index = match self.order {
            Order::InTurn => request,
            Order::Random => scattered(request),
            Order::Each(times) => request / times.max(1),
        };
        self.first + index % self.count.max(1)
    }
}

impl Ask {
    /// The request with this number.
    pub(super) fn request(&self, number: usize) -> Request {
        let timed = |message, users: Users| Request {
            message,
            user: users.number(number),
            expected: Expected::Ok,
            part: Part::Timed,
        };
        match self {
            Self::Token { host, users } => timed(Message::Token(host), *users),
            Self::Workspace { hosts, users } => timed(Message::Workspace(hosts), *users),
            Self::Mixed(mix) => mix.request(number),
        }
    }
}

impl Request {
    /// The routing key of the message.
    pub(super) const fn routing_key(&self) -> &'static str {
        match self.message {
            Message::Token(_) | Message::WithoutHost => TOKEN_REQUEST,
            Message::Workspace(_) => WORKSPACE_START,
        }
    }

    /// Writes the body of the message with this number.
    pub(super) fn write(&self, number: usize, to: &mut Vec<u8>) -> Result<()> {
        let user = user_name(self.user);
        match self.message {
            Message::Token(host) => write!(to, r#"{{"user_id":"{user}","host":"{host}"}}"#)?,
            Message::WithoutHost => write!(to, r#"{{"user_id":"{user}"}}"#)?,
            Message::Workspace(hosts) => {
                write!(to, r#"{{"workspace_id":"ws-{number}","user_id":"{user}","repositories":["#)?;
                for (index, host) in hosts.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(to, r#"{comma}"https://{host}/scm/project/repository.git""#)?;
                }
                to.extend_from_slice(b"]}");
            }
        }
        Ok(())
    }

    /// Reads a reply to this request.
    ///
    /// # Errors
    /// In words: what is wrong with it.
    pub(super) fn read(&self, reply: &[u8]) -> Result<Answer, &'static str> {
        let refused = || is_error(reply, "provider_unavailable") && contains(reply, r#""retryable":true"#);
        let (begins_with, answer) = match self.expected {
            Expected::Ok => (OK, Answer::Expected),
            Expected::RefreshedOrRefused if refused() => (ERROR, Answer::Refused),
            Expected::Refreshed | Expected::RefreshedOrRefused
                if contains(reply, r#""refresh":"required""#) =>
            {
                (OK, Answer::Expected)
            }
            Expected::Refreshed | Expected::RefreshedOrRefused => return Err("not a refreshed token"),
            Expected::Error(code) if is_error(reply, code) => (ERROR, Answer::Expected),
            Expected::Error(_) => return Err("not the error that it should be"),
        };
        let Some(rest) = reply.strip_prefix(begins_with) else { return Err("not ok") };
        if !self.is_for_its_user(rest) {
            return Err("a reply for somebody else");
        }
        Ok(answer)
    }

    /// Whether what follows the status names this request's user. An echo worker names nobody.
    fn is_for_its_user(&self, rest: &[u8]) -> bool {
        const USER: &[u8] = br#","user_id":""#;
        if let Message::Workspace(_) = self.message {
            return true;
        }
        let Some(rest) = rest.strip_prefix(USER) else { return rest.starts_with(br#","filling""#) };
        rest.starts_with(user_name(self.user).as_bytes())
    }
}

fn is_error(reply: &[u8], code: &str) -> bool {
    contains(reply, &format!(r#""error":{{"code":"{code}""#))
}

fn contains(reply: &[u8], text: &str) -> bool {
    reply.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The platform's user with this number.
pub(crate) fn user_name(number: usize) -> String {
    format!("u-{number:0NAME_DIGITS$}")
}

/// A number that looks random (splitmix64), the same in every run.
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

    const HOST: &str = "git.example.org";
    const ASK: Ask = Ask::Token { host: HOST, users: Users::random(5, 3) };

    fn user(number: usize) -> usize {
        ASK.request(number).user
    }

    #[test]
    fn users_come_by_chance_out_of_their_range_and_the_same_ones_again() {
        let numbers: Vec<_> = (0..100).map(user).collect();
        assert!(
            (5..8).all(|user| numbers.contains(&user)) && numbers.iter().all(|user| (5..8).contains(user))
        );
        assert_eq!(numbers, (0..100).map(user).collect::<Vec<_>>());
    }

    fn read(expected: Expected, reply: &str) -> Result<Answer, &'static str> {
        Request { expected, ..ASK.request(0) }.read(reply.as_bytes())
    }

    #[test]
    fn a_reply_for_another_user_answers_nothing() {
        let ok = |number| format!(r#"{{"status":"ok","user_id":"{}","host""#, user_name(number));
        assert_eq!(read(Expected::Ok, &ok(user(0))), Ok(Answer::Expected));
        assert_eq!(read(Expected::Ok, &ok(99)), Err("a reply for somebody else"));
        assert_eq!(read(Expected::Ok, r#"{"status":"ok"}"#), Err("a reply for somebody else"));
    }

    #[test]
    fn a_reply_of_another_outcome_is_wrong() {
        let name = user_name(user(0));
        let ok = |refresh| format!(r#"{{"status":"ok","user_id":"{name}","refresh":"{refresh}"}}"#);
        let error = |code, retryable| {
            format!(
                r#"{{"status":"error","user_id":"{name}","error":{{"code":"{code}","retryable":{retryable}}}}}"#
            )
        };
        let (served, refreshed) = (ok("none"), ok("required"));
        let (refused, failed) = (error("provider_unavailable", true), error("internal", true));
        for (expected, right, wrong) in [
            (Expected::Ok, vec![&served, &refreshed], vec![&refused, &failed]),
            (Expected::Refreshed, vec![&refreshed], vec![&served, &refused]),
            (Expected::RefreshedOrRefused, vec![&refreshed, &refused], vec![&served, &failed]),
            (Expected::Error("internal"), vec![&failed], vec![&served, &refused]),
        ] {
            assert!(right.iter().all(|reply| read(expected, reply).is_ok()), "{expected:?}");
            assert!(wrong.iter().all(|reply| read(expected, reply).is_err()), "{expected:?}");
        }
        assert_eq!(read(Expected::RefreshedOrRefused, &refused), Ok(Answer::Refused));
    }

    #[test]
    fn a_request_is_the_contracts() {
        let mut body = Vec::new();
        let hosts = &["a.example.org", "b.example.org"];
        let ask = Ask::Workspace { hosts, users: Users::in_turn(0, 1) };
        ask.request(7).write(7, &mut body).unwrap();
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"workspace_id":"ws-7","user_id":"u-00000000","repositories":["https://a.example.org/scm/project/repository.git","https://b.example.org/scm/project/repository.git"]}"#
        );
    }
}
