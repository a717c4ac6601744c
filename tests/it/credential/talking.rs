//! The helper's own words: what it answers to git, and to what is no git.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::*;

async fn helper(cli: &Cli, operation: &str, input: &str) -> Ended {
    cli.run_with_input(&["credential", operation], input).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_answers_as_the_git_at_hand_wants_it() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    let cli = cli_of(&world, "jdoe");
    let question = question(&world.scm.host());

    let old =
        helper(&cli, "get", &format!("{question}path=p/r.git\nwwwauth[]=Basic realm=\"x\"\n\n")).await.good();
    let lines: Vec<&str> = old.stdout.lines().collect();
    let [username, password, expiry] = lines[..] else { panic!("{old:?}") };
    assert_eq!(
        (username, password),
        ("username=x-access-token", &*format!("password={}", pair.access_token))
    );
    assert!(expiry.starts_with("password_expiry_utc="), "{expiry}");
    assert_eq!(old.stderr, "");
    let new = helper(&cli, "get", &format!("capability[]=authtype\n{question}")).await.good();
    assert!(new.stdout.starts_with("capability[]=authtype\nephemeral=1\nusername="), "{new:?}");

    // As git-lfs asks: by git itself, which fills in what the helper says.
    let git = Git::new(&cli);
    let filled =
        git.run_in(cli.folder.path(), &["credential", "fill"], &format!("{question}path=p/r.git\n\n")).await;
    let filled = filled.good();
    assert!(filled.stdout.contains(&format!("\npassword={}\n", pair.access_token)), "{filled:?}");
    let tested = std::process::Command::new("git").args(["lfs", "version"]).output();
    if !tested.is_ok_and(|output| output.status.success()) {
        println!("NOT TESTED: git-lfs itself, which is not installed; `git credential fill`, as it asks, is");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_nobody_knows_and_links_without_encryption_are_left_to_others_in_silence() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let cli = cli_of(&world, "jdoe");
    for (operation, input) in [
        ("get", "protocol=https\nhost=unknown.example.org\n\n".to_owned()),
        (
            "erase",
            format!("{}password=y\npassword_expiry_utc=4102444800\n\n", question("unknown.example.org")),
        ),
        ("get", "protocol=http\nhost=git.example.org\n\n".to_owned()),
        ("get", "protocol=ssh\nhost=git.example.org\n\n".to_owned()),
        ("get", "protocol=cert\npath=/x\n\n".to_owned()),
        ("get", String::new()),
        ("store", format!("{}username=x\npassword=y\n\n", question(&world.scm.host()))),
        ("erase", format!("{}\n", question(&world.scm.host()))),
        ("whatever-a-newer-git-wants", question(&world.scm.host())),
    ] {
        let ended = helper(&cli, operation, &input).await.good();
        assert_eq!((&*ended.stdout, &*ended.stderr), ("", ""), "{operation} {input}");
    }
    // What it does not ask about needs no settings.
    let nothing = Cli::with([]).set("AMQP_URL", "no URL");
    helper(&nothing, "store", "protocol=https\nhost=h\n").await.good();
    helper(&nothing, "get", "protocol=ssh\nhost=h\n").await.good();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erase_reports_the_password_and_deletes_nothing() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    let cli = cli_of(&world, "jdoe");
    let question = question(&world.scm.host());
    let erase = |password: &str| {
        format!("{question}username=x\npassword={password}\npassword_expiry_utc=4102444800\n\n")
    };

    helper(&cli, "erase", &erase("of-another-helper")).await.good();
    assert_eq!(world.scm.refreshes("jdoe"), 0, "it is not the token that is handed out");
    helper(&cli, "erase", &erase(&pair.access_token)).await.good().keeps_secrets_of(&world);
    assert_eq!(world.scm.refreshes("jdoe"), 1);
    let answer = helper(&cli, "get", &question).await.good();
    let latest = world.scm.latest_pair("jdoe").unwrap().access_token;
    assert!(answer.stdout.contains(&format!("\npassword={latest}\n")), "{answer:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_not_from_here_goes_nowhere() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    // It would be told that nothing listens there.
    let away = cli_of(&world, "jdoe").set("AMQP_URL", "amqp://me:x@127.0.0.1:1/%2f");
    let own = format!("{}username=jdoe\npassword=hunter2\n\n", question(&world.scm.host()));
    let ended = helper(&away, "erase", &own).await.good();
    assert_eq!((&*ended.stdout, &*ended.stderr), ("", ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_in_one_line_without_a_secret() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let question = question(&world.scm.host());
    let one_line =
        |ended: &Ended| assert_eq!((&*ended.stdout, ended.stderr.lines().count()), ("", 1), "{ended:?}");

    let cli = cli_of(&world, "jdoe");
    one_line(&helper(&cli, "get", &question).await.with_code(2).says("no queue takes token.request"));
    let away = cli_of(&world, "jdoe").set("AMQP_URL", "amqp://me:s3cret@127.0.0.1:1/%2f");
    for operation in ["get", "erase"] {
        let input = format!("{question}password=hunter2\npassword_expiry_utc=4102444800\n");
        let ended = helper(&away, operation, &input).await.with_code(2);
        let ended = ended.says("error: tokenkeeper: nothing listens at 127.0.0.1:1");
        assert!(!ended.stderr.contains("s3cret") && !ended.stderr.contains("hunter2"), "{ended:?}");
        one_line(&ended);
    }
    let nobody = Cli::of(&world);
    one_line(&helper(&nobody, "get", &question).await.with_code(2).says("Set TOKENKEEPER_USER"));
    for input in ["s3cret\n", "protocol=https\nhost=s3cret\0\n", "protocol=https\nhost=s3cret\r\n"] {
        let ended = helper(&cli, "get", input).await.with_code(2).says("error: tokenkeeper: ");
        assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
        one_line(&ended);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settings_file_in_the_repository_is_not_read() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let cli = cli_of(&world, "jdoe").unset("TOKENKEEPER_KEYS");
    let hostile = "[encryption]\nkeys_command = [\"touch\", \"pwned\"]\n";
    cli.write("tokenkeeper.toml", hostile);

    helper(&cli, "get", &question(&world.scm.host())).await.good();
    assert!(!cli.folder.path().join("pwned").exists(), "a repository ran a command");
    // One that a person names is.
    let config = cli.folder.path().join("tokenkeeper.toml");
    let cli = cli.set("TOKENKEEPER_CONFIG", config.to_str().unwrap());
    drop(helper(&cli, "get", &question(&world.scm.host())).await);
    assert!(cli.folder.path().join("pwned").exists(), "else this proves nothing");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_with_a_line_break_is_not_written() {
    use crate::client::{Replier, world_without_a_worker};
    let world = world_without_a_worker().await;
    let replier = Replier::start(&world, |asked| {
        let key = asked.body["reply_public_key"].as_str().expect("it asks for a sealed token");
        let key = tokenkeeper::domain::sealed_box::PublicKey::try_from(std::borrow::Cow::from(key)).unwrap();
        let mut body: serde_json::Value = serde_json::from_slice(&asked.granted("unused")).unwrap();
        let value = if asked.body["user_id"] == "value" { "t\nhost=evil.example.org" } else { "t" };
        let inside = json!({"user_id": asked.body["user_id"], "host": asked.body["host"], "value": value});
        let sealed = BASE64.encode(key.seal(inside.to_string().as_bytes()));
        let username = if asked.body["user_id"] == "name" { "x\r\nhost=evil.example.org" } else { "x" };
        for clear in ["value", "userinfo"] {
            body["token"].as_object_mut().unwrap().remove(clear);
        }
        body["token"]["sealed"] = sealed.into();
        body["token"]["username"] = username.into();
        vec![(asked.correlation_id.clone(), body.to_string().into_bytes())]
    })
    .await;
    for user in ["value", "name"] {
        let ended = helper(&cli_of(&world, user), "get", "protocol=https\nhost=git.example.org\n").await;
        let ended = ended.with_code(1).says("it is not fit for git");
        assert!(ended.stdout.is_empty() && !ended.stderr.contains("evil"), "{ended:?}");
    }
    let good = helper(&cli_of(&world, "good"), "get", "protocol=https\nhost=git.example.org\n").await.good();
    assert!(good.stdout.contains("password=t\n"), "{good:?}");
    drop(replier);
}
