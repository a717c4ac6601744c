//! What a worker writes next to a row that somebody changed does not make the change good.

use super::*;

/// A user whose refresh was refused, and whose row says something else of it since.
async fn changed_after_a_refusal(world: &World, attacker: &Attacker<'_>) {
    world.user_with_token("bystander").await;
    world.user_with_expired_token("jdoe").await;
    world.scm.fail_next_for("jdoe", 1, Fault::InvalidGrant);
    error_message(&world.request("jdoe").await, "reauthorization_required");
    attacker.change("jdoe", |row| row.failure_message = Some("another".to_owned())).await;
}

on_every_database! {
    async fn a_report_does_not_make_a_changed_record_good(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let attacker = Attacker::on(&world).await;
        world.user_with_token("bystander").await;
        put(&world, &world.store, "jdoe", world.scm.now_ms() + 7_200_000).await;
        let (entry, now) = (world.entry("jdoe").await, world.store.now().await.unwrap());
        // While somebody writes a report down.
        attacker
            .change("jdoe", |row| {
                row.failure_message = Some("another".to_owned());
                row.record_mac = Some(vec![0; 32]);
            })
            .await;

        assert!(world.store.report(&entry, now).await.is_err());

        is_given_away_to_nobody(&world, "jdoe", "a record with a report").await;
        worker.stop().await;
    }

    async fn a_failure_that_is_forgotten_does_not_make_a_changed_record_good(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let attacker = Attacker::on(&world).await;
        changed_after_a_refusal(&world, &attacker).await;

        // An operator's new settings forget what was held against users.
        world.apply_provider(|provider| provider.username = Some("another".to_owned())).await;

        is_given_away_to_nobody(&world, "jdoe", "a record that was forgotten").await;
        worker.stop().await;
    }

    async fn an_older_login_takes_the_place_of_a_changed_row(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let attacker = Attacker::on(&world).await;
        let dated = |issued_at: i64| {
            let source = PairSource::DatedLogin { issued_at: Timestamp::from_millis(issued_at) };
            let expires_at = world.scm.now_ms() + 7_200_000;
            NewPair { source, ..login(&world.scm.authorize_until("jdoe", expires_at), expires_at) }
        };
        let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap().id;
        let account = AccountNames { auth_id: "jdoe".to_owned(), auth_name: None };
        let now = world.store.now().await.unwrap();
        let stored = async |pair: &NewPair| {
            world.store.put_login("jdoe", provider, &account, pair, false, now).await.unwrap().effect
        };
        let (older, newer) = (dated(1_000), dated(2_000));
        assert_eq!(stored(&newer).await, LoginEffect::Created);
        assert_eq!(stored(&older).await, LoginEffect::Kept);
        attacker.change("jdoe", |row| row.scopes = "[]".into()).await;

        assert_eq!(stored(&older).await, LoginEffect::Replaced);

        world.store.open_access_token(&world.entry("jdoe").await).unwrap();
    }
}
