//! What git is told: lines `key=value` again. A line break in a value would be another line of it, as a host of the attacker's
//! choice in CVE-2020-5260.

use chrono::{DateTime, Utc};
use tokenkeeper::domain::secret::ExposeSecret;
use tokenkeeper_client::{SecretString, Token};
use zeroize::Zeroizing;

pub(super) struct Answer<'a> {
    username: &'a str,
    password: &'a SecretString,
    /// Not `expires_at`, although the token works until then. Until this date nobody refreshes it away under who uses it; later
    /// somebody may, where a refresh ends the old token. A helper that keeps passwords must ask again then, so that its user holds
    /// the token for as long as it is used. For git itself the two are the same: it looks at the date when it gets the password.
    expires: DateTime<Utc>,
    is_ephemeral: bool,
}

impl<'a> Answer<'a> {
    /// None: there is something in it that git cannot be told.
    pub(super) fn of(token: &'a Token, knows_authtype: bool) -> Option<Self> {
        let (username, password) = (&*token.username, &token.value);
        let fits = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
        let expires = token.reserved_until;
        let is_fit = fits(username) && fits(password.expose_secret());
        is_fit.then_some(Self { username, password, expires, is_ephemeral: knows_authtype })
    }

    /// A user name and a password, which is what git hosts take; never an `authtype` with a `credential` in place of them: it says
    /// the same (Basic), and other helpers and git-lfs do not know it. What git learnt with it is `ephemeral`: a token is nothing
    /// for a helper that keeps passwords on disk.
    pub(super) fn text(&self) -> Zeroizing<String> {
        let (username, password) = (self.username, self.password.expose_secret());
        let expires = self.expires.timestamp();
        let mut text = Zeroizing::new(String::with_capacity(username.len() + password.len() + 128));
        let ephemeral = if self.is_ephemeral { "capability[]=authtype\nephemeral=1\n" } else { "" };
        for part in [ephemeral, "username=", username, "\npassword=", password, "\npassword_expiry_utc="] {
            text.push_str(part);
        }
        text.push_str(&expires.to_string());
        text.push('\n');
        text
    }
}
