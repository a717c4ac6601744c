//! A world of its own for one test.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::{ActiveModelTrait, ConnectionTrait, DatabaseConnection, EntityTrait, IntoActiveModel};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokenkeeper::app::lifecycle::Stop;
use tokenkeeper::domain::clock::{Clock, ManualClock, SystemClock, Timestamp};
use tokenkeeper::domain::provider::{Overrides, ProviderRecord};
use tokenkeeper::domain::secret::{Binding, Format, KeyRing, SecretString};
use tokenkeeper::settings::Settings;
use tokenkeeper::store::database::{self, Opened};
use tokenkeeper::store::{Entry, Found, Store};
use tokenkeeper::worker::{TimeSource, Worker};
use tokenkeeper_entity::token_entry;
use tokenkeeper_testkit::database::{Kind, Schema, TestDatabase};
use tokenkeeper_testkit::queues::{BasicProperties, PendingReply, TOKEN_REQUEST, TOKEN_STORE, TestBroker};
use tokenkeeper_testkit::scm::{Dialect, IssuedPair, ScmOptions, SimulatedScm};
use tokio::sync::OnceCell;

use super::evidence::Evidence;
use super::in_process::InProcessWorker;
use super::{logs, process::WorkerProcess};

/// A store that runs grouped statements as a worker's does.
pub(crate) async fn store_of(settings: &Settings, db: DatabaseConnection) -> Store {
    let opened = Opened::from(db.clone());
    let grouped = database::open_grouped(&settings.database, &opened).await.expect("open another pool");
    Store::new(db, settings.key_ring().expect("keys")).with_grouped(grouped)
}

/// Migrates an empty database. On MariaDB only the first world of a process waits for that: the others copy its tables.
async fn migrate(kind: Kind, db: &DatabaseConnection) {
    static MIGRATED: OnceCell<Schema> = OnceCell::const_new();
    let mut is_first = false;
    if kind == Kind::MariaDb {
        let schema = MIGRATED.get_or_init(async || {
            is_first = true;
            database::migrate(db).await.expect("migrate the database");
            Schema::of(db).await
        });
        let schema = schema.await;
        if !is_first {
            schema.make_in(db).await;
        }
    } else {
        database::migrate(db).await.expect("migrate the database");
    }
}

/// A database, queues and an SCM for one test alone. When it ends, everything that its workers left behind is searched for its
/// secrets (`evidence.rs`).
pub(crate) struct World {
    pub(crate) broker: TestBroker,
    pub(crate) scm: SimulatedScm,
    pub(crate) store: Store,
    pub(crate) keys: String,
    /// What its workers wrote, sent and kept so far.
    pub(super) evidence: Evidence,
    /// How much of the log was there before.
    pub(super) log_began: usize,
    /// Whether a test has put secrets where none may be.
    pub(super) has_planted: AtomicBool,
    /// Dropped with the world.
    pub(super) database: TestDatabase,
    /// Settings of this world's workers, as environment variables.
    pub(super) environment: HashMap<String, String>,
}

impl World {
    /// A world whose SCM behaves as the dialect does by itself.
    pub(crate) async fn new(kind: Kind, dialect: Dialect) -> Self {
        Self::with_scm(kind, ScmOptions::new(dialect)).await
    }

    /// A world in which everybody's clock is `clock`: the worker's by itself, the SCM's here.
    pub(crate) async fn at(kind: Kind, dialect: Dialect, clock: &Arc<ManualClock>) -> Self {
        let clock = Arc::clone(clock);
        let options =
            ScmOptions { clock: Arc::new(move || clock.now().as_millis()), ..ScmOptions::new(dialect) };
        Self::with_scm(kind, options).await
    }

    /// A world with this SCM, applied as a provider with its kind's defaults.
    pub(crate) async fn with_scm(kind: Kind, options: ScmOptions) -> Self {
        // Boxed: it is large, and every test would carry its size.
        Box::pin(Self::make(kind, TestDatabase::create(kind), options)).await
    }

    /// A world on an empty database of a server of the test's own, which must outlive the world.
    pub(crate) async fn on(kind: Kind, url: String, dialect: Dialect) -> Self {
        let database = std::future::ready(TestDatabase::at(url));
        Box::pin(Self::make(kind, database, ScmOptions::new(dialect))).await
    }

    async fn make(kind: Kind, database: impl Future<Output = TestDatabase>, options: ScmOptions) -> Self {
        logs::capture();
        let log_began = logs::captured_len();
        let scm = SimulatedScm::start(options).await;
        let (broker, database) = tokio::join!(TestBroker::connect(), database);
        let keys = KeyRing::generate("test").expose_secret().to_owned();
        let environment = HashMap::from([
            ("AMQP_URL".to_owned(), broker.url().to_owned()),
            ("DATABASE_URL".to_owned(), database.url().to_owned()),
            ("TOKENKEEPER_KEYS".to_owned(), keys.clone()),
            ("TOKENKEEPER__BROKER__PREFIX".to_owned(), broker.prefix().to_owned()),
            ("TOKENKEEPER__ADMIN__LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            // A stream a world would double the suite's time. The tests of the journal have one.
            ("TOKENKEEPER__BROKER__JOURNAL_MAX_AGE_SECS".to_owned(), "0".to_owned()),
            ("TOKENKEEPER__DATABASE__MAX_CONNECTIONS".to_owned(), "8".to_owned()),
            ("TOKENKEEPER__LOG__LEVEL".to_owned(), "trace".to_owned()),
            ("TOKENKEEPER__LOG__FORMAT".to_owned(), "json".to_owned()),
        ]);
        let settings = Settings::load_from(None, environment.clone()).expect("settings of the test");
        let db = database::open(&settings.database).await.expect("open the database");
        migrate(kind, &db).await;
        let store = store_of(&settings, db).await;
        let (evidence, has_planted) = (Evidence::default(), AtomicBool::new(false));
        let world =
            Self { broker, scm, store, keys, evidence, log_began, has_planted, database, environment };
        world.apply_provider(|_| {}).await;
        world
    }

    /// Changes a setting of the workers that are started from here on.
    #[allow(clippy::needless_pass_by_value, reason = "a number reads better without an ampersand")]
    pub(crate) fn set(&mut self, key: &str, value: impl ToString) -> &mut Self {
        let variable = format!("TOKENKEEPER__{}", key.replace('.', "__").to_uppercase());
        if key == "broker.partitions" {
            self.broker.expect_partitions(value.to_string().parse().expect("a number of partitions"));
        }
        self.environment.insert(variable, value.to_string());
        self
    }

    /// Changes where the workers that are started from here on find their broker.
    pub(crate) fn set_broker_url(&mut self, url: String) -> &mut Self {
        self.environment.insert("AMQP_URL".to_owned(), url);
        self
    }

    /// The settings of this world's workers, as environment variables.
    pub(crate) fn environment(&self) -> &HashMap<String, String> {
        &self.environment
    }

    /// The settings of this world's workers.
    pub(crate) fn settings(&self) -> Settings {
        Settings::load_from(None, self.environment.clone()).expect("settings of the test")
    }

    // --- Providers and tokens ---

    /// Applies this world's SCM as a provider, changed as the test wants it.
    pub(crate) async fn apply_provider(&self, change: impl FnOnce(&mut ProviderRecord)) {
        self.apply(&self.scm, change).await;
    }

    /// Applies an SCM as a provider.
    pub(crate) async fn apply(&self, scm: &SimulatedScm, change: impl FnOnce(&mut ProviderRecord)) {
        let text: toml::Table = scm.provider_toml("").parse().expect("a provider block");
        let block = &text["provider"][0];
        let get = |key: &str| block.get(key).and_then(toml::Value::as_str);
        let mut record = ProviderRecord {
            host: scm.host(),
            kind: get("kind").unwrap().parse().unwrap(),
            client_id: scm.client_id().to_owned(),
            client_secret: scm.client_secret().to_owned().into(),
            token_url: get("token_url").map(|url| url.parse().unwrap()),
            client_auth: get("client_auth").map(|auth| auth.parse().unwrap()),
            redirect_uri: get("redirect_uri").map(str::to_owned),
            username: None,
            opportunistic_refresh: None,
            opportunistic_refresh_window_secs: None,
            required_while_reserved: None,
            max_concurrent_refreshes: None,
            spare_client_secrets: Vec::new(),
            overrides: Overrides::default(),
        };
        change(&mut record);
        self.store.put_provider(&record, SystemClock.now()).await.expect("apply the provider");
    }

    /// Publishes a pair, as a login flow does, and sees it stored.
    pub(crate) async fn store_pair(&self, pair: &IssuedPair) {
        let reply = self.broker.request(TOKEN_STORE, self.scm.token_store_body(pair)).await;
        assert_eq!(reply.body, json!({"status": "ok"}));
    }

    /// A user with a stored pair that lives for two hours.
    pub(crate) async fn user_with_token(&self, user: &str) -> IssuedPair {
        let pair = self.scm.authorize(user);
        self.store_pair(&pair).await;
        pair
    }

    /// A user with a stored pair that has expired.
    pub(crate) async fn user_with_expired_token(&self, user: &str) -> IssuedPair {
        let pair = self.scm.authorize_until(user, self.scm.now_ms() - 1000);
        self.store_pair(&pair).await;
        pair
    }

    // --- Requests ---

    /// The broker's user that this world's requests come from: what they may carry as the property `user_id`.
    pub(crate) fn publisher(&self) -> String {
        let url = url::Url::parse(self.broker.url()).expect("the broker's URL");
        if url.username().is_empty() { "guest".to_owned() } else { url.username().to_owned() }
    }

    /// The body of a `token.request` for this world's SCM.
    pub(crate) fn token_request(&self, user: &str) -> Value {
        json!({"user_id": user, "host": self.scm.host()})
    }

    /// Requests a token and gives back the reply's body.
    pub(crate) async fn request(&self, user: &str) -> Value {
        self.broker.request(TOKEN_REQUEST, self.token_request(user)).await.body
    }

    /// Requests a token for this many seconds.
    pub(crate) async fn request_for(&self, user: &str, secs: u64) -> Value {
        let mut body = self.token_request(user);
        body["requested_lifetime_secs"] = secs.into();
        self.broker.request(TOKEN_REQUEST, body).await.body
    }

    /// Publishes a request for a token, and gives it back before its reply has come.
    pub(crate) async fn send(&self, user: &str) -> PendingReply {
        self.send_with(user, BasicProperties::default()).await
    }

    /// The same with these properties.
    pub(crate) async fn send_with(&self, user: &str, properties: BasicProperties) -> PendingReply {
        self.broker.send(TOKEN_REQUEST, self.token_request(user).to_string(), properties).await
    }

    /// Publishes a request for a token to the user's partition, and gives it back before its reply has come.
    pub(crate) async fn send_to_partition(&self, user: &str) -> PendingReply {
        let body = self.token_request(user).to_string();
        self.broker.send_to_partition("token-requests", user, body, BasicProperties::default()).await
    }

    /// Publishes so many requests at once.
    pub(crate) async fn send_many(&self, user: &str, count: usize) -> Vec<PendingReply> {
        join_all((0..count).map(|_| self.send(user))).await
    }

    /// The entry of a user at this world's SCM, as it is stored.
    pub(crate) async fn entry(&self, user: &str) -> Entry {
        let provider = self.store.provider(&self.scm.host()).await.unwrap().expect("the provider is there");
        match self.store.find(user, provider.id).await.unwrap() {
            Found::Entry(entry) => Arc::unwrap_or_clone(entry),
            other => panic!("{user} has no token: {other:?}"),
        }
    }

    /// Rewrites a user's row as the version before sealed it: in format 1, whose columns can be changed from outside. A worker
    /// opens it with the setting `encryption.accept_format_1`.
    pub(crate) async fn rewrite_in_format_1(&self, user: &str, change: impl FnOnce(&mut token_entry::Model)) {
        let (entry, db) = (self.entry(user).await, self.connection().await);
        let mut row = token_entry::Entity::find_by_id(entry.id).one(&db).await.unwrap().expect("it is there");
        let keys = KeyRing::parse(&self.keys).expect("keys");
        keys.seal_in(Format::One);
        let seal = |token: &SecretString, column: &str| {
            let place = format!("token_entry/{column}/{}/{}", entry.identity_id, entry.generation);
            keys.seal(token, Binding::new("token_entry", column).in_format_1(place)).bytes
        };
        let access = self.store.open_access_token(&entry).expect("the access token");
        let refresh = self.store.open_refresh_token(&entry).expect("the refresh token");
        row.access_token_sealed = seal(&access, "access_token_sealed");
        row.refresh_token_sealed = refresh.map(|token| seal(&token, "refresh_token_sealed"));
        row.record_mac = None;
        change(&mut row);
        row.into_active_model().reset_all().update(&db).await.expect("write the row");
    }

    /// A store as another worker has it.
    pub(crate) async fn another_store(&self) -> Store {
        store_of(&self.settings(), self.connection().await).await
    }

    /// A connection of the test's own to this world's database, for what the store does not offer.
    pub(crate) async fn connection(&self) -> DatabaseConnection {
        database::open(&self.settings().database).await.expect("open the database")
    }

    /// Lets workers start without the keys that rows need: as if nobody had ever said that these are in use.
    pub(crate) async fn forget_keys_in_use(&self) {
        let db = self.connection().await;
        for table in ["key_canary", "worker"] {
            db.execute_unprepared(&format!("DELETE FROM {table}")).await.expect("forget the keys in use");
        }
    }

    // --- Workers ---

    /// Starts a worker inside this process.
    pub(crate) async fn start_worker(&self) -> InProcessWorker {
        self.start_worker_in(own_time(SystemClock)).await
    }

    /// Starts a worker inside this process that lives by this clock, whatever the database's shows.
    pub(crate) async fn start_worker_at(&self, clock: Arc<dyn Clock>) -> InProcessWorker {
        self.start_worker_in(TimeSource::Given(clock)).await
    }

    /// Starts a worker inside this process with this idea of time.
    pub(crate) async fn start_worker_in(&self, time: TimeSource) -> InProcessWorker {
        let worker = self.try_start_worker_in(time).await.expect("the worker starts");
        worker.wait_until_ready().await;
        worker
    }

    /// Starts a worker inside this process, and does not wait: what it needs to be ready may be away.
    pub(crate) async fn launch_worker(&self) -> InProcessWorker {
        self.try_start_worker().await.expect("the worker starts")
    }

    /// Starts a worker inside this process, or says why it does not start.
    pub(crate) async fn try_start_worker(&self) -> anyhow::Result<InProcessWorker> {
        self.try_start_worker_in(own_time(SystemClock)).await
    }

    /// Starts a worker inside this process with this idea of time, or says why it does not start.
    pub(crate) async fn try_start_worker_in(&self, time: TimeSource) -> anyhow::Result<InProcessWorker> {
        let stop = Stop::default();
        let worker = Worker::start(self.settings(), time, None, stop.clone()).await?;
        let worker = worker.expect("nobody told it to stop");
        Ok(InProcessWorker::new(worker, stop, self.evidence.clone(), self.files_of_workers()))
    }

    /// Starts the real binary, and waits until it is ready.
    pub(crate) async fn spawn_worker(&self) -> WorkerProcess {
        WorkerProcess::spawn(self).await
    }

    /// Starts the real binary, and does not wait: what it needs to be ready may be away.
    pub(crate) async fn launch_worker_process(&self) -> WorkerProcess {
        WorkerProcess::launch(self).await
    }

    /// Starts the real binary so many times, and waits until all are ready.
    pub(crate) async fn spawn_workers(&self, count: usize) -> Vec<WorkerProcess> {
        join_all((0..count).map(|_| self.spawn_worker())).await
    }
}

/// The database's time, on a machine whose clock is `own`.
pub(crate) fn own_time(own: impl Clock) -> TimeSource {
    TimeSource::Database { own: Arc::new(own) }
}

/// A date of the simulated day: minutes after 2020-01-01T00:00Z.
pub(crate) fn minutes(minutes: u64) -> Timestamp {
    Timestamp::parse_rfc3339("2020-01-01T00:00:00Z").unwrap().plus(Duration::from_secs(minutes * 60))
}
