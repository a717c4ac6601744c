//! The file of rules.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenkeeper::domain::pattern::{HostPattern, TextPattern};
use toml::Spanned;

use super::behaviour::{Behaviour, WrongWord};

/// The first rule that fits counts.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    user: TextPattern,
    host: HostPattern,
    behaviour: Behaviour,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum RulesError {
    #[error("cannot read the rules {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}, line {line}, column {column}: {message}", path.display())]
    Wrong {
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rules: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default = "any")]
    user: String,
    #[serde(default = "any")]
    host: String,
    answer: Spanned<String>,
}

fn any() -> String {
    "*".to_owned()
}

impl Rules {
    pub(super) fn read(path: &Path) -> Result<Self, RulesError> {
        let text = fs::read_to_string(path)
            .map_err(|error| RulesError::Unreadable { path: path.to_owned(), error })?;
        Self::parse(&text).map_err(|(span, message)| {
            let (line, column) = place(&text, span.start);
            RulesError::Wrong { path: path.to_owned(), line, column, message }
        })
    }

    fn parse(text: &str) -> Result<Self, (Range<usize>, String)> {
        let file: File = toml::from_str(text)
            .map_err(|error| (error.span().unwrap_or_default(), error.message().to_owned()))?;
        let rule = |Written { user, host, answer }| match Behaviour::of_answer(answer.get_ref()) {
            Ok(behaviour) => {
                Ok(Rule { user: TextPattern::new(user), host: HostPattern::new(host), behaviour })
            }
            Err(wrong) => Err((answer.span(), format!("answer: {wrong}"))),
        };
        file.rules.into_iter().map(rule).collect::<Result<_, _>>().map(Self)
    }

    /// What a user gets at a host: what the words of its id say, else the first rule that fits, else a token.
    pub(super) fn behaviour(&self, user_id: &str, host: &str) -> Result<Behaviour, WrongWord> {
        if let Some(behaviour) = Behaviour::of_user(user_id)? {
            return Ok(behaviour);
        }
        let fits = |rule: &&Rule| rule.user.matches(user_id) && rule.host.matches(host);
        Ok(self.0.iter().find(fits).map(|rule| rule.behaviour.clone()).unwrap_or_default())
    }
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use tokenkeeper::contract::ErrorCode;

    use super::*;

    #[test]
    fn the_first_rule_that_fits_counts_and_words_of_the_user_count_more() {
        let rules = Rules::parse(
            "[[rules]]\nuser = \"jdoe*\"\nhost = \"*.example.org\"\nanswer = \"error-internal\"\n\
             [[rules]]\nhost = \"git.example.org\"\nanswer = \"error-forbidden\"\n",
        )
        .unwrap();
        let error = |user: &str, host: &str| rules.behaviour(user, host).unwrap().error;
        assert_eq!(error("jdoe-2", "git.example.org"), Some(ErrorCode::Internal));
        assert_eq!(error("u-1", "git.example.org"), Some(ErrorCode::Forbidden));
        assert_eq!(error("u-1", "other.example.com"), None);
        assert_eq!(error("jdoe.error-unknown_host", "git.example.org"), Some(ErrorCode::UnknownHost));
        assert!(rules.behaviour("error-none", "git.example.org").is_err());
    }

    #[test]
    fn an_error_has_its_place() {
        for (text, line, column, said) in [
            ("[[rules]]\nuser = \"a\"\nanswer = \"error-none\"\n", 3, 10, "reauthorization_required"),
            ("[[rules]]\nuser = \"a\"\nanswer = \"fast\"\n", 3, 10, "no word"),
            ("[[rules]]\nusr = \"a\"\nanswer = \"ok\"\n", 2, 1, "usr"),
            ("[[rules]]\nuser = \"a\"\n", 1, 1, "answer"),
            ("[[rules]]\nuser = \n", 2, 8, ""),
        ] {
            let (span, message) = Rules::parse(text).unwrap_err();
            assert_eq!(place(text, span.start), (line, column), "{text:?}: {message}");
            assert!(message.contains(said), "{text:?}: {message}");
        }
    }
}
