//! One file a scenario.

mod hot;

use anyhow::Result;

use crate::{options::Scenario, progress::Progress, report::Findings, world::World};

/// Measures one scenario.
pub(crate) async fn play(scenario: Scenario, world: &World<'_>, progress: &Progress) -> Result<Findings> {
    match scenario {
        Scenario::Hot => hot::play(world, progress).await,
        _ => Ok(Findings::default()),
    }
}
