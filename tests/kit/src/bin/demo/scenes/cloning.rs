//! A real `git clone`, while others ask for the same user's token.

use std::{fs, path::Path, pin::Pin};

use anyhow::{Context, Result, bail};
use tokenkeeper_testkit::scm::{CloneError, GitGate, HoldPoint, git_clone};

use super::MINUTE;
use crate::{
    grant::Token,
    narrator::{Actor, Narrator},
    stage::{PROJECT, REPOSITORY, REPOSITORY_BYTES, Stage},
};

const COMPETITORS: usize = 20;

pub(super) async fn a_clone_survives(say: &mut Narrator, stage: &mut Stage) -> Result<()> {
    say.scene(
        "A workspace starts, and its git clone survives competing requests",
        "The SCM holds the clone in the middle until the others have their answers.",
    )?;
    stage.user_with_token("bob").await?;
    let clone_url = stage.scm.clone_url(PROJECT, REPOSITORY);
    say.tell(Actor::Requester, "starts bob's workspace with the repository platform/shop (workspace.start)")?;
    let started = stage.start_workspace("bob", &clone_url, 10 * MINUTE).await?;
    let token = &started.token;
    say.claim(
        Actor::Tokenkeeper,
        started.refresh == "opportunistic" && started.is_reserved_for(10 * MINUTE),
        &format!("nobody holds bob's token: a refresh first; {token}, reserved for 10 min"),
        &started,
    )?;

    let gate = stage.scm.hold_clones(HoldPoint::InPack);
    let url = stage.scm.clone_url_with_token(PROJECT, REPOSITORY, token.value());
    let destination = stage.folder.join("clone-with-reservation");
    say.tell(Actor::Git, &format!("$ git clone {clone_url}"))?;
    let clone = git_clone(&url, &destination);
    tokio::pin!(clone);
    let grants = meanwhile(clone.as_mut(), &gate, async {
        say.tell(Actor::Scm, "has sent the first 64 KiB and waits; each further chunk needs a living token")?;
        say.tell(Actor::Requester, &format!("{COMPETITORS} others ask for bob's token, for 5 min each"))?;
        let asked = stage.begin_asking(COMPETITORS, "bob", 5 * MINUTE).await;
        stage.answers(asked).await
    })
    .await?;
    let same = grants.iter().filter(|grant| grant.refresh == "reserved" && grant.token == *token).count();
    say.claim(
        Actor::Tokenkeeper,
        same == COMPETITORS,
        &format!("the workspace holds {token}: no refresh, all {COMPETITORS} get the same (reserved)"),
        &grants,
    )?;
    let seen = (stage.scm.refresh_requests("bob"), stage.scm.is_alive(token.value()));
    say.claim(
        Actor::Scm,
        seen == (1, true),
        &format!("hears nothing of them; {token} is alive, and the clone goes on"),
        &seen,
    )?;

    gate.release();
    let ended = clone.await;
    let bytes = file_bytes(&destination).unwrap_or_default();
    say.claim(
        Actor::Git,
        ended.is_ok() && bytes == REPOSITORY_BYTES,
        &format!("exits 0; {} MiB are checked out", bytes / 1024 / 1024),
        &(outcome(&ended, token), bytes),
    )
}

pub(super) async fn a_clone_breaks(say: &mut Narrator, stage: &mut Stage) -> Result<()> {
    say.scene(
        "The same clone without a reservation breaks",
        "The counter-example: carol's workspace has a token that it did not ask tokenkeeper for.",
    )?;
    let token = stage.user_with_token("carol").await?;
    let gate = stage.scm.hold_clones(HoldPoint::InPack);
    let url = stage.scm.clone_url_with_token(PROJECT, REPOSITORY, token.value());
    let destination = stage.folder.join("clone-without-reservation");
    say.tell(Actor::Git, &format!("$ git clone {}", stage.scm.clone_url(PROJECT, REPOSITORY)))?;
    let clone = git_clone(&url, &destination);
    tokio::pin!(clone);
    let grant = meanwhile(clone.as_mut(), &gate, async {
        say.tell(Actor::Scm, &format!("has sent the first 64 KiB, for {token}, and waits"))?;
        say.tell(Actor::Requester, "one other asks for carol's token, for 5 min")?;
        stage.ask("carol", 5 * MINUTE).await
    })
    .await?;
    say.claim(
        Actor::Tokenkeeper,
        grant.refresh == "opportunistic",
        &format!("nobody has reserved {token}: a refresh (opportunistic)"),
        &grant,
    )?;
    let lives = [&token, &grant.token].map(|token| stage.scm.is_alive(token.value()));
    say.claim(
        Actor::Scm,
        lives == [false, true],
        &format!("has refreshed: {token} is dead, {} is alive; the clone goes on", grant.token),
        &lives,
    )?;
    gate.release();
    let ended = clone.await;
    let said = outcome(&ended, &token);
    say.claim(Actor::Git, ended.is_err() && !destination.exists(), &said, &said)
}

/// What happens while a clone is held in the middle of its pack.
async fn meanwhile<T>(
    clone: Pin<&mut impl Future<Output = Result<(), CloneError>>>,
    gate: &GitGate,
    others: impl Future<Output = Result<T>>,
) -> Result<T> {
    let others = async {
        gate.wait_for_clone_started().await;
        others.await
    };
    tokio::select! {
        ended = clone => bail!("the clone was over too early: {ended:?}"),
        others = others => others,
    }
}

/// How a clone ended, in git's own words, with nothing of the token but its end.
fn outcome(ended: &Result<(), CloneError>, token: &Token) -> String {
    let Err(error) = ended else { return "exits 0".to_owned() };
    let said = error.stderr.replace(token.value(), &token.to_string());
    let reason = said.lines().find(|line| line.starts_with("error:") || line.starts_with("fatal:"));
    let code = error.exit_code.map_or_else(|| "by a signal".to_owned(), |code| code.to_string());
    format!("exits {code}: {}", reason.unwrap_or("it did not say why"))
}

/// What the files of a working tree have together.
fn file_bytes(tree: &Path) -> Result<usize> {
    let mut bytes = 0;
    for entry in fs::read_dir(tree).context("look into the clone")? {
        let metadata = entry?.metadata()?;
        bytes += if metadata.is_file() { usize::try_from(metadata.len())? } else { 0 };
    }
    Ok(bytes)
}
