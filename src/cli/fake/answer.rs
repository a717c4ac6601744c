//! From a message to its answer: checked as by a worker, and decided by rule.

use std::time::Duration;

use tokenkeeper::app::lifecycle::Stop;
use tokenkeeper::contract::{
    Echo, Envelope, ErrorBody, ErrorCode, ErrorReason, ErrorReply, GrantedToken, LifetimeSecs, MessageKind,
    Refresh, Reply, ReportReply, ReportRequest, Request, SealedContent, SealedStoreRequest, Status,
    StoreReply, StoreRequest, TokenGrant, TokenReply, TokenRequest, TokenValue, UnknownFields, Wanted,
    Warning, WorkspaceStartReply, WorkspaceStartRequest, decode_noting,
};
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::domain::sealed_box::PublicKey;
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::flags;
use tokenkeeper::limits::publisher::PublisherLimit;
use tokenkeeper::requests::{Admission, Budgets, Login, Outcome, TimeFrame, no_clone_url};
use tokenkeeper::settings::{Access, Settings};
use tokio::time::{Instant, sleep_until};

use super::behaviour::{Behaviour, Life, WrongWord};
use super::memory::{Memory, NotRefreshable, Pair};
use super::rules::Rules;

/// When to ask again after an error that says so.
const RETRY_AFTER_SECS: u64 = 5;

/// Answers in place of a worker.
pub(super) struct Fake {
    rules: Rules,
    memory: Memory,
    keys: KeyRing,
    access: Access,
    publisher_limit: Option<PublisherLimit>,
    budgets: Budgets,
    stop: Stop,
}

/// What becomes of a message.
pub(super) enum Taken {
    /// As with a worker.
    Handled(Box<Outcome>),
    /// It gets no answer, and does not come again.
    Silent,
    /// It goes back to the broker: the command ends.
    GivenBack,
}

struct Ask<'a> {
    user_id: &'a str,
    host: &'a str,
    lifetime: Duration,
    seal_to: Option<&'a PublicKey>,
}

impl Fake {
    pub(super) fn new(settings: &Settings, rules: Rules, keys: KeyRing, stop: Stop) -> Self {
        Self {
            rules,
            memory: Memory::new(),
            keys,
            access: settings.access.clone(),
            publisher_limit: PublisherLimit::new(settings.limits, &settings.access),
            budgets: Budgets::from(&settings.worker),
            stop,
        }
    }

    /// The key that logins are sealed to, and its id.
    pub(super) fn login_key(&self) -> (&str, PublicKey) {
        let key = self.keys.newest();
        (key.id(), key.login_public_key())
    }

    /// How long the message has.
    pub(super) fn time_frame(&self, kind: MessageKind, envelope: &Envelope, arrived: Instant) -> TimeFrame {
        TimeFrame::of(kind, envelope, arrived, None, SystemClock.now(), self.budgets)
    }

    pub(super) async fn take(
        &self,
        kind: MessageKind,
        envelope: &Envelope,
        body: &[u8],
        time: TimeFrame,
    ) -> Taken {
        let mut unknown = UnknownFields::default();
        let request = decode_noting(kind, body, &mut unknown);
        let admission = Admission { access: &self.access, publisher_limit: self.publisher_limit.as_ref() };
        let mut taken = match admission.accept(kind, request, envelope, time) {
            Ok(request) => self.by_rule(kind, request, envelope, time, &mut unknown).await,
            Err(refused) => Taken::Handled(refused.into()),
        };
        if let Taken::Handled(outcome) = &mut taken {
            outcome.warn_of(unknown);
        }
        taken
    }

    async fn by_rule(
        &self,
        kind: MessageKind,
        request: Request,
        envelope: &Envelope,
        time: TimeFrame,
        unknown: &mut UnknownFields,
    ) -> Taken {
        let publisher = envelope.publisher.as_deref();
        let echo = Echo::of(&request);
        let behaviour = match self.behaviour(&request) {
            Ok(behaviour) => behaviour,
            Err(wrong) => return handled(Outcome::invalid(kind, echo, format!("user_id: {wrong}"))),
        };
        if behaviour.silent {
            return Taken::Silent;
        }
        if !behaviour.delay.is_zero() {
            let until = (Instant::now() + behaviour.delay).min(time.give_up_at());
            tokio::select! {
                () = sleep_until(until) => {}
                () = self.stop.soft.cancelled() => return Taken::GivenBack,
            }
        }
        if time.is_over() {
            let error = ErrorBody::new(ErrorCode::DeadlineExceeded, "the time of the request ran out");
            return handled(Outcome::error(kind, echo, error));
        }
        let now = SystemClock.now();
        handled(match request {
            Request::Token(request) => {
                Outcome::Answered(Reply::Token(self.token_request(&request, publisher, &behaviour, now)))
            }
            Request::WorkspaceStart(request) => {
                Outcome::Answered(Reply::WorkspaceStart(self.workspace_start(&request, publisher, now)))
            }
            Request::Store(request) => Outcome::Answered(Reply::Store(self.store(*request, &behaviour, now))),
            Request::SealedStore(request) => self.sealed_store(&request, &behaviour, now, unknown),
            Request::Report(request) => {
                Outcome::Answered(Reply::Report(self.report(&request, &behaviour, now)))
            }
        })
    }

    /// What the message as a whole is answered with. A workspace start is as slow as the slowest of its hosts.
    fn behaviour(&self, request: &Request) -> Result<Behaviour, WrongWord> {
        let Request::WorkspaceStart(start) = request else {
            return self.rules.behaviour(request.user_id(), request.host().unwrap_or_default());
        };
        let mut whole = Behaviour::default();
        for wanted in start.wanted() {
            if let Wanted::TokenFor(host) = wanted {
                let one = self.rules.behaviour(request.user_id(), host.as_str())?;
                whole.silent |= one.silent;
                whole.delay = whole.delay.max(one.delay);
            }
        }
        Ok(whole)
    }

    /// The lifetime that was asked for, or this one within what the publisher may have.
    fn lifetime(
        &self,
        asked: Option<LifetimeSecs>,
        publisher: Option<&str>,
        otherwise: Duration,
    ) -> Duration {
        asked.map_or_else(|| self.access.within_limit(publisher, otherwise), LifetimeSecs::duration)
    }

    fn token_request(
        &self,
        request: &TokenRequest,
        publisher: Option<&str>,
        behaviour: &Behaviour,
        now: Timestamp,
    ) -> TokenReply {
        let ask = Ask {
            user_id: request.user_id.as_str(),
            host: request.host.as_str(),
            lifetime: self.lifetime(request.requested_lifetime_secs, publisher, LifetimeSecs::DEFAULT),
            seal_to: request.reply_public_key.as_ref(),
        };
        self.token(&ask, behaviour, now)
    }

    fn workspace_start(
        &self,
        request: &WorkspaceStartRequest,
        publisher: Option<&str>,
        now: Timestamp,
    ) -> WorkspaceStartReply {
        let user_id = request.user_id.as_str();
        let lifetime = self.lifetime(request.requested_lifetime_secs, publisher, flags::DEFAULT_LIFETIME);
        let seal_to = request.reply_public_key.as_ref();
        let one = |wanted| match wanted {
            Wanted::TokenFor(host) => {
                let host = host.as_str();
                // Its words are right: they were read before.
                let behaviour = self.rules.behaviour(user_id, host).unwrap_or_default();
                self.token(&Ask { user_id, host, lifetime, seal_to }, &behaviour, now)
            }
            Wanted::Unreadable(place) => no_clone_url(user_id, place),
        };
        let tokens: Vec<TokenReply> = request.wanted().into_iter().map(one).collect();
        let all_are_good = tokens.iter().all(|reply| reply.error_code().is_none());
        WorkspaceStartReply {
            status: if all_are_good { Status::Ok } else { Status::Error },
            workspace_id: Some(request.workspace_id.to_string()),
            user_id: Some(user_id.to_owned()),
            tokens,
            error: None,
            warnings: Vec::new(),
        }
    }

    fn token(&self, ask: &Ask<'_>, behaviour: &Behaviour, now: Timestamp) -> TokenReply {
        if let Some(error) = behaviour.error {
            return TokenReply::Error(by_word(error, ask.user_id, ask.host));
        }
        let until = now.plus(ask.lifetime);
        // A token that expires by rule is never too short.
        let needed = if behaviour.life.is_some() { now } else { until };
        let handed_out = self.memory.hand_out(ask.user_id, ask.host, now, needed);
        handed_out.map_or_else(
            |NotRefreshable| {
                let message = "the token is too short or was reported, and no refresh token was stored";
                let error = ErrorBody::new(ErrorCode::NotRefreshable, message);
                TokenReply::Error(ErrorReply::new(Echo::of_user(ask.user_id, ask.host), error))
            },
            |(pair, is_new)| TokenReply::Ok(grant(ask, behaviour, pair, is_new, now)),
        )
    }

    fn store(&self, request: StoreRequest, behaviour: &Behaviour, now: Timestamp) -> StoreReply {
        if let Some(error) = behaviour.error {
            return StoreReply::Error(by_word(error, request.user_id.as_str(), request.host.as_str()));
        }
        self.memory.store(Login::from(request), now);
        StoreReply::Ok { warnings: Vec::new() }
    }

    fn sealed_store(
        &self,
        request: &SealedStoreRequest,
        behaviour: &Behaviour,
        now: Timestamp,
        unknown: &mut UnknownFields,
    ) -> Outcome {
        match request.open(&self.keys, unknown) {
            Ok(login) => Outcome::Answered(Reply::Store(self.store(login, behaviour, now))),
            Err(invalid) => {
                let echo = Echo::of_user(request.user_id.as_str(), request.host.as_str());
                Outcome::invalid(MessageKind::TokenStore, echo, invalid.to_string())
            }
        }
    }

    fn report(&self, request: &ReportRequest, behaviour: &Behaviour, now: Timestamp) -> ReportReply {
        let (user_id, host) = (request.user_id.as_str(), request.host.as_str());
        if let Some(error) = behaviour.error {
            return ReportReply::Error(by_word(error, user_id, host));
        }
        let result =
            behaviour.result.unwrap_or_else(|| self.memory.report(user_id, host, &request.token_sha256, now));
        ReportReply::Ok { result, warnings: Vec::new() }
    }
}

fn handled(outcome: Outcome) -> Taken {
    Taken::Handled(Box::new(outcome))
}

fn grant(ask: &Ask<'_>, behaviour: &Behaviour, pair: Pair, is_new: bool, now: Timestamp) -> TokenGrant {
    let until = now.plus(ask.lifetime);
    let expires_at = match behaviour.life {
        None => pair.expires_at,
        Some(Life::For(time)) => Some(now.plus(time)),
        Some(Life::Ever) => None,
    };
    let mut warnings = behaviour.warnings.clone();
    let ends_before = expires_at.filter(|expires_at| *expires_at < until);
    let says_so = |warning: &Warning| matches!(warning, Warning::LifetimeClamped | Warning::LifetimeShort);
    if ends_before.is_some() && !warnings.iter().any(says_so) {
        warnings.push(Warning::LifetimeShort);
    }
    let Pair { value, username, scopes, updated_at, .. } = pair;
    let value = match ask.seal_to {
        None => TokenValue::Clear(value),
        Some(key) => {
            TokenValue::Sealed(SealedContent::new(ask.user_id, ask.host, &username, &value).seal(key))
        }
    };
    let reserved_until = ends_before.unwrap_or(until);
    TokenGrant {
        user_id: ask.user_id.to_owned(),
        host: ask.host.to_owned(),
        token: GrantedToken { value, username, scopes, updated_at, expires_at, reserved_until },
        refresh: behaviour.refresh.unwrap_or(if is_new { Refresh::Required } else { Refresh::None }),
        warnings,
    }
}

/// The error that a rule asks for, with what goes with its code.
fn by_word(code: ErrorCode, user_id: &str, host: &str) -> ErrorReply {
    let error = ErrorBody::new(code, format!("the fake answers this by rule: error-{}", code.name()));
    let error = match code {
        ErrorCode::ProviderUnavailable => ErrorBody { retry_after_secs: Some(RETRY_AFTER_SECS), ..error },
        ErrorCode::ReauthorizationRequired => {
            ErrorBody { reason: Some(ErrorReason::RefreshTokenRefused), ..error }
        }
        _ => error,
    };
    ErrorReply::new(Echo::of_user(user_id, host), error)
}
