//! Everything that scenarios share: the systems, each with its queues and its database, and the token endpoint.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokenkeeper_testkit::{database::Kind, program::Program, queues::TestBroker};

use crate::{
    endpoint::Endpoint,
    load::{Amount, Ask, Pace, SEEDED_USERS, Users},
    options::Options,
    progress::Progress,
    statements::version as version_of,
    system::{BITBUCKETS, GITHUB, Install, System},
};

/// How many requests are under way while every user is asked for once.
const FIRST_PASS: Pace = Pace::InFlight(64);

/// What scenarios play on.
pub(crate) struct World<'a> {
    pub(crate) options: &'a Options,
    pub(crate) endpoint: Endpoint,
    pub(crate) echo: System,
    pub(crate) grouped: System,
    /// Every version on every database, with hot users: PostgreSQL first, and the measured version before others.
    pub(crate) tokenkeepers: Vec<System>,
    /// The databases' versions.
    pub(crate) databases: Vec<String>,
    folder: &'a Path,
}

impl<'a> World<'a> {
    pub(crate) async fn open(options: &'a Options, folder: &'a Path, progress: &Progress) -> Result<Self> {
        let endpoint = Endpoint::start().await?;
        let (echo, grouped) = (System::echo(false).await, System::echo(true).await);
        let mut world = Self {
            options,
            endpoint,
            echo,
            grouped,
            tokenkeepers: Vec::new(),
            databases: Vec::new(),
            folder,
        };
        for kind in options.databases() {
            for version in world.versions()? {
                let system = world.install(version, kind, None).await?;
                progress.step(&format!("{}: {} users log in at 3 hosts", system.name, options.hot_users()));
                world.log_in(&system).await?;
                if let Some(install) = system.install().filter(|install| install.version.is_none()) {
                    world.databases.push(version_of(kind, install.database.url()).await?);
                }
                world.tokenkeepers.push(system);
            }
        }
        Ok(world)
    }

    /// Sets one more tokenkeeper up, on an empty database.
    pub(crate) async fn install(
        &self,
        (version, path): (Option<String>, PathBuf),
        kind: Kind,
        remark: Option<&str>,
    ) -> Result<System> {
        let name = [Some(kind.to_string()), version.clone(), remark.map(str::to_owned)];
        let name = name.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let broker = TestBroker::connect().await;
        let install =
            Install::new((version, &path), kind, &broker, self.folder, &self.endpoint, self.options.stall())
                .await?;
        Ok(System::tokenkeeper(name, broker, install))
    }

    /// The measured program, and those that it is compared with.
    pub(crate) fn versions(&self) -> Result<Vec<(Option<String>, PathBuf)>> {
        let own = match &self.options.worker {
            Some(path) => path.clone(),
            None => Program::beside_this_one(self.folder)?.path().to_owned(),
        };
        let others = self.options.also.iter().map(|(name, path)| (Some(name.clone()), path.clone()));
        let versions = [(None, own)].into_iter().chain(others);
        // They run in folders of their own.
        let absolute =
            |path: PathBuf| path.canonicalize().with_context(|| format!("find {}", path.display()));
        versions.map(|(name, path)| Ok((name, absolute(path)?))).collect()
    }

    /// Every version on this database.
    pub(crate) fn on(&self, kind: Kind) -> impl Iterator<Item = &System> {
        self.tokenkeepers
            .iter()
            .filter(move |system| system.install().is_some_and(|install| install.kind == kind))
    }

    /// The hot users' requests.
    pub(crate) fn hot(&self) -> Ask {
        Ask::Token { host: BITBUCKETS[0], users: Users::random(0, self.options.hot_users()) }
    }

    /// Users whose tokens have expired, one after the other.
    pub(crate) fn expired(&self) -> Ask {
        Ask::Token { host: GITHUB, users: Users::in_turn(SEEDED_USERS, self.expired_users()) }
    }

    /// How many there are: more than are asked for in one round.
    pub(crate) fn expired_users(&self) -> usize {
        self.options.scaled(30_000, 600)
    }

    /// Users log in, and every token is asked for once: it is refreshed then, and reserved from then on.
    pub(crate) async fn log_in(&self, system: &System) -> Result<()> {
        let users = self.options.hot_users();
        system.install().context("tokenkeeper")?.log_in(users).await?;
        let running = system.start(1).await?;
        let mut load = system.generator(0).await?;
        for host in BITBUCKETS {
            let ask = Ask::Token { host, users: Users::in_turn(0, users) };
            load.run(&ask, FIRST_PASS, Amount::of_requests(users as u64), |_| ()).await?;
        }
        load.close().await?;
        running.stop().await.map(drop)
    }
}
