//! Somebody writes the database, without the keys: no row that was changed gives a secret away.

mod formats;
mod providers;
mod records;

use futures_util::future::join_all;
use sea_orm::ActiveValue::{Set, Unchanged};
use sea_orm::{ActiveModelTrait, ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, QueryFilter};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::store::{
    AccountNames, Failure, FailureKind, Guarded, LoginEffect, NewPair, Origin, PairSource, ParkedPair,
    Restored, Store,
};
use tokenkeeper_entity::identity;
use tokenkeeper_entity::token_entry::{self, Model};
use tokenkeeper_testkit::queues::TOKEN_REPORT;
use tokenkeeper_testkit::scm::IssuedPair;

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Fault, Kind, SimulatedScm, World, on_every_database};
use crate::reports::digest;

/// A pair as a login brings it.
fn login(pair: &IssuedPair, expires_at_ms: i64) -> NewPair {
    NewPair {
        access_token: pair.access_token.clone().into(),
        refresh_token: Some(pair.refresh_token.clone().into()),
        username: None,
        scopes: vec!["repo".to_owned()],
        expires_at: Some(Timestamp::from_millis(expires_at_ms)),
        refresh_token_expires_at: Some(Timestamp::from_millis(expires_at_ms + 1)),
        source: PairSource::Login,
    }
}

/// Somebody who writes the database.
struct Attacker<'a> {
    world: &'a World,
    db: DatabaseConnection,
}

impl<'a> Attacker<'a> {
    async fn on(world: &'a World) -> Self {
        Self { world, db: world.connection().await }
    }

    async fn row(&self, user: &str) -> Model {
        let id = self.world.entry(user).await.id;
        token_entry::Entity::find_by_id(id).one(&self.db).await.unwrap().unwrap()
    }

    async fn write(&self, row: Model) {
        row.into_active_model().reset_all().update(&self.db).await.unwrap();
    }

    /// Changes a user's row.
    async fn change(&self, user: &str, change: impl FnOnce(&mut Model)) {
        let mut row = self.row(user).await;
        change(&mut row);
        self.write(row).await;
    }
}

/// Nobody gets a token for this user, and no provider hears of it. Another user is served.
async fn is_given_away_to_nobody(world: &World, user: &str, what: &str) {
    let before = world.scm.log().len();
    let reply = world.request(user).await;
    let message = error_message(&reply, "internal");
    assert!(message.contains("the worker's log says which"), "{what}: {message}");
    assert_eq!(world.scm.log().len(), before, "{what}: something was sent to the provider");
    token(&world.request("bystander").await);
}

/// What an attacker does to a row, and what it is called.
type Change = (&'static str, fn(&mut Model));

/// Changes of a row whose token has expired.
const OF_EXPIRED: [Change; 4] = [
    ("expires never", |row| row.expires_at = None),
    ("expires later", |row| row.expires_at = row.expires_at.map(|at| at + 7_200_000)),
    ("its refresh token expires never", |row| row.refresh_token_expires_at = None),
    ("its refresh token is the access token", |row| {
        row.refresh_token_sealed = Some(row.access_token_sealed.clone());
    }),
];

/// Changes of a row whose token is valid.
const OF_VALID: [Change; 14] = [
    ("expires never", |row| row.expires_at = None),
    ("another refresh token's end", |row| row.refresh_token_expires_at = Some(1)),
    ("another lifetime", |row| row.granted_lifetime_ms = Some(1)),
    ("another user name", |row| row.username = Some("mallory".to_owned())),
    ("other scopes", |row| row.scopes = "[\"admin\"]".into()),
    ("another origin", |row| row.refreshed_at = Some(1)),
    ("another login", |row| row.login_fingerprint = None),
    ("another date of issue", |row| row.issued_at = Some(1)),
    ("another date of storing", |row| row.updated_at += 1),
    ("no refresh token", |row| row.refresh_token_sealed = None),
    ("its access token is the refresh token", |row| {
        row.access_token_sealed = row.refresh_token_sealed.clone().unwrap();
    }),
    ("no code", |row| row.record_mac = None),
    ("another code", |row| row.record_mac = Some(vec![0; 32])),
    ("another generation", |row| row.generation += 1),
];

/// Changes of what is on record against a pair, one column each.
const OF_RECORD: [Change; 5] = [
    ("another kind of failure", |row| row.failure_code = Some("interrupted".to_owned())),
    ("another message", |row| row.failure_message = Some("another".to_owned())),
    ("another refused token", |row| row.failure_fingerprint = Some("another".to_owned())),
    ("another date of the failure", |row| row.failed_at = Some(1)),
    ("a report that is made up", |row| row.reported_at = Some(1)),
];

on_every_database! {
    async fn a_changed_row_gives_no_token_away_and_nothing_of_it_is_sent(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.spawn_worker().await;
        let attacker = Attacker::on(&world).await;
        world.user_with_token("bystander").await;
        for (number, (what, change)) in OF_EXPIRED.into_iter().enumerate() {
            let user = format!("expired-{number}");
            put(&world, &world.store, &user, world.scm.now_ms() - 1000).await;
            attacker.change(&user, change).await;
            is_given_away_to_nobody(&world, &user, what).await;
        }
        for (number, (what, change)) in OF_VALID.into_iter().enumerate() {
            let user = format!("valid-{number}");
            put(&world, &world.store, &user, world.scm.now_ms() + 7_200_000).await;
            attacker.change(&user, change).await;
            is_given_away_to_nobody(&world, &user, what).await;
        }
        let id = attacker.row("valid-3").await.id;
        assert!(worker.log().contains(&format!("token_entry {id}")), "the log names the row");
        worker.stop(&world).await;
    }

    async fn no_row_is_made_of_parts_of_others(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let other_scm = SimulatedScm::start_as(Dialect::GitHub).await;
        world.apply(&other_scm, |_| {}).await;
        let worker = world.start_worker().await;
        let attacker = Attacker::on(&world).await;
        for user in ["bystander", "victim", "mallory"] {
            world.user_with_token(user).await;
        }
        let (victims, own) = (attacker.row("victim").await, attacker.row("mallory").await);
        let other_provider = world.store.provider(&other_scm.host()).await.unwrap().unwrap().id;

        attacker.write(Model { access_token_sealed: victims.access_token_sealed.clone(), ..own.clone() }).await;
        is_given_away_to_nobody(&world, "mallory", "the token of another row").await;
        let of_victim = Model { id: own.id, identity_id: own.identity_id, user_id: own.user_id.clone(), ..victims.clone() };
        attacker.write(of_victim).await;
        is_given_away_to_nobody(&world, "mallory", "all but the owner of another row").await;
        // The two rows change their users.
        attacker.write(Model { user_id: "gone".to_owned(), ..own.clone() }).await;
        attacker.write(Model { user_id: "mallory".to_owned(), ..victims.clone() }).await;
        is_given_away_to_nobody(&world, "mallory", "the row of another user").await;
        attacker.write(victims.clone()).await;
        attacker.write(own).await;
        token(&world.request("mallory").await);

        put(&world, &world.store, "expired", world.scm.now_ms() - 1000).await;
        let expired = attacker.row("expired").await;
        for (user, row) in [("victim", &victims), ("expired", &expired)] {
            attacker.write(Model { provider_id: other_provider, ..row.clone() }).await;
            let elsewhere = serde_json::json!({"user_id": user, "host": other_scm.host()});
            let reply = world.broker.request("token.request", elsewhere).await.body;
            error_message(&reply, "internal");
        }
        assert!(other_scm.log().is_empty(), "no refresh token is sent to another host");

        attacker.write(victims.clone()).await;
        world.user_with_token("victim").await;
        // Of an older pair.
        attacker.change("victim", |row| row.access_token_sealed = victims.access_token_sealed).await;
        is_given_away_to_nobody(&world, "victim", "an older pair's token").await;
        // Of an identity that has no row any more.
        for user in ["leaver", "heir"] {
            put(&world, &world.store, user, world.scm.now_ms() + 7_200_000).await;
        }
        let leavers = attacker.row("leaver").await;
        token_entry::Entity::delete_by_id(leavers.id).exec(&attacker.db).await.unwrap();
        attacker.change("heir", |row| row.identity_id = leavers.identity_id).await;
        is_given_away_to_nobody(&world, "heir", "the identity of another user").await;
        worker.stop().await;
    }

    async fn a_login_is_stored_for_nobody_else(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let attacker = Attacker::on(&world).await;
        world.user_with_token("bystander").await;
        world.user_with_token("victim").await;
        attacker.change("victim", |row| row.user_id = "mallory".into()).await;

        let again = world.scm.token_store_body(&world.scm.authorize("victim"));
        let reply = world.broker.request("token.store", again).await.body;

        error_message(&reply, "internal");
        is_given_away_to_nobody(&world, "mallory", "the login of another user").await;
        // The same by way of the identities: they change their users.
        world.user_with_token("other").await;
        let of = async |user: &str| {
            let of_user = identity::Entity::find().filter(identity::Column::UserId.eq(user));
            of_user.one(&attacker.db).await.unwrap().unwrap()
        };
        let (bystander, other) = (of("bystander").await, of("other").await);
        for (id, user) in [(bystander.id, "gone"), (other.id, "bystander"), (bystander.id, "other")] {
            let row = identity::ActiveModel { id: Unchanged(id), user_id: Set(user.to_owned()), ..Default::default() };
            row.update(&attacker.db).await.unwrap();
        }
        let login = world.scm.authorize("other");
        let reply = world.broker.request("token.store", world.scm.token_store_body(&login)).await.body;
        error_message(&reply, "internal");
        assert_ne!(token(&world.request("bystander").await)["value"], login.access_token.as_str());
        worker.stop().await;
    }

    async fn a_login_mends_a_changed_row(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let attacker = Attacker::on(&world).await;
        world.user_with_token("bystander").await;
        let pair = world.user_with_token("jdoe").await;
        attacker.change("jdoe", |row| row.scopes = "[]".into()).await;
        is_given_away_to_nobody(&world, "jdoe", "other scopes").await;

        world.store_pair(&pair).await;

        assert_eq!(token(&world.request("jdoe").await)["value"], pair.access_token.as_str());
        worker.stop().await;
    }

    async fn neither_a_failure_nor_a_report_is_taken_back(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let attacker = Attacker::on(&world).await;
        world.user_with_token("bystander").await;

        world.user_with_expired_token("refused").await;
        world.scm.fail_next_for("refused", 1, Fault::InvalidGrant);
        error_message(&world.request("refused").await, "reauthorization_required");
        let refused = attacker.row("refused").await;
        for (what, change) in OF_RECORD {
            attacker.change("refused", change).await;
            is_given_away_to_nobody(&world, "refused", what).await;
            attacker.write(refused.clone()).await;
        }
        error_message(&world.request("refused").await, "reauthorization_required");
        attacker
            .change("refused", |row| {
                row.failure_code = None;
                row.failure_message = None;
                row.failure_fingerprint = None;
                row.failed_at = None;
            })
            .await;
        is_given_away_to_nobody(&world, "refused", "a failure that is taken back").await;

        let body = serde_json::json!({"user_id": "reported", "host": world.scm.host(), "token": {"value": "leaked"}});
        assert_eq!(world.broker.request("token.store", body).await.body["status"], "ok");
        let report =
            serde_json::json!({"user_id": "reported", "host": world.scm.host(), "token_sha256": digest("leaked")});
        assert_eq!(world.broker.request(TOKEN_REPORT, report).await.body["result"], "withdrawn");
        error_message(&world.request("reported").await, "not_refreshable");
        attacker.change("reported", |row| row.reported_at = None).await;
        is_given_away_to_nobody(&world, "reported", "a report that is taken back").await;

        // Nor is one made up: nobody is told to log in again.
        world.user_with_expired_token("fine").await;
        attacker
            .change("fine", |row| {
                row.failure_code = Some("reauthorization_required".to_owned());
                row.failed_at = Some(1);
            })
            .await;
        is_given_away_to_nobody(&world, "fine", "a failure that is made up").await;
        worker.stop().await;
    }

    async fn a_failure_and_a_report_at_the_same_time_leave_a_row_that_opens(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        put(&world, &world.store, "jdoe", world.scm.now_ms() + 7_200_000).await;
        let (entry, now, store) = (world.entry("jdoe").await, world.store.now().await.unwrap(), &world.store);
        let minute = std::time::Duration::from_secs(60);
        assert_eq!(store.take_lease(&entry, None, "flight", "sent", now, minute).await.unwrap(), Guarded::Done);
        let failure = Failure {
            kind: FailureKind::Refused,
            message: "no".to_owned(),
            fingerprint: "sent".to_owned(),
            at: now,
        };
        // Each of them knows the row from before the others.
        let reports = join_all((0..4).map(|_| store.report(&entry, now)));
        let (gave_up, reports) = tokio::join!(store.give_up(&entry, "flight", &failure), reports);
        assert_eq!(gave_up.unwrap(), Guarded::Done);
        assert!(reports.into_iter().all(|report| report.unwrap() == Guarded::Done));
        let both = world.entry("jdoe").await;
        store.open_access_token(&both).unwrap();
        assert!(both.state.reported && both.failure.as_ref() == Some(&failure), "{both:?}");

        // What a provider's new settings forget leaves one, too.
        world.apply_provider(|provider| provider.username = Some("another".to_owned())).await;
        let forgotten = world.entry("jdoe").await;
        store.open_access_token(&forgotten).unwrap();
        assert!(forgotten.state.reported && forgotten.failure.is_none(), "{forgotten:?}");
    }

    async fn a_parked_pair_is_stored_for_nobody_else(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let attacker = Attacker::on(&world).await;
        put(&world, &world.store, "victim", world.scm.now_ms() + 7_200_000).await;
        let (entry, now) = (world.entry("victim").await, world.store.now().await.unwrap());
        let source = PairSource::Refresh {
            granted_lifetime: None,
            reserved_until: now,
            origin: Origin { login: None, asked_at: now },
        };
        let pair = NewPair { source, ..login(&world.scm.authorize("victim"), world.scm.now_ms()) };
        let parked = world.store.seal_parked(&world.scm.host(), &entry, &pair, "flight");
        attacker.change("victim", |row| row.user_id = "mallory".into()).await;
        assert!(world.store.store_parked(&parked, now).await.is_err());
        attacker.change("mallory", |row| row.user_id = "victim".into()).await;
        // Whoever writes to the queue or the spool folder changes what stands in clear.
        put(&world, &world.store, "other", world.scm.now_ms() + 7_200_000).await;
        let other = world.entry("other").await;
        for change in [
            serde_json::json!({"generation": 0}),
            serde_json::json!({"host": "git.example.org"}),
            serde_json::json!({"holder": "another"}),
            serde_json::json!({"identity_id": other.identity_id}),
            serde_json::json!({"entry_id": other.id}),
            serde_json::json!({"entry_id": other.id, "identity_id": other.identity_id}),
        ] {
            let mut changed: serde_json::Value = serde_json::from_slice(&parked.encode()).unwrap();
            changed.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let changed = ParkedPair::decode(changed.to_string().as_bytes()).unwrap();
            let stored = world.store.store_parked(&changed, now).await;
            assert!(!matches!(stored, Ok(Restored::Stored)), "{change} was stored");
        }
        assert_eq!(world.store.store_parked(&parked, now).await.unwrap(), Restored::Stored);
    }

    async fn a_row_of_another_deployment_does_not_open(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        world.user_with_token("bystander").await;
        let keys = KeyRing::parse(&world.keys).unwrap().of_deployment("staging", false);
        let staging = Store::new(world.connection().await, keys);
        put(&world, &staging, "jdoe", world.scm.now_ms() + 7_200_000).await;
        is_given_away_to_nobody(&world, "jdoe", "a row of another deployment").await;
        worker.stop().await;
    }
}

/// Stores a pair as a worker with this store does.
async fn put(world: &World, store: &Store, user: &str, expires_at_ms: i64) {
    let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap().id;
    let pair = login(&world.scm.authorize_until(user, expires_at_ms), expires_at_ms);
    let account = AccountNames { auth_id: user.to_owned(), auth_name: None };
    let now = store.now().await.unwrap();
    store.put_login(user, provider, &account, &pair, false, now).await.unwrap();
}
