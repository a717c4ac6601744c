//! The provider: which refresh tokens it accepts, and which pair lives.

use crate::state::{Issued, PairId, State};

/// How long a provider accepts a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshTokens {
    /// Once.
    OneTime,
    /// Until the one it was exchanged for is used itself.
    AcceptedAgain,
    /// For ever: a refresh issues access tokens alone.
    Kept,
}

impl State {
    /// The refresh token of a pair.
    pub fn refresh_token(&self, kind: RefreshTokens, pair: PairId) -> PairId {
        match kind {
            RefreshTokens::OneTime | RefreshTokens::AcceptedAgain => pair,
            RefreshTokens::Kept => {
                let login = self.issued[usize::from(pair)].login;
                let root = self.issued.iter().position(|issued| issued.login == login);
                root.and_then(|root| PairId::try_from(root).ok()).unwrap_or(pair)
            }
        }
    }

    /// Whether the provider accepts a refresh token.
    pub fn accepts(&self, kind: RefreshTokens, refresh_token: PairId) -> bool {
        let mut successors = (0..).zip(&self.issued).filter(|(_, pair)| pair.parent == Some(refresh_token));
        match kind {
            RefreshTokens::OneTime => successors.next().is_none(),
            RefreshTokens::AcceptedAgain => {
                !successors.any(|(id, _)| self.issued.iter().any(|pair| pair.parent == Some(id)))
            }
            RefreshTokens::Kept => true,
        }
    }

    /// Issues a pair for this refresh token.
    pub fn issue(&mut self, refresh_token: PairId) -> PairId {
        let login = self.issued[usize::from(refresh_token)].login;
        self.enter(Issued { parent: Some(refresh_token), login })
    }

    /// Issues a pair to a user who logs in.
    pub fn log_in(&mut self) -> PairId {
        let login = self.issued.iter().map(|pair| pair.login).max().unwrap_or(0) + 1;
        self.enter(Issued { parent: None, login })
    }

    fn enter(&mut self, pair: Issued) -> PairId {
        let id = PairId::try_from(self.issued.len()).unwrap_or(PairId::MAX);
        self.issued.push(pair);
        if self.newest() == id {
            self.newest_lost = false;
        }
        id
    }

    /// The one pair whose access token lives for certain: the last one of the last login.
    pub fn newest(&self) -> PairId {
        let newest = (0..).zip(&self.issued).max_by_key(|(id, pair)| (pair.login, *id));
        newest.map_or(0, |(id, _)| id)
    }

    /// Whether `one` was issued before `other`, or by an earlier login.
    pub fn is_before(&self, one: PairId, other: PairId) -> bool {
        let rank = |pair: PairId| (self.issued[usize::from(pair)].login, pair);
        rank(one) < rank(other)
    }
}
