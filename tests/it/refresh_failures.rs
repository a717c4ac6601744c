//! Refreshes that fail.

use serde_json::json;

use crate::harness::{Dialect, Fault, Kind, World, on_every_database};

on_every_database! {
    async fn a_provider_that_fails_twice_is_asked_a_third_time(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        world.scm.fail_next(2, Fault::Status(500));

        let reply = world.request("jdoe").await;

        assert_eq!(reply["status"], "ok", "{reply}");
        assert_eq!(reply["refresh"], "required");
        assert_eq!(reply["token"]["value"], json!(world.scm.latest_pair("jdoe").unwrap().access_token));
        assert_eq!(world.scm.refreshes("jdoe"), 1);
        worker.stop().await;
    }
}
