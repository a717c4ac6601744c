//! Which tokens the SCM has issued, to whom, and which of them live.

use std::{collections::HashMap, fmt};

use uuid::Uuid;

use super::dialect::Dialect;

/// A pair as a login or a refresh issues it.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedPair {
    /// Counts the pairs that this SCM has issued, from 1: the later pair has the greater number.
    pub number: u64,
    /// Whose it is.
    pub user: String,
    /// The access token.
    pub access_token: String,
    /// The refresh token that goes with it.
    pub refresh_token: String,
    /// When it was issued, in epoch milliseconds of the SCM's clock.
    pub issued_at_ms: i64,
    /// When the access token expires, in epoch milliseconds of the SCM's clock.
    pub expires_at_ms: i64,
}

impl fmt::Debug for IssuedPair {
    /// Without the tokens: a test that captures its own output looks for them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedPair")
            .field("number", &self.number)
            .field("user", &self.user)
            .field("issued_at_ms", &self.issued_at_ms)
            .field("expires_at_ms", &self.expires_at_ms)
            .finish_non_exhaustive()
    }
}

/// What a refresh does to the pair that it replaces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotation {
    pub(super) kills_old_token: bool,
    pub(super) keeps_refresh_token: bool,
    /// A refresh token that was used already works again, and ends whatever it was used for before.
    pub(super) accepts_spent: bool,
}

/// Every token ever issued.
#[derive(Default)]
pub(super) struct Ledger {
    access_tokens: HashMap<String, AccessToken>,
    refresh_tokens: HashMap<String, RefreshToken>,
    latest: HashMap<String, IssuedPair>,
    issued: u64,
}

struct AccessToken {
    number: u64,
    user: String,
    expires_at_ms: i64,
    revoked: bool,
}

struct RefreshToken {
    user: String,
    access_token: String,
    /// A rotation has replaced it.
    spent: bool,
    revoked: bool,
}

impl Ledger {
    /// Issues a pair to a user who has authorised. Pairs of earlier authorisations live on.
    pub(super) fn authorize(
        &mut self,
        dialect: Dialect,
        user: &str,
        issued_at_ms: i64,
        expires_at_ms: i64,
    ) -> IssuedPair {
        self.enter(IssuedPair {
            number: self.issued + 1,
            user: user.to_owned(),
            access_token: dialect.new_access_token(),
            refresh_token: dialect.new_refresh_token(),
            issued_at_ms,
            expires_at_ms,
        })
    }

    /// Replaces the pair that `refresh_token` belongs to. `None` when this refresh token is not alive.
    pub(super) fn rotate(
        &mut self,
        dialect: Dialect,
        refresh_token: &str,
        rotation: Rotation,
        issued_at_ms: i64,
        expires_at_ms: i64,
    ) -> Option<IssuedPair> {
        let sent = self.refresh_tokens.get_mut(refresh_token).filter(|token| !token.revoked)?;
        if sent.spent && !rotation.accepts_spent {
            return None;
        }
        let used_before = std::mem::replace(&mut sent.spent, !rotation.keeps_refresh_token);
        if rotation.kills_old_token
            && let Some(old) = self.access_tokens.get_mut(&sent.access_token)
        {
            old.revoked = true;
        }
        let user = sent.user.clone();
        if used_before {
            self.end_latest(&user);
        }
        let refresh_token =
            if rotation.keeps_refresh_token { refresh_token.to_owned() } else { dialect.new_refresh_token() };
        let access_token = dialect.new_access_token();
        let number = self.issued + 1;
        Some(self.enter(IssuedPair {
            number,
            user,
            access_token,
            refresh_token,
            issued_at_ms,
            expires_at_ms,
        }))
    }

    /// Kills this access token, and nothing else.
    pub(super) fn kill(&mut self, access_token: &str) {
        if let Some(token) = self.access_tokens.get_mut(access_token) {
            token.revoked = true;
        }
    }

    /// Kills every token of `user`, as when the user revokes the application's access.
    pub(super) fn revoke(&mut self, user: &str) {
        for token in self.access_tokens.values_mut().filter(|token| token.user == user) {
            token.revoked = true;
        }
        for token in self.refresh_tokens.values_mut().filter(|token| token.user == user) {
            token.revoked = true;
        }
    }

    /// The user whose access token this is, while it is alive.
    pub(super) fn user_of_living(&self, access_token: &str, now_ms: i64) -> Option<&str> {
        self.access_tokens
            .get(access_token)
            .filter(|token| !token.revoked && now_ms < token.expires_at_ms)
            .map(|token| token.user.as_str())
    }

    /// The user to whom this refresh token was issued, dead or alive, and the number of the pair that it is in.
    pub(super) fn pair_of_refresh_token(&self, refresh_token: &str) -> Option<(String, u64)> {
        let token = self.refresh_tokens.get(refresh_token)?;
        Some((token.user.clone(), self.number_of(&token.access_token)?))
    }

    /// The number of the pair that this access token is in, dead or alive.
    pub(super) fn number_of(&self, access_token: &str) -> Option<u64> {
        self.access_tokens.get(access_token).map(|token| token.number)
    }

    /// The pair that was issued last to `user`.
    pub(super) fn latest(&self, user: &str) -> Option<&IssuedPair> {
        self.latest.get(user)
    }

    /// Every access and refresh token ever issued.
    pub(super) fn all_tokens(&self) -> impl Iterator<Item = &String> {
        self.access_tokens.keys().chain(self.refresh_tokens.keys())
    }

    /// Ends the pair that was issued last to `user`.
    fn end_latest(&mut self, user: &str) {
        let Some(latest) = self.latest.get(user) else { return };
        if let Some(token) = self.access_tokens.get_mut(&latest.access_token) {
            token.revoked = true;
        }
        if let Some(token) = self.refresh_tokens.get_mut(&latest.refresh_token) {
            token.revoked = true;
        }
    }

    /// Enters a pair, in place of what its user had last.
    pub(super) fn enter(&mut self, pair: IssuedPair) -> IssuedPair {
        self.issued = pair.number;
        let access_token = AccessToken {
            number: pair.number,
            user: pair.user.clone(),
            expires_at_ms: pair.expires_at_ms,
            revoked: false,
        };
        let refresh_token = RefreshToken {
            user: pair.user.clone(),
            access_token: pair.access_token.clone(),
            spent: false,
            revoked: false,
        };
        self.access_tokens.insert(pair.access_token.clone(), access_token);
        self.refresh_tokens.insert(pair.refresh_token.clone(), refresh_token);
        self.latest.insert(pair.user.clone(), pair.clone());
        pair
    }
}

/// `prefix` and then `length` random characters that need no escaping in a URL or a form.
pub(super) fn random_token(prefix: &str, length: usize) -> String {
    let mut token = prefix.to_owned();
    while token.len() < prefix.len() + length {
        token.push_str(&Uuid::new_v4().simple().to_string());
    }
    token.truncate(prefix.len() + length);
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLS: Rotation =
        Rotation { kills_old_token: true, keeps_refresh_token: false, accepts_spent: false };
    const SPARES: Rotation = Rotation { kills_old_token: false, ..KILLS };

    fn rotate(ledger: &mut Ledger, refresh_token: &str, rotation: Rotation) -> Option<IssuedPair> {
        ledger.rotate(Dialect::Generic, refresh_token, rotation, 10, 110)
    }

    #[test]
    fn a_rotation_kills_the_old_refresh_token_always_and_the_old_access_token_where_told() {
        for (rotation, old_lives) in [(KILLS, false), (SPARES, true)] {
            let mut ledger = Ledger::default();
            let old = ledger.authorize(Dialect::Generic, "alice", 0, 100);
            let new = rotate(&mut ledger, &old.refresh_token, rotation).expect("rotated");
            assert_eq!(ledger.user_of_living(&old.access_token, 50).is_some(), old_lives);
            assert_eq!(ledger.user_of_living(&new.access_token, 50), Some("alice"));
            assert_eq!(rotate(&mut ledger, &old.refresh_token, rotation), None);
            assert_eq!(ledger.latest("alice"), Some(&new));
        }
    }

    #[test]
    fn a_kept_refresh_token_works_again_and_kills_only_its_last_access_token() {
        let keeps = Rotation { keeps_refresh_token: true, ..KILLS };
        let mut ledger = Ledger::default();
        let first = ledger.authorize(Dialect::Generic, "alice", 0, 100);
        let second = rotate(&mut ledger, &first.refresh_token, keeps).expect("rotated");
        assert_eq!(second.refresh_token, first.refresh_token);
        let third = rotate(&mut ledger, &first.refresh_token, keeps).expect("rotated again");
        let living = |pair: &IssuedPair| ledger.user_of_living(&pair.access_token, 50).is_some();
        assert_eq!([&first, &second, &third].map(living), [false, false, true]);
    }

    #[test]
    fn a_spent_refresh_token_that_is_accepted_again_ends_the_pair_it_was_used_for_before() {
        let accepts = Rotation { accepts_spent: true, ..KILLS };
        let mut ledger = Ledger::default();
        let first = ledger.authorize(Dialect::Generic, "alice", 0, 100);
        let second = rotate(&mut ledger, &first.refresh_token, accepts).expect("rotated");
        let third = rotate(&mut ledger, &first.refresh_token, accepts).expect("rotated again");
        let living = |pair: &IssuedPair| ledger.user_of_living(&pair.access_token, 50).is_some();
        assert_eq!([&first, &second, &third].map(living), [false, false, true]);
        assert_eq!([&first, &second, &third].map(|pair| pair.number), [1, 2, 3]);
        assert_eq!(rotate(&mut ledger, &second.refresh_token, accepts), None);
    }

    #[test]
    fn an_access_token_dies_at_its_expiry() {
        let mut ledger = Ledger::default();
        let pair = ledger.authorize(Dialect::Generic, "alice", 0, 100);
        assert_eq!(ledger.user_of_living(&pair.access_token, 99), Some("alice"));
        assert_eq!(ledger.user_of_living(&pair.access_token, 100), None);
    }

    #[test]
    fn revoking_a_user_kills_both_tokens_of_every_pair_and_spares_other_users() {
        let mut ledger = Ledger::default();
        let mine = ledger.authorize(Dialect::Generic, "alice", 0, 100);
        let other = ledger.authorize(Dialect::Generic, "bob", 0, 100);
        ledger.revoke("alice");
        assert_eq!(ledger.user_of_living(&mine.access_token, 0), None);
        assert_eq!(rotate(&mut ledger, &mine.refresh_token, KILLS), None);
        assert_eq!(ledger.user_of_living(&other.access_token, 0), Some("bob"));
    }

    #[test]
    fn tokens_have_the_lengths_of_their_kind_and_never_repeat() {
        assert_eq!(random_token("ghu_", 36).len(), 40);
        assert!(Dialect::Bitbucket.new_access_token().len() > 2_500);
        assert_ne!(Dialect::GitLab.new_access_token(), Dialect::GitLab.new_access_token());
    }
}
