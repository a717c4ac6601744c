//! The words that say what is answered.

use std::time::Duration;

use tokenkeeper::contract::{ErrorCode, Refresh, ReportResult, Warning};

/// As long as the longest time of a request.
const SLOWEST: Duration = Duration::from_secs(600);
const LONGEST_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);

const REFRESHES: [Refresh; 4] = [Refresh::None, Refresh::Reserved, Refresh::Opportunistic, Refresh::Required];
const RESULTS: [ReportResult; 4] =
    [ReportResult::Refreshed, ReportResult::Held, ReportResult::Withdrawn, ReportResult::NotCurrent];
const WARNINGS: [(&str, Warning); 5] = [
    ("lifetime_clamped", Warning::LifetimeClamped),
    ("lifetime_short", Warning::LifetimeShort),
    ("refresh_failed", Warning::RefreshFailed),
    ("token_reported", Warning::TokenReported),
    ("reservation_shortened", Warning::ReservationShortened),
];

/// What is answered, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Behaviour {
    /// Never.
    pub(super) silent: bool,
    /// After this time.
    pub(super) delay: Duration,
    /// This error.
    pub(super) error: Option<ErrorCode>,
    /// How long the token lives.
    pub(super) life: Option<Life>,
    pub(super) warnings: Vec<Warning>,
    /// What a request for a token did.
    pub(super) refresh: Option<Refresh>,
    /// What came of a report.
    pub(super) result: Option<ReportResult>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    For(Duration),
    Ever,
}

/// A word that begins like one of ours, and goes on otherwise. Does not repeat it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WrongWord {
    #[error("`{begin}` must be followed by one of {}", choices.join(", "))]
    Choice { begin: &'static str, choices: Vec<&'static str> },
    #[error("`{begin}` must be followed by a time like 2s, 500ms or 1m, of at most {}", humantime::format_duration(*most))]
    Time { begin: &'static str, most: Duration },
    #[error(
        "it has a part that is no word; the words are ok, silent, error-CODE, slow-TIME, expires-TIME, refresh-…, warning-… and result-…"
    )]
    NoWord,
}

impl Behaviour {
    /// What the words in a user's id say. Its other parts are names. None: it has no words.
    pub(super) fn of_user(user_id: &str) -> Result<Option<Self>, WrongWord> {
        let mut behaviour = Self::default();
        let mut words = 0;
        for part in user_id.split('.') {
            words += usize::from(behaviour.take(part)?);
        }
        Ok((words > 0).then_some(behaviour))
    }

    /// What an answer of the rules file says. All its parts must be words.
    pub(super) fn of_answer(answer: &str) -> Result<Self, WrongWord> {
        let mut behaviour = Self::default();
        for part in answer.split('.') {
            if !behaviour.take(part)? && part != "ok" {
                return Err(WrongWord::NoWord);
            }
        }
        Ok(behaviour)
    }

    /// Whether it is a word.
    fn take(&mut self, part: &str) -> Result<bool, WrongWord> {
        if part == "silent" {
            self.silent = true;
        } else if let Some(name) = part.strip_prefix("error-") {
            self.error = Some(one_of("error-", ErrorCode::ALL.map(|code| (code.name(), code)), name)?);
        } else if let Some(time) = part.strip_prefix("slow-") {
            self.delay = duration("slow-", SLOWEST, time)?;
        } else if let Some(time) = part.strip_prefix("expires-") {
            self.life = Some(match time {
                "never" => Life::Ever,
                time => Life::For(duration("expires-", LONGEST_LIFE, time)?),
            });
        } else if let Some(name) = part.strip_prefix("refresh-") {
            self.refresh =
                Some(one_of("refresh-", REFRESHES.map(|refresh| (refresh.name(), refresh)), name)?);
        } else if let Some(name) = part.strip_prefix("warning-") {
            self.warnings.push(one_of("warning-", WARNINGS, name)?);
        } else if let Some(name) = part.strip_prefix("result-") {
            self.result = Some(one_of("result-", RESULTS.map(|result| (result.name(), result)), name)?);
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

fn one_of<T, const N: usize>(
    begin: &'static str,
    choices: [(&'static str, T); N],
    name: &str,
) -> Result<T, WrongWord> {
    let names = choices.iter().map(|(name, _)| *name).collect();
    let found = choices.into_iter().find(|(choice, _)| *choice == name);
    found.map(|(_, value)| value).ok_or(WrongWord::Choice { begin, choices: names })
}

fn duration(begin: &'static str, most: Duration, text: &str) -> Result<Duration, WrongWord> {
    let time = humantime::parse_duration(text).ok().filter(|time| !time.is_zero() && *time <= most);
    time.ok_or(WrongWord::Time { begin, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_user_stand_between_its_names() {
        let read = |user: &str| Behaviour::of_user(user).unwrap();
        assert_eq!(read("u-1"), None);
        assert_eq!(read("jane.doe"), None);
        assert_eq!(read("silently"), None);
        let slow = Behaviour {
            delay: Duration::from_secs(2),
            error: Some(ErrorCode::Internal),
            ..Behaviour::default()
        };
        assert_eq!(read("slow-2s.error-internal"), Some(slow.clone()));
        assert_eq!(read("u-7.error-internal.slow-2s.x"), Some(slow));
        let granted = Behaviour {
            life: Some(Life::For(Duration::from_mins(1))),
            warnings: vec![Warning::LifetimeShort, Warning::RefreshFailed],
            refresh: Some(Refresh::Required),
            ..Behaviour::default()
        };
        let words = "expires-60s.warning-lifetime_short.warning-refresh_failed.refresh-required";
        assert_eq!(read(words), Some(granted));
        assert_eq!(read("expires-never").unwrap().life, Some(Life::Ever));
        assert_eq!(read("result-held").unwrap().result, Some(ReportResult::Held));
        assert!(read("silent").unwrap().silent);
    }

    #[test]
    fn every_code_of_the_contract_is_a_word() {
        for code in ErrorCode::ALL {
            let read = Behaviour::of_user(&format!("error-{}", code.name())).unwrap().unwrap();
            assert_eq!(read.error, Some(code));
        }
    }

    #[test]
    fn a_wrong_word_is_refused_with_what_would_be_right_and_not_repeated() {
        for (user, said) in [
            ("error-s3cret", "forbidden"),
            ("slow-s3cret", "500ms"),
            ("slow-601s", "10m"),
            ("slow-0s", "500ms"),
            ("expires-s3cret", "2s"),
            ("refresh-s3cret", "opportunistic"),
            ("warning-s3cret", "lifetime_short"),
            ("result-s3cret", "not_current"),
        ] {
            let wrong = Behaviour::of_user(user).unwrap_err().to_string();
            assert!(wrong.contains(said) && !wrong.contains("s3cret"), "{user}: {wrong}");
        }
        assert_eq!(Behaviour::of_answer("ok"), Ok(Behaviour::default()));
        assert_eq!(Behaviour::of_answer("error-internal.fast"), Err(WrongWord::NoWord));
    }
}
