//! A provider's row is changed: neither client secret nor refresh token leaves.

use tokenkeeper::domain::clock::{Clock, SystemClock};
use tokenkeeper_entity::auth_provider::{self, Model};

use super::*;

/// What an attacker with a server of his own does to a provider's row, and what it is called.
type Change = (&'static str, fn(&mut Model, &SimulatedScm));

const CHANGES: [Change; 13] = [
    ("its token endpoint", |row, evil| row.token_url = Some(evil.token_url())),
    ("its client id", |row, _| row.client_id = "another".into()),
    ("how it authenticates", |row, _| row.client_auth = Some("basic".to_owned())),
    ("its redirect URI", |row, _| row.redirect_uri = Some("https://evil.example.org/".to_owned())),
    ("its kind", |row, _| row.kind = "gitea".into()),
    ("its user name", |row, _| row.username = Some("mallory".to_owned())),
    ("its overrides", |row, evil| {
        row.overrides = Some(format!("{{\"validate_url\":\"{}\"}}", evil.user_url()));
    }),
    ("its rule for reservations", |row, _| row.required_while_reserved = Some("wait".to_owned())),
    ("its spare secrets", |row, _| row.spare_client_secrets_sealed = None),
    ("whether it is refreshed early", |row, _| row.opportunistic_refresh = Some(false)),
    ("how early it is refreshed", |row, _| row.opportunistic_refresh_window_secs = Some(1)),
    ("how often it is called at once", |row, _| row.max_concurrent_refreshes = Some(1)),
    ("the date of its settings", |row, _| row.updated_at += 1),
];

async fn row_of(db: &DatabaseConnection, host: &str) -> Model {
    let of_host = auth_provider::Column::Host.eq(host);
    auth_provider::Entity::find().filter(of_host).one(db).await.unwrap().unwrap()
}

async fn write(db: &DatabaseConnection, row: Model) {
    row.into_active_model().reset_all().update(db).await.unwrap();
}

/// A pair that has expired, stored without a look by the worker: it would know the provider as it was, for a second.
async fn user_at(world: &World, scm: &SimulatedScm) {
    let provider = world.store.provider(&scm.host()).await.unwrap().unwrap().id;
    let expires_at = scm.now_ms() - 1000;
    let pair = login(&scm.authorize_until("jdoe", expires_at), expires_at);
    let account = AccountNames { auth_id: "jdoe".to_owned(), auth_name: None };
    world.store.put_login("jdoe", provider, &account, &pair, false, SystemClock.now()).await.unwrap();
}

async fn request_at(world: &World, scm: &SimulatedScm) -> serde_json::Value {
    let body = serde_json::json!({"user_id": "jdoe", "host": scm.host()});
    world.broker.request("token.request", body).await.body
}

on_every_database! {
    async fn with_changed_settings_nothing_is_sent_to_anybody(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let evil = SimulatedScm::start_as(Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let db = world.connection().await;
        world.user_with_token("bystander").await;
        for (what, change) in CHANGES {
            let scm = SimulatedScm::start_as(Dialect::GitHub).await;
            world.apply(&scm, |record| record.spare_client_secrets = vec!["spare-client-secret".into()]).await;
            user_at(&world, &scm).await;
            let mut row = row_of(&db, &scm.host()).await;
            change(&mut row, &evil);
            write(&db, row).await;

            let reply = request_at(&world, &scm).await;

            error_message(&reply, "internal");
            assert!(scm.log().is_empty() && evil.log().is_empty(), "{what}: something was sent");
            token(&world.request("bystander").await);
            // The operator's own settings mend it.
            world.apply(&scm, |_| {}).await;
            token(&request_at(&world, &scm).await);
        }
        worker.stop().await;
    }

    async fn two_providers_do_not_change_places(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let db = world.connection().await;
        world.user_with_token("bystander").await;
        let (one, other) = (SimulatedScm::start_as(Dialect::GitHub).await, SimulatedScm::start_as(Dialect::GitHub).await);
        for scm in [&one, &other] {
            world.apply(scm, |_| {}).await;
            user_at(&world, scm).await;
        }
        let (first, second) = (row_of(&db, &one.host()).await, row_of(&db, &other.host()).await);
        write(&db, Model { host: "gone.example.org".to_owned(), ..first.clone() }).await;
        let elsewhere = serde_json::json!({"user_id": "jdoe", "host": "gone.example.org"});
        error_message(&world.broker.request("token.request", elsewhere).await.body, "internal");
        // Everything but its id.
        write(&db, Model { id: second.id, created_at: second.created_at, ..first.clone() }).await;
        error_message(&request_at(&world, &one).await, "internal");
        write(&db, Model { id: first.id, created_at: first.created_at, ..second }).await;
        error_message(&request_at(&world, &other).await, "internal");
        assert!(one.log().is_empty() && other.log().is_empty(), "no refresh token is sent to another host");
        token(&world.request("bystander").await);
        worker.stop().await;
    }
}
