//! Refreshes that have to be, however many ask and however the SCM answers.

use anyhow::Result;
use tokenkeeper_testkit::{
    scm::{Fault, RefreshEvent, RefreshOutcome, SimulatedScm},
    wait::{PATIENCE, eventually},
};

use super::MINUTE;
use crate::{
    narrator::{Actor, Narrator},
    stage::Stage,
};

const REQUESTS: usize = 100;

pub(super) async fn a_hundred_at_once(say: &mut Narrator, stage: &mut Stage) -> Result<()> {
    say.scene(
        "A hundred requests for an expired token: one refresh",
        "A refresh token works once. The SCM takes its time until both workers have all 100 in hand.",
    )?;
    let expired = stage.user_with_expired_token("dave").await?;
    let gate = stage.scm.hold_refreshes();
    say.tell(
        Actor::Requester,
        &format!("{REQUESTS} ask for dave's token at once; {expired} expired a minute ago"),
    )?;
    let asked = stage.begin_asking(REQUESTS, "dave", 5 * MINUTE).await;
    let in_hand = stage.wait_until(|[one, two]| one + two == REQUESTS).await?;
    let [one, two] = in_hand;
    say.claim(
        Actor::Tokenkeeper,
        one > 0 && two > 0,
        &format!("worker 1 has {one} of them in hand, worker 2 has {two}"),
        &in_hand,
    )?;
    gate.wait_for_parked(1).await;
    let requests = stage.scm.refresh_requests("dave");
    say.claim(Actor::Scm, requests == 1, "hears of one refresh, and now does it", &requests)?;

    gate.release();
    let grants = stage.answers(asked).await?;
    let token = &grants[0].token;
    let with = |refresh: &str| grants.iter().filter(|grant| grant.refresh == refresh).count();
    let seen = (with("required"), with("reserved"), stage.scm.is_alive(token.value()));
    say.claim(
        Actor::Tokenkeeper,
        grants.iter().all(|grant| grant.token == *token) && seen == (1, REQUESTS - 1, true),
        &format!("{REQUESTS} replies, all with {token}, which is alive: 1 × required, {} × reserved", seen.1),
        &seen,
    )?;
    let seen = (stage.scm.refreshes("dave"), stage.scm.refresh_requests("dave"));
    say.claim(Actor::Scm, seen == (1, 1), "was asked for one refresh in all", &seen)
}

pub(super) async fn a_provider_fails_twice(say: &mut Narrator, stage: &mut Stage) -> Result<()> {
    say.scene(
        "A provider that fails twice and then answers",
        "It is asked again after growing, random pauses, or after the pause that it names itself.",
    )?;
    let expired = stage.user_with_expired_token("erin").await?;
    stage.scm.fail_next_for("erin", 1, Fault::Status(500));
    stage.scm.fail_next_for("erin", 1, Fault::RetryAfter { status: 503, seconds: 1 });
    say.tell(
        Actor::Requester,
        &format!("a deployment asks for erin's token; {expired} expired a minute ago"),
    )?;
    let asked = stage.begin_asking(1, "erin", 5 * MINUTE).await;

    let first = refresh_request(&stage.scm, "erin", 0).await;
    say.claim(Actor::Scm, first.outcome == RefreshOutcome::Failed, "is asked, and answers 500", &first)?;
    let second = refresh_request(&stage.scm, "erin", 1).await;
    let pause_ms = second.started_at_ms - first.started_at_ms;
    say.claim(
        Actor::Scm,
        second.outcome == RefreshOutcome::Failed,
        &format!("is asked again after {pause_ms} ms, and answers 503 with `Retry-After: 1`"),
        &second,
    )?;
    let third = refresh_request(&stage.scm, "erin", 2).await;
    let pause_ms = third.started_at_ms - second.started_at_ms;
    say.claim(
        Actor::Scm,
        third.outcome == RefreshOutcome::Accepted && pause_ms >= 1000,
        &format!("is asked again after {pause_ms} ms, and issues a new pair"),
        &third,
    )?;
    let grant = &stage.answers(asked).await?[0];
    say.claim(
        Actor::Tokenkeeper,
        grant.refresh == "required" && grant.warnings.is_empty() && stage.scm.is_alive(grant.token.value()),
        &format!("one reply, {} ms after the request: ok, {} (required)", grant.took_ms(), grant.token),
        &grant,
    )
}

/// The refresh request of this user with this number, once it has ended.
async fn refresh_request(scm: &SimulatedScm, user: &str, number: usize) -> RefreshEvent {
    eventually("a refresh request", PATIENCE, async || {
        let mut requests = scm.log().into_iter().filter(|event| event.user.as_deref() == Some(user));
        requests.nth(number).filter(|event| event.ended_at_ms.is_some())
    })
    .await
}
