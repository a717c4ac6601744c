//! One file a scenario.

mod broker;
mod broker_node;
mod bulkhead;
mod database;
mod database_away;
mod frozen;
mod hostile;
mod load;
mod newest;
mod no_writes;
mod restore;
mod rolling;
mod soak;
mod storm;

use std::{path::Path, time::Duration};

use anyhow::Result;
use tokenkeeper_testkit::servers::Servers;

pub(crate) use self::hostile::Attack;
use crate::{
    options::{Options, Scenario},
    progress::Progress,
    report::Row,
};

/// How long no answer may come until the load counts as settled: longer than any request's budget.
const SETTLED_AFTER: Duration = Duration::from_secs(45);

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
        Scenario::Storm => Box::pin(storm::play(play)).await,
        Scenario::Rolling => Box::pin(rolling::play(play)).await,
        Scenario::Frozen => Box::pin(frozen::play(play)).await,
        Scenario::Database => Box::pin(database::play(play)).await,
        Scenario::Bulkhead => Box::pin(bulkhead::play(play)).await,
        Scenario::Broker => Box::pin(broker::play(play)).await,
        Scenario::BrokerNode => Box::pin(broker_node::play(play)).await,
        Scenario::DatabaseAway => Box::pin(database_away::play(play)).await,
        Scenario::Readonly => Box::pin(no_writes::play(play, no_writes::Fault::ReadOnly)).await,
        Scenario::Standby => Box::pin(no_writes::play(play, no_writes::Fault::Standby)).await,
        Scenario::Galera => Box::pin(no_writes::play(play, no_writes::Fault::Galera)).await,
        Scenario::Restore => Box::pin(restore::play(play)).await,
        Scenario::Hostile => Box::pin(hostile::play(play)).await,
        Scenario::Soak => Box::pin(soak::play(play)).await,
    }
}
