//! `tokenkeeper migrate`, on a database of each kind. Without encryption keys throughout.

use tokenkeeper::settings::Settings;
use tokenkeeper::store::database::{self, Migrating};
use tokenkeeper_migration::{Migrator, MigratorTrait};
use tokenkeeper_testkit::database::TestDatabase;
use tokenkeeper_testkit::wait::{PATIENCE, within};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{Cli, ended, signal};
use crate::harness::{Dialect, Kind, World, on_every_database};
use crate::migrations::since_the_tokens;

async fn empty(kind: Kind) -> (TestDatabase, Cli) {
    let database = TestDatabase::create(kind).await;
    if let Some(file) = database.url().strip_prefix("sqlite://") {
        // A file without a byte is an empty database.
        std::fs::write(file.split('?').next().unwrap(), "").unwrap();
    }
    let cli = Cli::with([("DATABASE_URL".to_owned(), database.url().to_owned())]);
    (database, cli)
}

async fn statuses(cli: &Cli) -> Vec<String> {
    let ended = cli.run(&["migrate", "status"]).await.good();
    ended.table().into_iter().skip(1).map(|cells| cells[1].to_owned()).collect()
}

on_every_database! {
    async fn migrations_are_applied_and_taken_back_and_applied_again(kind: Kind) {
        let (_database, cli) = empty(kind).await;
        let pending = statuses(&cli).await;
        assert!(pending.len() >= 3 && pending.iter().all(|status| status == "pending"), "{pending:?}");

        cli.run(&["migrate", "up"]).await.good();
        assert!(statuses(&cli).await.iter().all(|status| status == "applied"));
        let again = cli.run(&["migrate", "up"]).await.good();
        assert!(again.stdout.contains("nothing to do"), "{again:?}");

        let down = cli.run(&["migrate", "down"]).await.good();
        let newest = Migrator::migrations().last().map(|migration| migration.name().to_owned()).unwrap();
        assert_eq!(down.table()[1][..2], [&newest, "pending"]);
        assert_eq!(statuses(&cli).await.last().unwrap(), "pending");
        cli.run(&["migrate", "up"]).await.good();

        let down = cli.run(&["migrate", "down", "--steps", "99"]).await.good();
        assert!(down.stdout.contains("table token_entry"), "{down:?}");
        let nothing = cli.run(&["migrate", "down"]).await.good();
        assert!(nothing.stdout.contains("nothing to do"), "{nothing:?}");
        cli.run(&["migrate", "up"]).await.good();
        cli.run(&["token", "list"]).await.good();
    }

    async fn undoing_the_migration_of_tokens_asks_first_and_leaves_providers_and_identities(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;
        worker.stop().await;
        let cli = Cli::of(&world);

        let steps = since_the_tokens().to_string();
        let down = ["migrate", "down", "--steps", &steps];
        let refused = cli.run_with_input(&down, "yes\n").await.with_code(2);
        refused.says("table token_entry (1 row)").says("--yes");
        let declined = cli.run_in_terminal(&down, "y").await.with_code(1);
        assert!(declined.stdout.contains("Nothing was changed."), "{declined:?}");
        assert!(statuses(&cli).await.iter().all(|status| status == "applied"));

        let down = cli.run(&["migrate", "down", "--yes", "--steps", &steps]).await.good();
        assert!(down.stdout.contains("table token_entry"), "{down:?}");
        cli.run(&["migrate", "up"]).await.good();

        let shown = cli.run(&["token", "show", "--user", "jdoe", "--host", &world.scm.host()]).await.good();
        assert_eq!(shown.value("token"), "none");
        assert!(cli.run(&["provider", "list"]).await.good().stdout.contains(&world.scm.host()));
    }

    async fn migrate_fresh_drops_everything_and_only_with_the_option_yes(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;
        worker.stop().await;
        let cli = Cli::of(&world);

        cli.run_with_input(&["migrate", "fresh"], "yes\n").await.with_code(2).says("--yes");
        assert!(cli.run(&["token", "list"]).await.good().stdout.contains("jdoe"));

        cli.run(&["migrate", "fresh", "--yes"]).await.good();
        assert!(statuses(&cli).await.iter().all(|status| status == "applied"));
        cli.run(&["provider", "list"]).await.good().says("There are no providers");
        cli.run(&["token", "list"]).await.good().says("There are no identities");
    }
}

on_every_database! {
    async fn commands_that_migrate_at_once_wait_for_each_other(kind: Kind) {
        let (_database, cli) = empty(kind).await;
        let started: Vec<_> = (0..3).map(|_| cli.start(&["migrate", "up"])).collect();
        let mut applied = 0;
        for child in started {
            applied += ended(child).await.good().stdout.matches(" applied\n").count();
        }
        assert!(applied >= Migrator::migrations().len(), "each was applied by one of them: {applied}");
        assert!(statuses(&cli).await.iter().all(|status| status == "applied"));
        cli.run(&["token", "list"]).await.good().says("There are no identities");
    }
}

#[tokio::test]
async fn a_command_that_waits_for_another_migration_says_so_and_can_be_interrupted() {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let (database, cli) = empty(kind).await;
        let settings =
            Settings::load_from(None, [("DATABASE_URL".to_owned(), database.url().to_owned())].into());
        let db = database::open(&settings.unwrap().database).await.unwrap();
        let migrating = Migrating::begin(&db, || {}).await.unwrap();
        let [interrupted, patient] = [(); 2].map(|()| cli.start(&["migrate", "up"]));
        let mut said = [interrupted, patient]
            .map(|mut child| (BufReader::new(child.stderr.take().unwrap()).lines(), child));
        for (lines, _) in &mut said {
            let line = within("it to say that it waits", PATIENCE, lines.next_line()).await.unwrap();
            assert!(line.unwrap().contains("waiting for it to finish"));
        }
        let [(mut lines, interrupted), (_, patient)] = said;

        signal(&interrupted, "INT").await;
        ended(interrupted).await.with_code(130);
        lines.next_line().await.unwrap();
        assert!(lines.next_line().await.unwrap().unwrap().contains("nothing was changed"));
        assert!(statuses(&cli).await.iter().all(|status| status == "pending"));

        migrating.end().await;
        ended(patient).await.good();
        assert!(statuses(&cli).await.iter().all(|status| status == "applied"));
    }
}

#[tokio::test]
async fn work_on_old_tables_is_refused_where_migrating_is_an_operators_step() {
    let (_database, cli) = empty(Kind::Postgres).await;
    cli.run(&["token", "list"]).await.with_code(1).says("next: tokenkeeper migrate up");
    let cli = cli.set("TOKENKEEPER__DATABASE__MIGRATE_AT_START", "true");
    cli.run(&["token", "list"]).await.good();
}

#[tokio::test]
async fn a_database_that_is_away_is_named_without_its_password() {
    let cli = Cli::with([
        ("DATABASE_URL".to_owned(), "postgres://me:s3cret@127.0.0.1:1/x".to_owned()),
        ("TOKENKEEPER__DATABASE__ACQUIRE_TIMEOUT_SECS".to_owned(), "1".to_owned()),
    ]);
    let ended = cli.run(&["migrate", "status"]).await.with_code(1).says("postgres://me:***@127.0.0.1:1/x");
    assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
}
