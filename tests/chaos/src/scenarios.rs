//! One file a scenario.

mod storm;

use std::path::Path;

use anyhow::{Result, bail};

use crate::{
    options::{Options, Scenario},
    progress::Progress,
    report::Row,
    servers::Servers,
};

/// What every scenario plays with.
pub(crate) struct Play<'a> {
    pub(crate) options: &'a Options,
    pub(crate) servers: &'a mut Servers,
    pub(crate) folder: &'a Path,
    pub(crate) progress: &'a Progress,
}

/// Plays one scenario.
pub(crate) async fn play(
    scenario: Scenario,
    options: &Options,
    servers: &mut Servers,
    folder: &Path,
    progress: &Progress,
) -> Result<Vec<Row>> {
    let play = Play { options, servers, folder, progress };
    match scenario {
        Scenario::Storm => storm::play(play).await,
        _ => bail!("not yet"),
    }
}
