//! The story, scene by scene. What a line says with a tick was checked just before.

mod cloning;
mod closing;
mod holding;
mod refreshing;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;

use crate::{narrator::Narrator, stage::Stage};

const MINUTE: Duration = Duration::from_mins(1);

/// Tells the story, with its files in `folder`.
pub(crate) async fn tell(folder: PathBuf) -> Result<()> {
    let mut say = Narrator::start();
    say.paragraph(
        "tokenkeeper hands out users' OAuth tokens for source-code hosts (SCMs). It is asked over RabbitMQ, refreshes \
         in time, and reserves what it hands out, for the sake of every running git clone.",
    )?;
    say.paragraph(
        "\nLeft: seconds.  ✓: this was checked.  …3f1f: a token; no more than its end is ever shown.",
    )?;
    say.scene("The stage", "What an operator does once. Everything here is gone when the story ends.")?;
    let mut stage = Stage::set_up(&mut say, &folder).await?;

    let stored = holding::a_pair_is_stored(&mut say, &stage).await?;
    let refreshed = holding::nobody_holds_it(&mut say, &mut stage, &stored).await?;
    let reserved = holding::somebody_holds_it(&mut say, &mut stage, &refreshed).await?;
    holding::a_longer_reservation(&mut say, &mut stage, &reserved).await?;
    cloning::a_clone_survives(&mut say, &mut stage).await?;
    cloning::a_clone_breaks(&mut say, &mut stage).await?;
    refreshing::a_hundred_at_once(&mut say, &mut stage).await?;
    refreshing::a_provider_fails_twice(&mut say, &mut stage).await?;
    closing::what_was_counted(&mut say, &stage).await?;
    closing::the_end(&mut say, stage).await?;

    let (checks, seconds) = say.score();
    say.paragraph(&format!("\nEverything came out as told: {checks} checks, {seconds:.1} s."))
}
