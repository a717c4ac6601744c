//! Logins that browsers have gone for. Each is good for one answer, in the session and for the user that began it.

use std::time::Duration;

use parking_lot::Mutex;
use tokenkeeper::domain::text::UserId;
use tokenkeeper::oauth::login::PendingLogin;
use tokio::time::Instant;

use super::session::Session;

/// Of all users together. Each takes about a kilobyte.
const MOST: usize = 2_000;

/// Of one user. The oldest makes room: its page was left.
const MOST_OF_A_USER: usize = 8;

#[derive(Debug)]
pub(super) struct PendingLogins {
    logins: Mutex<Vec<Begun>>,
    lifetime: Duration,
}

#[derive(Debug)]
struct Begun {
    session: Session,
    user: UserId,
    host: String,
    login: PendingLogin,
    until: Instant,
}

/// There are [`MOST`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Crowded;

impl PendingLogins {
    pub(super) const fn new(lifetime: Duration) -> Self {
        Self { logins: Mutex::new(Vec::new()), lifetime }
    }

    pub(super) fn begin(
        &self,
        session: Session,
        user: &UserId,
        host: &str,
        login: PendingLogin,
    ) -> Result<(), Crowded> {
        let now = Instant::now();
        let mut logins = self.logins.lock();
        logins.retain(|begun| begun.until > now);
        let own = logins.iter().filter(|begun| begun.user == *user).count();
        if own >= MOST_OF_A_USER
            && let Some(oldest) = logins.iter().position(|begun| begun.user == *user)
        {
            logins.remove(oldest);
        }
        if logins.len() >= MOST {
            return Err(Crowded);
        }
        let (user, host, until) = (user.clone(), host.to_owned(), now + self.lifetime);
        logins.push(Begun { session, user, host, login, until });
        Ok(())
    }

    /// The login that this state belongs to, and its host. It is not there any more.
    pub(super) fn take(
        &self,
        session: &Session,
        user: &UserId,
        state: &str,
    ) -> Option<(String, PendingLogin)> {
        let now = Instant::now();
        let mut logins = self.logins.lock();
        let place = logins.iter().position(|begun| {
            begun.until > now
                && begun.session.is(session)
                && begun.user == *user
                && begun.login.is_answered_by(state)
        })?;
        let Begun { host, login, .. } = logins.remove(place);
        Some((host, login))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokenkeeper::domain::clock::{SystemClock, Timestamp};
    use tokenkeeper::domain::provider::{Overrides, Provider, ProviderKind, ProviderRecord};
    use tokenkeeper::oauth::TokenClient;
    use tokenkeeper::oauth::login::Logins;

    use super::super::session::Sessions;
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn provider() -> Provider {
        let record = ProviderRecord {
            host: "github.com".to_owned(),
            kind: ProviderKind::Github,
            client_id: "client".to_owned(),
            client_secret: "s3cret".into(),
            spare_client_secrets: Vec::new(),
            token_url: None,
            client_auth: None,
            redirect_uri: None,
            username: None,
            opportunistic_refresh: None,
            opportunistic_refresh_window_secs: None,
            required_while_reserved: None,
            max_concurrent_refreshes: None,
            overrides: Overrides::default(),
        };
        record.resolve(1, Timestamp::from_millis(0), None).unwrap()
    }

    /// A login and its state.
    fn login() -> (PendingLogin, String) {
        let client = TokenClient::new(MINUTE, MINUTE, Arc::new(SystemClock)).unwrap();
        let login =
            Logins::at(&client, &provider()).begin("https://logins.example.org/callback", &[]).unwrap();
        let state = login.url().query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        (login, state)
    }

    fn user(name: &str) -> UserId {
        UserId::try_from(name).unwrap()
    }

    fn sessions<const N: usize>() -> [Session; N] {
        let sessions = Sessions::new(true);
        std::array::from_fn(|_| sessions.begin().0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_is_answered_once_in_its_session_for_its_user_and_in_time() {
        let (pending, [session, other]) = (PendingLogins::new(MINUTE), sessions());
        let begin = || {
            let (login, state) = login();
            pending.begin(session.clone(), &user("jdoe"), "github.com", login).unwrap();
            state
        };
        let state = begin();
        assert!(pending.take(&other, &user("jdoe"), &state).is_none());
        assert!(pending.take(&session, &user("root"), &state).is_none());
        assert!(pending.take(&session, &user("jdoe"), "").is_none());
        assert!(pending.take(&session, &user("jdoe"), &state[1..]).is_none());
        assert_eq!(pending.take(&session, &user("jdoe"), &state).unwrap().0, "github.com");
        assert!(pending.take(&session, &user("jdoe"), &state).is_none(), "it was used");
        let state = begin();
        tokio::time::advance(MINUTE).await;
        assert!(pending.take(&session, &user("jdoe"), &state).is_none(), "it is too late");
    }

    #[tokio::test(start_paused = true)]
    async fn neither_a_user_nor_all_of_them_keep_more_than_there_is_room_for() {
        let (pending, [session]) = (PendingLogins::new(MINUTE), sessions());
        let begin = |name: &str| {
            let (login, state) = login();
            pending.begin(session.clone(), &user(name), "github.com", login).map(|()| state)
        };
        let first = begin("jdoe").unwrap();
        let others = begin("others").unwrap();
        for _ in 0..MOST_OF_A_USER {
            begin("jdoe").unwrap();
        }
        assert!(pending.take(&session, &user("jdoe"), &first).is_none(), "the oldest made room");
        assert!(pending.take(&session, &user("others"), &others).is_some(), "that of another did not");
        for number in MOST_OF_A_USER..MOST {
            begin(&format!("u-{number}")).unwrap();
        }
        assert_eq!(begin("one-more"), Err(Crowded));
        tokio::time::advance(MINUTE).await;
        assert!(begin("one-more").is_ok(), "those before are over");
    }
}
