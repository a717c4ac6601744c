//! What the story plays on: an SCM, queues, a database and two workers, set up as an operator does it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokenkeeper_testkit::{
    program::{Program, Worker, write_private},
    queues::{BasicProperties, PendingReply, TOKEN_REQUEST, TOKEN_STORE, TestBroker, WORKSPACE_START},
    scm::{Dialect, IssuedPair, ScmOptions, SimulatedScm},
    wait::{PATIENCE, eventually},
};
use url::Url;

use crate::{
    counters::Counters,
    grant::{Grant, Token},
    narrator::{Actor, Narrator},
};

/// What there is to clone.
pub(crate) const PROJECT: &str = "platform";
pub(crate) const REPOSITORY: &str = "shop";
pub(crate) const REPOSITORY_BYTES: usize = 4 * 1024 * 1024;

/// How long the SCM's tokens live.
pub(crate) const TOKEN_LIFETIME: Duration = Duration::from_hours(2);

/// Everything that runs while the story is told. It ends when this is dropped: the workers first, then their queues.
pub(crate) struct Stage {
    pub(crate) workers: [Worker; 2],
    pub(crate) broker: TestBroker,
    pub(crate) scm: SimulatedScm,
    pub(crate) folder: PathBuf,
    /// The encryption key, which nobody must see either.
    key: String,
    /// How many tokens were handed out, by what their replies say in `refresh`.
    pub(crate) granted: BTreeMap<String, usize>,
}

/// Requests that are under way.
pub(crate) struct Asked {
    at_ms: i64,
    replies: Vec<PendingReply>,
}

impl Stage {
    /// Sets everything up, and tells how.
    pub(crate) async fn set_up(say: &mut Narrator, folder: &Path) -> Result<Self> {
        let scm = SimulatedScm::start(ScmOptions {
            token_lifetime: TOKEN_LIFETIME,
            ..ScmOptions::new(Dialect::BitbucketServer)
        })
        .await;
        let host = scm.host();
        say.tell(Actor::Scm, &format!("a simulated Bitbucket Server at {host}; its tokens live for 2 h"))?;
        scm.create_repo(PROJECT, REPOSITORY, REPOSITORY_BYTES).await;
        let broker = TestBroker::connect().await;
        let (address, prefix) = (address(broker.url()), broker.prefix());
        say.tell(Actor::Operator, &format!("RabbitMQ at {address}, queues {prefix}.*; an SQLite file"))?;

        let mut tokenkeeper = program(folder, &broker)?;
        write_private(&folder.join("provider.toml"), &scm.provider_toml(""))
            .context("write provider.toml")?;

        let mut done =
            |command, what| say.checked(Actor::Operator, &format!("$ tokenkeeper {command:<30} {what}"));
        let key = tokenkeeper.run(&["keys", "generate"]).await?.trim().to_owned();
        tokenkeeper.set("TOKENKEEPER_KEYS", &key);
        done("keys generate", "for what is encrypted at rest")?;
        tokenkeeper.run(&["migrate", "up"]).await?;
        done("migrate up", "the tables are there")?;
        tokenkeeper.run(&["provider", "apply", "provider.toml"]).await?;
        done("provider apply provider.toml", "the SCM is known")?;
        let workers =
            tokio::try_join!(tokenkeeper.start_worker("worker-1"), tokenkeeper.start_worker("worker-2"))?;
        done("worker", "twice; both are ready")?;
        let (folder, granted) = (folder.to_owned(), BTreeMap::new());
        Ok(Self { workers: workers.into(), broker, scm, folder, key, granted })
    }

    // --- Upstream ---

    /// Publishes a pair as a login flow does; gives back the reply.
    pub(crate) async fn store(&self, pair: &IssuedPair) -> Value {
        self.broker.request(TOKEN_STORE, self.scm.token_store_body(pair)).await.body
    }

    /// A user whose pair is stored and whose access token is fresh.
    pub(crate) async fn user_with_token(&self, user: &str) -> Result<Token> {
        self.stored(&self.scm.authorize(user)).await
    }

    /// A user whose pair is stored and whose access token expired a minute ago.
    pub(crate) async fn user_with_expired_token(&self, user: &str) -> Result<Token> {
        self.stored(&self.scm.authorize_until(user, self.scm.now_ms() - 60_000)).await
    }

    async fn stored(&self, pair: &IssuedPair) -> Result<Token> {
        let reply = self.store(pair).await;
        ensure!(reply["status"] == "ok", "the pair of {} was not stored: {reply}", pair.user);
        Ok(Token::new(&pair.access_token))
    }

    /// Asks for a token and waits for it.
    pub(crate) async fn ask(&mut self, user: &str, lifetime: Duration) -> Result<Grant> {
        let asked = self.begin_asking(1, user, lifetime).await;
        let grants = self.answers(asked).await?;
        grants.into_iter().next().context("no reply")
    }

    /// Asks this many times at once and does not wait.
    pub(crate) async fn begin_asking(&self, times: usize, user: &str, lifetime: Duration) -> Asked {
        let request = json!({
            "user_id": user, "host": self.scm.host(), "requested_lifetime_secs": lifetime.as_secs(),
        })
        .to_string();
        let at_ms = self.scm.now_ms();
        let sent = (0..times).map(|_| self.broker.send(TOKEN_REQUEST, &request, BasicProperties::default()));
        Asked { at_ms, replies: join_all(sent).await }
    }

    /// What came of requests.
    pub(crate) async fn answers(&mut self, asked: Asked) -> Result<Vec<Grant>> {
        let scm = &self.scm;
        let answers = asked.replies.into_iter().map(async |pending| {
            let reply = pending.reply().await.body;
            Grant::read(&reply, asked.at_ms, scm.now_ms())
        });
        let grants = join_all(answers).await.into_iter().collect::<Result<Vec<_>>>()?;
        for grant in &grants {
            self.count(grant);
        }
        Ok(grants)
    }

    /// Starts a workspace with one repository; gives back its token.
    pub(crate) async fn start_workspace(
        &mut self,
        user: &str,
        clone_url: &str,
        lifetime: Duration,
    ) -> Result<Grant> {
        let asked_at_ms = self.scm.now_ms();
        let request = json!({
            "workspace_id": "ws-1", "user_id": user, "repositories": [clone_url],
            "requested_lifetime_secs": lifetime.as_secs(),
        });
        let reply = self.broker.request(WORKSPACE_START, request).await.body;
        let grant = Grant::read(&reply["tokens"][0], asked_at_ms, self.scm.now_ms())?;
        self.count(&grant);
        Ok(grant)
    }

    fn count(&mut self, grant: &Grant) {
        *self.granted.entry(grant.refresh.clone()).or_default() += 1;
    }

    // --- The workers ---

    /// What both workers have counted.
    pub(crate) async fn counters(&self) -> Result<[Counters; 2]> {
        let [one, two] = &self.workers;
        let (one, two) = tokio::try_join!(one.metrics(), two.metrics())?;
        Ok([Counters::parse(&one)?, Counters::parse(&two)?])
    }

    /// Waits until the numbers of messages that the workers have in hand are like this.
    pub(crate) async fn wait_until(&self, are_like_this: impl Fn([usize; 2]) -> bool) -> Result<[usize; 2]> {
        let looking = async || match self.in_hand().await {
            Ok(in_hand) if !are_like_this(in_hand) => None,
            looked => Some(looked),
        };
        eventually("the workers to have the messages in hand that were told of", PATIENCE, looking).await
    }

    async fn in_hand(&self) -> Result<[usize; 2]> {
        let [one, two] = self.counters().await?;
        let in_hand = |counters: Counters| counters.sum("tokenkeeper_messages_in_flight", &[]);
        Ok([in_hand(one)?, in_hand(two)?])
    }

    /// Everything that must not be seen outside of a reply.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let key = self.key.split_once(':').map_or(self.key.as_str(), |(_, key)| key);
        self.scm.secrets().into_iter().chain([key.to_owned()]).collect()
    }

    /// The bytes of the database's files.
    pub(crate) fn database(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for file in fs::read_dir(&self.folder).context("look into the folder")? {
            let path = file?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tokenkeeper.db")) {
                bytes.extend(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
            }
        }
        Ok(bytes)
    }
}

/// The program, set up for this story alone.
fn program(folder: &Path, broker: &TestBroker) -> Result<Program> {
    let mut program = Program::beside_this_one(folder)?;
    program.set("AMQP_URL", broker.url());
    program.set("TOKENKEEPER__BROKER__PREFIX", broker.prefix());
    program.set("TOKENKEEPER__ADMIN__LISTEN", "127.0.0.1:0");
    program.set("TOKENKEEPER__LOG__FORMAT", "json");
    program.set("TOKENKEEPER__LOG__LEVEL", "debug");
    Ok(program)
}

/// Whether `text` stands anywhere in `bytes`.
pub(crate) fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Host and port, without user and password.
fn address(url: &str) -> String {
    let url = Url::parse(url).ok();
    let host = url.as_ref().and_then(Url::host_str).unwrap_or("127.0.0.1");
    format!("{host}:{}", url.as_ref().and_then(Url::port).unwrap_or(5672))
}
