//! `tokenkeeper provider`

use super::Cli;
use crate::harness::{Dialect, Kind, World, on_every_database};

on_every_database! {
    async fn applying_a_file_shows_what_changed_and_never_the_secret(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let cli = Cli::of(&world);
        let host = world.scm.host();
        cli.write("same.toml", &world.scm.provider_toml(""));
        let same = cli.run(&["provider", "apply", "same.toml"]).await.good().keeps_secrets_of(&world);
        assert_eq!(same.table()[1][..2], [&host, "unchanged"]);

        let changed = world.scm.provider_toml("max_concurrent_refreshes = 5\nclient_secret = \"an0ther-secret\"");
        let changed = cli.run_with_input(&["provider", "apply", "-"], &changed).await.good().keeps_secrets_of(&world);
        assert_eq!(changed.table()[1..], [
            vec![&host[..], "updated", "max_concurrent_refreshes", "(default)", "5"],
            vec![&host, "updated", "client_secret", "(secret)", "(another secret)"],
        ]);
        assert!(!changed.stdout.contains("an0ther"), "{changed:?}");

        let another = world.scm.provider_toml("host = \"git.example.org\"");
        let created = cli.run_with_input(&["provider", "apply", "-"], &another).await.good();
        assert_eq!(created.table()[1][..2], ["git.example.org", "created"]);

        let listed = cli.run(&["provider", "list", "--json"]).await.good().keeps_secrets_of(&world).json();
        let hosts: Vec<&str> = listed.as_array().unwrap().iter().map(|one| one["host"].as_str().unwrap()).collect();
        assert_eq!(hosts, [&host, "git.example.org"]);
        assert_eq!(listed[0]["max_concurrent_refreshes"], 5);
        assert_eq!(listed[0]["username"], "x-token-auth", "the kind's default");
        let table = cli.run(&["provider", "list"]).await.good().keeps_secrets_of(&world);
        assert_eq!(table.table()[1][..3], [&host, "bitbucket_server", "yes"]);
    }

    async fn a_provider_with_identities_is_removed_only_with_their_tokens_and_after_a_confirmation(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;
        worker.stop().await;
        let cli = Cli::of(&world);
        let host = world.scm.host();

        cli.run(&["provider", "remove", &host]).await.with_code(1).says("--with-tokens");
        cli.run(&["token", "show", "--user", "jdoe", "--host", &host]).await.good();

        let remove = ["provider", "remove", &host, "--with-tokens"];
        cli.run(&remove).await.with_code(2).says("its identities (1) and their tokens (1)").says("--yes");
        let declined = cli.run_in_terminal(&remove, "no").await.with_code(1);
        assert!(declined.stdout.contains("Nothing was changed."), "{declined:?}");
        cli.run(&["token", "show", "--user", "jdoe", "--host", &host]).await.good();
        cli.run_in_terminal(&remove, "yes").await.good();
        cli.run(&["token", "list"]).await.good().says("There are no identities");
        cli.run(&["provider", "remove", &host]).await.with_code(1).says("no provider has the host");
    }
}

on_every_database! {
    async fn another_client_or_token_endpoint_is_applied_only_after_a_confirmation(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let cli = Cli::of(&world);
        let host = world.scm.host();
        let apply = async |change: &str, options: &[&str]| {
            cli.write("providers.toml", &world.scm.provider_toml(change));
            cli.run(&[&["provider", "apply", "providers.toml"], options].concat()).await
        };
        apply("client_id = \"first\"", &[]).await.good();
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;
        worker.stop().await;

        let moved = apply("client_id = \"second\"", &[]).await.with_code(2).says("--yes");
        moved.says(&format!("{host}: client_id changes from first to second; refresh tokens issued before: 1"));
        let elsewhere = "client_id = \"first\"\ntoken_url = \"https://elsewhere.example.org/token\"\ntoken_hosts = [\"elsewhere.example.org\"]";
        let moved = apply(elsewhere, &[]).await.with_code(2);
        moved.says("the host of token_url changes from 127.0.0.1:").says("to elsewhere.example.org;");
        apply("client_id = \"first\"\nmax_concurrent_refreshes = 5", &[]).await.good();

        let applied = apply("client_id = \"second\"", &["--yes"]).await.good();
        assert!(applied.table().contains(&vec![&host, "updated", "client_id", "first", "second"]), "{applied:?}");
    }
}

#[tokio::test]
async fn a_client_secret_that_was_pasted_behind_the_wrong_key_is_not_repeated() {
    let cli = Cli::with([]);
    for secret in ["0123456789abcdef0123456789abcdef01234567", "Q~8Q~s3cret.s3cret", "/s3cret+s3cret/s3cret="]
    {
        for key in ["client_secret_env", "client_secret_file"] {
            let file = format!(
                "[[provider]]\nhost = \"h\"\nkind = \"github\"\nclient_id = \"id\"\n{key} = \"{secret}\"\n"
            );
            let ended = cli.run_with_input(&["provider", "apply", "-"], &file).await.with_code(1).says(key);
            assert!(!ended.stderr.contains(secret), "{ended:?}");
        }
    }
}

#[tokio::test]
async fn a_file_with_a_mistake_writes_nothing_and_names_block_and_key() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world);
    let good = world.scm.provider_toml("host = \"good.example.org\"");
    let bad = world.scm.provider_toml("host = \"bad.example.org\"\nkind = \"gogs\"\nclient = \"x\"");
    cli.write("providers.toml", &(good + &bad));
    let ended = cli.run(&["provider", "apply", "providers.toml"]).await.with_code(1).keeps_secrets_of(&world);
    let ended = ended
        .says("provider 2 (bad.example.org): `kind` must be one of github,")
        .says("did you mean `client_id`?");
    assert!(ended.stderr.contains("providers.toml; nothing was written"), "{ended:?}");
    assert!(!cli.run(&["provider", "list"]).await.good().stdout.contains("good.example.org"));

    cli.run(&["provider", "apply", "none.toml"]).await.with_code(1).says("none.toml");
}

#[tokio::test]
async fn a_client_secret_may_stand_in_a_variable_or_in_a_file_beside_the_providers() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let toml = world.scm.provider_toml("");
    let pointing_at = |line: &str| -> String {
        toml.lines()
            .map(|kept| if kept.starts_with("client_secret") { line } else { kept })
            .collect::<Vec<_>>()
            .join("\n")
    };
    let cli = Cli::of(&world).set("SCM_SECRET", world.scm.client_secret());
    std::fs::create_dir(cli.folder.path().join("deploy")).unwrap();
    cli.write("deploy/secret", &format!("{}\n", world.scm.client_secret()));
    cli.write("deploy/file.toml", &pointing_at("client_secret_file = \"secret\""));
    cli.write("deploy/variable.toml", &pointing_at("client_secret_env = \"SCM_SECRET\""));
    for file in ["deploy/file.toml", "deploy/variable.toml"] {
        let ended = cli.run(&["provider", "apply", file]).await.good();
        assert_eq!(ended.table()[1][1], "unchanged", "{file}: the same secret");
    }
}

#[tokio::test]
async fn kinds_that_refuse_refreshes_without_a_redirect_uri_are_warned_about() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world);
    for (kind, warned) in
        [("gitlab", true), ("bitbucket_server", true), ("github", false), ("bitbucket", false)]
    {
        let toml = world.scm.provider_toml(&format!("kind = \"{kind}\""));
        let ended = cli.run_with_input(&["provider", "apply", "-"], &toml).await.good();
        assert_eq!(ended.stderr.contains("redirect_uri"), warned, "{kind}: {ended:?}");
    }
}
