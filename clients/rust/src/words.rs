//! The words of replies and events. A newer worker may know more of them: those are kept as text.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Deserializer};

/// An enum over words, with a variant for all others.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$of])* $variant,)*
            /// A word that this version does not know. [`Display`](fmt::Display) escapes what is not printable in it, and cuts it.
            Other(String),
        }

        impl $name {
            /// The word, as it came: nothing in it is escaped.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl From<Cow<'_, str>> for $name {
            fn from(word: Cow<'_, str>) -> Self {
                match &*word {
                    $($word => Self::$variant,)*
                    _ => Self::Other(word.into_owned()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&plain(self.as_str()))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer).map(Self::from)
            }
        }
    };
}

words! {
    /// Why a worker refuses a message.
    ErrorCode {
        /// Body or properties break the contract.
        InvalidRequest = "invalid_request",
        /// This publisher may not have it.
        Forbidden = "forbidden",
        /// No provider has this host.
        UnknownHost = "unknown_host",
        /// The user has no identity at all.
        UserNotFound = "user_not_found",
        /// The user has no identity at this host.
        IdentityNotFound = "identity_not_found",
        /// The identity has no token.
        TokenNotFound = "token_not_found",
        /// The token is too short or was reported, and there is no refresh token.
        NotRefreshable = "not_refreshable",
        /// The user must log in again.
        ReauthorizationRequired = "reauthorization_required",
        /// The provider refuses the worker's settings: an operator must mend them.
        ProviderMisconfigured = "provider_misconfigured",
        /// The provider cannot be reached, or asks to be left alone.
        ProviderUnavailable = "provider_unavailable",
        /// Another worker's refresh did not end in time.
        RefreshTimeout = "refresh_timeout",
        /// The request's time ran out.
        DeadlineExceeded = "deadline_exceeded",
        /// Anything else.
        Internal = "internal",
    }
}

words! {
    /// What a request did to the token.
    Refresh {
        /// Nothing: the token is still valid.
        None = "none",
        /// Nothing: a refresh was due, but somebody holds the token.
        Reserved = "reserved",
        /// It was refreshed although still valid, because nobody held it.
        Opportunistic = "opportunistic",
        /// It was refreshed because it would not have lived as long as requested.
        Required = "required",
    }
}

words! {
    /// What a requester should know about a token, or about its message.
    Warning {
        /// The provider's tokens live shorter than requested.
        LifetimeClamped = "lifetime_clamped",
        /// The token expires before the requested lifetime, because somebody holds it.
        LifetimeShort = "lifetime_short",
        /// An opportunistic refresh failed; this is the still valid token.
        RefreshFailed = "refresh_failed",
        /// Somebody reported that the host rejects this token.
        TokenReported = "token_reported",
        /// The token is reserved for longer than it lives.
        ReservationShortened = "reservation_shortened",
    }
}

words! {
    /// What came of a report.
    ReportResult {
        /// There is a new token: the next request gets it.
        Refreshed = "refreshed",
        /// Somebody holds the token; the first request after the reservation refreshes it.
        Held = "held",
        /// There is no refresh token; the token is not handed out any more.
        Withdrawn = "withdrawn",
        /// It is not the token that is handed out now; nothing changed.
        NotCurrent = "not_current",
    }
}

words! {
    /// Why a token was refreshed.
    RefreshCause {
        /// It was still valid, and nobody held it.
        Opportunistic = "opportunistic",
        /// It did not live as long as requested.
        Required = "required",
    }
}

words! {
    /// What happened.
    EventKind {
        /// A new pair is stored.
        TokenRefreshed = "token.refreshed",
        /// A user's refresh token is dead: the user must log in again.
        ReauthorizationRequired = "token.reauthorization_required",
        /// A worker leaves a host alone.
        ProviderUnavailable = "provider.unavailable",
        /// A host works again.
        ProviderRecovered = "provider.recovered",
        /// A host refuses everybody: an operator must act.
        ProviderMisconfigured = "provider.misconfigured",
    }
}

/// The longest text of somebody else that is shown, in characters.
const LONGEST: usize = 500;

/// Text of somebody else, in one line, without characters that a terminal obeys, and not too long.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    // The same characters as in the worker's own output. A test of the contract compares them.
    let is_unprintable = |symbol: char| {
        symbol.is_control()
            || matches!(symbol, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.len() <= LONGEST && !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len().min(LONGEST));
    for symbol in text.chars().take(LONGEST) {
        if is_unprintable(symbol) {
            // Writing to a string does not fail.
            let _ = write!(shown, "\\u{:04x}", u32::from(symbol));
        } else {
            shown.push(symbol);
        }
    }
    Cow::Owned(shown)
}

/// Cuts a text of somebody else to what is shown of it.
pub(crate) fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_word_is_kept_as_it_is() {
        let read = |word: &str| serde_json::from_value::<ErrorCode>(word.into()).unwrap();
        assert_eq!(read("unknown_host"), ErrorCode::UnknownHost);
        assert_eq!(read("out_of_tokens"), ErrorCode::Other("out_of_tokens".to_owned()));
        assert_eq!(read("out_of_tokens").to_string(), "out_of_tokens");
        assert!(serde_json::from_value::<ErrorCode>(1.into()).is_err());
    }

    #[test]
    fn text_of_others_is_told_in_one_line() {
        let hostile = "a\r\n\u{1b}[2J\u{202e}b ü";
        let shown = r"a\u000d\u000a\u001b[2J\u202eb ü";
        assert_eq!(plain(hostile), shown);
        assert_eq!(ErrorCode::from(Cow::from(hostile)).to_string(), shown);
        assert_eq!(Warning::from(Cow::from(hostile)).to_string(), shown);
        assert_eq!(Refresh::from(Cow::from(hostile)).to_string(), shown);
        assert_eq!(EventKind::from(Cow::from(hostile)).to_string(), shown);
    }

    #[test]
    fn text_of_others_is_cut_between_two_characters() {
        let long = "ü".repeat(501);
        let mut message = long.clone();
        cut(&mut message);
        assert_eq!((&*message, &*plain(&long)), (&*"ü".repeat(500), &*"ü".repeat(500)));
        assert_eq!(Warning::Other(long).to_string().chars().count(), 500);
    }
}
