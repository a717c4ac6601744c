//! Commands where there is no database file, and where a newer version migrated the database.

use sea_orm::ConnectionTrait;

use super::Cli;
use crate::harness::{Dialect, Kind, World, on_every_database};

#[tokio::test]
async fn a_command_that_needs_a_database_file_says_that_there_is_none_and_makes_none() {
    let keys = tokenkeeper::domain::secret::KeyRing::generate("test");
    let cli = Cli::with([])
        .set("DATABASE_URL", "sqlite://here%20not.db")
        .set("TOKENKEEPER_KEYS", secrecy::ExposeSecret::expose_secret(&keys));
    cli.write("empty.jsonl", "");
    for arguments in [
        &["token", "list"][..],
        &["token", "show", "--user", "u-1", "--host", "git.example.org"],
        &["token", "import", "empty.jsonl"],
        &["provider", "list"],
        &["provider", "remove", "git.example.org"],
        &["housekeeping", "--dry-run"],
        &["housekeeping"],
        &["keys", "status"],
        &["keys", "rotate"],
        &["migrate", "status"],
        &["migrate", "down"],
    ] {
        let ended = cli.run(arguments).await.with_code(1).says("error: there is no database file ");
        assert!(
            ended.stderr.ends_with("next: tokenkeeper migrate up, which makes it, or correct database.url\n"),
            "{arguments:?}: {}",
            ended.stderr
        );
        assert_eq!((ended.stdout.as_str(), ended.stderr.lines().count()), ("", 1), "{arguments:?}");
        let left: Vec<_> =
            std::fs::read_dir(cli.folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["empty.jsonl"], "{arguments:?}");
    }
    cli.run(&["migrate", "up"]).await.good();
    assert!(cli.folder.path().join("here not.db").exists());
    cli.run(&["token", "list"]).await.good();
}

on_every_database! {
    async fn a_database_of_a_newer_version_is_told_by_every_command_and_left_as_it_is(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29990101_000001_later', 1)";
        world.connection().await.execute_unprepared(newer).await.unwrap();
        // As on SQLite, where it is the default.
        let cli = Cli::of(&world).set("TOKENKEEPER__DATABASE__MIGRATE_AT_START", "true");
        for arguments in [
            &["migrate", "status"][..],
            &["migrate", "up"],
            &["migrate", "down"],
            &["token", "list"],
            &["provider", "list"],
        ] {
            let ended = cli.run(arguments).await.with_code(1).keeps_secrets_of(&world);
            let told = "has 1 migration that this version does not know (database.url): a newer version of \
                        tokenkeeper migrated it; next: run that version or a newer one";
            assert!(ended.stderr.contains(told), "{arguments:?}: {}", ended.stderr);
            assert_eq!(ended.stderr.lines().count(), 1, "{arguments:?}: {}", ended.stderr);
        }
        if kind == Kind::Sqlite {
            let ended = cli.run(&["worker"]).await.with_code(1);
            let last = ended.stderr.lines().last().unwrap();
            assert!(last.contains("has 1 migration that this version does not know"), "{last}");
        }
    }
}
