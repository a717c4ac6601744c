//! Who holds a token decides whether it is refreshed.

use anyhow::Result;

use super::MINUTE;
use crate::{
    grant::{Grant, Token},
    narrator::{Actor, Narrator},
    stage::{Stage, TOKEN_LIFETIME, holds},
};

pub(super) async fn a_pair_is_stored(say: &mut Narrator, stage: &Stage) -> Result<Token> {
    say.scene(
        "A pair is stored",
        "A login flow hands the user's tokens over. From here on tokenkeeper owns them.",
    )?;
    let pair = stage.scm.authorize("alice");
    let token = Token::new(&pair.access_token);
    say.tell(Actor::Scm, &format!("alice logs in; it issues {token}, good for 2 h, and a refresh token"))?;
    say.tell(Actor::Login, "publishes the pair (token.store)")?;
    let reply = stage.store(&pair).await;
    say.claim(Actor::Tokenkeeper, reply["status"] == "ok", "stored it, and replied ok", &reply)?;
    let database = stage.database()?;
    let seen = [("alice", "alice"), ("access token", token.value()), ("refresh token", &pair.refresh_token)]
        .map(|(what, text)| (what, holds(&database, text)));
    say.claim(
        Actor::Tokenkeeper,
        seen.map(|(_, found)| found) == [true, false, false],
        "in the database file alice can be read, and neither token: encrypted at rest",
        &seen,
    )?;
    Ok(token)
}

pub(super) async fn nobody_holds_it(say: &mut Narrator, stage: &mut Stage, stored: &Token) -> Result<Grant> {
    say.scene(
        "Nobody holds the token: an opportunistic refresh",
        "On a Bitbucket Server a refresh kills the old token at once. So tokenkeeper refreshes while the token is \
         still valid, at a moment when nobody uses it.",
    )?;
    say.tell(Actor::Requester, "an API server asks for alice's token, to work for 5 min (token.request)")?;
    let grant = stage.ask("alice", 5 * MINUTE).await?;
    let new = &grant.token;
    say.claim(
        Actor::Tokenkeeper,
        grant.refresh == "opportunistic",
        &format!("{stored} is still valid, but nobody holds it: a refresh first (opportunistic)"),
        &grant,
    )?;
    let issued = stage.scm.latest_pair("alice").map(|pair| Token::new(&pair.access_token));
    let refreshes = stage.scm.refreshes("alice");
    let lives = [stored, new].map(|token| stage.scm.is_alive(token.value()));
    say.claim(
        Actor::Scm,
        refreshes == 1 && lives == [false, true] && issued.as_ref() == Some(new),
        &format!("refreshed once: {stored} is dead, {new} is alive"),
        &(refreshes, lives, &issued),
    )?;
    say.claim(
        Actor::Tokenkeeper,
        grant.is_reserved_for(5 * MINUTE) && grant.lives_for(TOKEN_LIFETIME) && grant.warnings.is_empty(),
        &format!("hands out {new}, expires in 2 h, reserved for 5 min"),
        &grant,
    )?;
    Ok(grant)
}

pub(super) async fn somebody_holds_it(say: &mut Narrator, stage: &mut Stage, held: &Grant) -> Result<Grant> {
    say.scene(
        "Somebody holds the token: it is left alone",
        "Another refresh would be due, but it would kill the token under the API server.",
    )?;
    say.tell(Actor::Requester, "a CI job asks for alice's token, to work for 2 min")?;
    let grant = stage.ask("alice", 2 * MINUTE).await?;
    let token = &held.token;
    say.claim(
        Actor::Tokenkeeper,
        grant.refresh == "reserved" && grant.token == *token,
        &format!("the API server holds {token}: no refresh, the same token (reserved)"),
        &grant,
    )?;
    say.claim(
        Actor::Tokenkeeper,
        grant.reserved_until_ms == held.reserved_until_ms,
        "the 5 min reach further than these 2 min: the reservation stays as it is",
        &(&grant, held),
    )?;
    let seen = (stage.scm.refresh_requests("alice"), stage.scm.is_alive(token.value()));
    say.claim(Actor::Scm, seen == (1, true), &format!("hears nothing of it; {token} is alive"), &seen)?;
    Ok(grant)
}

pub(super) async fn a_longer_reservation(say: &mut Narrator, stage: &mut Stage, held: &Grant) -> Result<()> {
    say.scene("A reservation is extended", "A reservation only ever grows, so nobody's promise is broken.")?;
    say.tell(Actor::Requester, "an IDE asks for alice's token, to work for 30 min")?;
    let grant = stage.ask("alice", 30 * MINUTE).await?;
    say.claim(
        Actor::Tokenkeeper,
        grant.refresh == "reserved" && grant.token == held.token && grant.is_reserved_for(30 * MINUTE),
        &format!("hands out {}, now reserved for 30 min instead of 5", held.token),
        &grant,
    )?;
    let requests = stage.scm.refresh_requests("alice");
    say.claim(Actor::Scm, requests == 1, "hears nothing of it", &requests)
}
