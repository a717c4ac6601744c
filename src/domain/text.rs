//! The short texts that messages carry.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::escape::is_printable;

/// Texts of 1 to 255 printable characters. PostgreSQL cannot keep a NUL, a line break would forge a log line, and a
/// character that turns the direction of writing makes one name look like another.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $check:ident, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "Cow<'_, str>")]
        #[schemars(with = "String", extend("minLength" = 1, "maxLength" = 255, "pattern" = $pattern))]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<Cow<'_, str>> for $name {
            type Error = &'static str;

            fn try_from(text: Cow<'_, str>) -> Result<Self, Self::Error> {
                $check(&text)?;
                Ok(Self(text.into_owned()))
            }
        }

        impl TryFrom<&str> for $name {
            type Error = &'static str;

            fn try_from(text: &str) -> Result<Self, Self::Error> {
                Self::try_from(Cow::Borrowed(text))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// A user of the platform. Compared byte for byte.
    UserId,
    check_text,
    r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*$"
);
text!(
    /// A provider's host as it stands in clone URLs, with a port where there is one. Compared byte for byte.
    Host,
    check_host,
    r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069 /@?#\\]*$"
);
text!(
    /// A workspace of the platform.
    WorkspaceId,
    check_text,
    r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*$"
);
text!(
    /// Any other short text: a scope, an account and its name.
    ShortText,
    check_text,
    r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*$"
);
text!(
    /// A user name that git sends beside a token.
    Username,
    check_username,
    r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069 \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]*$"
);

fn check_text(text: &str) -> Result<(), &'static str> {
    // Nearly every text is short ASCII: then its bytes need no counting.
    if text.is_empty() || (text.len() > 255 && text.chars().count() > 255) {
        return Err("must be 1 to 255 characters");
    }
    if !is_printable(text) {
        return Err("must not contain control characters");
    }
    Ok(())
}

/// User names go into URLs and credential lines, which blanks would break.
fn check_username(text: &str) -> Result<(), &'static str> {
    check_text(text)?;
    if text.contains(char::is_whitespace) {
        return Err("must not contain blanks");
    }
    Ok(())
}

fn check_host(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 255 {
        return Err("must be 1 to 255 characters");
    }
    if !is_printable(text) || text.bytes().any(|byte| b" /@?#\\".contains(&byte)) {
        return Err(
            "must be a bare host name, with a port where there is one, like bitbucket.example.org:7990",
        );
    }
    Ok(())
}
