//! vendor/sqlx-core: the driver sends a statement off at once, however many segments it takes.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DbBackend, Statement};

use crate::harness::{Dialect, Kind, World};

/// What Linux takes over acknowledging a segment that no answer goes along with (`TCP_DELACK_MIN`).
const DELAYED_ACKNOWLEDGEMENT: Duration = Duration::from_millis(40);

#[tokio::test]
async fn a_statement_of_several_segments_does_not_wait_for_their_acknowledgement() {
    let world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    let db = world.connection().await;
    // More than one record of TLS, each of which is written by itself.
    let long = "x".repeat(20_000);
    let mut took = Vec::new();
    for _ in 0..41 {
        let statement =
            Statement::from_sql_and_values(DbBackend::Postgres, "SELECT length($1)", [long.clone().into()]);
        let begun = Instant::now();
        db.query_one_raw(statement).await.unwrap().unwrap();
        took.push(begun.elapsed());
    }
    // On a new connection the kernel acknowledges at once, so the first ones show nothing.
    let median = {
        let later = &mut took[20..];
        later.sort_unstable();
        later[later.len() / 2]
    };
    assert!(median < DELAYED_ACKNOWLEDGEMENT, "half of the statements took more than {median:?}");
}
