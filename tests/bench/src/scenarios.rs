//! One file a scenario.

mod alone;
mod client;
mod hot;
mod memory;
mod mixed;
mod once;
mod one_user;
mod paced;
mod partitions;
mod replicas;
mod start;
mod storm;
mod wide;
mod workspace;

use anyhow::Result;

use crate::{options::Scenario, progress::Progress, report::Findings, world::World};

/// Measures one scenario.
pub(crate) async fn play(scenario: Scenario, world: &World<'_>, progress: &Progress) -> Result<Findings> {
    match scenario {
        Scenario::Client => client::play(world, progress).await,
        Scenario::Hot => hot::play(world, progress).await,
        Scenario::Paced => paced::play(world, progress).await,
        Scenario::Alone => alone::play(world, progress).await,
        Scenario::OneUser => one_user::play(world, progress).await,
        Scenario::Wide => wide::play(world, progress).await,
        Scenario::Storm => storm::play(world, progress).await,
        Scenario::Workspace => workspace::play(world, progress).await,
        Scenario::Mixed => mixed::play(world, progress).await,
        Scenario::Partitions => partitions::play(world, progress).await,
        Scenario::Replicas => replicas::play(world, progress).await,
        Scenario::Once => once::play(world, progress).await,
        Scenario::Memory => memory::play(world, progress).await,
        Scenario::Start => start::play(world, progress).await,
    }
}
