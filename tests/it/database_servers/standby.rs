//! A PostgreSQL with a true standby: several servers in the URL, and an address that leads to another one.

use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::servers::Postgres;

use super::{
    all_is_well_again, can_run_postgres, folder, log_users_in, named, sessions, wait_until_paused,
    while_read_only,
};
use crate::cli::Cli;
use crate::harness::reply::token;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

/// The standby has what the primary has.
async fn caught_up(primary: &Postgres, standby: &Postgres) {
    let at = primary.query("postgres", "select pg_current_wal_lsn()").await.unwrap();
    let question = format!("select pg_last_wal_replay_lsn() >= '{at}'");
    eventually("the standby to catch up", PATIENCE, async || {
        (standby.query("postgres", &question).await.unwrap() == "t").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_servers_the_one_that_takes_writes_is_used_also_after_a_switchover() {
    if !can_run_postgres() {
        return;
    }
    let folder = folder();
    let mut primary = Postgres::start(folder.path(), None).await.unwrap();
    primary.create_database("tk").await.unwrap();
    let standby = primary.start_standby(folder.path()).await.unwrap();
    let mut world = World::on(Kind::Postgres, primary.url("tk"), Dialect::BitbucketServer).await;
    let both = primary
        .url("tk")
        .replace(&primary.address(), &format!("{},{}", standby.address(), primary.address()));
    world.set("database.url", named(&both));
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    token(&world.request("jdoe").await);
    assert_eq!(sessions(&standby).await, 0, "a standby may be behind, so nobody reads there");
    caught_up(&primary, &standby).await;

    primary.stop().await.unwrap();
    let none = "none of the 2 servers of postgres://postgres@";
    wait_until_paused(&worker, none).await;
    let (_, told) = worker.get("readyz").await;
    assert!(told.contains(&format!("{}: the database is read-only", standby.address())), "{told}");
    assert!(told.contains(&format!("{}: the database does not run", primary.address())), "{told}");
    let asked = world.send("jdoe").await;
    standby.promote().await.unwrap();

    token(&asked.reply().await.body);
    worker.wait_until_ready().await;
    assert!(sessions(&standby).await > 0);
    assert!(world.broker.dead_letters().await.is_empty());
    worker.stop(&world).await;
    // What searches the database at the world's end finds it where it was made.
    primary.begin().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_leads_to_a_standby_is_an_outage_until_it_leads_to_the_primary_again() {
    if !can_run_postgres() {
        return;
    }
    let folder = folder();
    let primary = Postgres::start(folder.path(), None).await.unwrap();
    primary.create_database("tk").await.unwrap();
    let standby = primary.start_standby(folder.path()).await.unwrap();
    let mut world = World::on(Kind::Postgres, primary.url("tk"), Dialect::BitbucketServer).await;
    let proxy = FaultProxy::start(&primary.address()).await;
    world.set("database.url", named(&proxy.url(&primary.url("tk"))));
    let worker = world.spawn_worker().await;
    log_users_in(&world).await;

    let take_away = async {
        caught_up(&primary, &standby).await;
        proxy.lead_to(&standby.address());
        proxy.cut_all();
    };
    let meanwhile = while_read_only(&world, &worker, take_away, "is read-only (database.url)").await;
    eventually("the sessions on the standby to end", PATIENCE, async || {
        (sessions(&standby).await <= 1).then_some(())
    })
    .await;
    proxy.lead_to(&primary.address());

    all_is_well_again(&world, worker, meanwhile).await;
    assert_eq!(sessions(&standby).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_were_kept_to_a_server_that_takes_no_writes_any_more_are_made_anew() {
    if !can_run_postgres() {
        return;
    }
    let (old_folder, new_folder) = (folder(), folder());
    let old = Postgres::start(old_folder.path(), None).await.unwrap();
    old.create_database("tk").await.unwrap();
    let new = old.start_standby(new_folder.path()).await.unwrap();
    let mut world = World::on(Kind::Postgres, old.url("tk"), Dialect::BitbucketServer).await;
    let proxy = FaultProxy::start(&old.address()).await;
    world.set("database.url", named(&proxy.url(&old.url("tk"))));
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    token(&world.request("jdoe").await);
    caught_up(&old, &new).await;

    new.promote().await.unwrap();
    proxy.lead_to(&new.address());
    old.set_read_only(true).await.unwrap();

    token(&world.request_for("jdoe", 3600).await);
    eventually("the kept connections to end", PATIENCE, async || {
        (sessions(&old).await == 0 && sessions(&new).await > 0).then_some(())
    })
    .await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_use_the_server_that_takes_writes_and_say_what_is_wrong_with_each_where_none_does() {
    if !can_run_postgres() {
        return;
    }
    let folder = folder();
    let mut primary = Postgres::start(folder.path(), None).await.unwrap();
    primary.create_database("tk").await.unwrap();
    let standby = primary.start_standby(folder.path()).await.unwrap();
    let hosts = format!("{},{}", standby.address(), primary.address());
    let both = format!("postgres://postgres:s3cret-p,ssword@{hosts}/tk");
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world).set("DATABASE_URL", &both);
    cli.run(&["migrate", "up"]).await.good();
    caught_up(&primary, &standby).await;
    primary.stop().await.unwrap();

    cli.run(&["token", "list"]).await.good();
    cli.write("empty.jsonl", "");
    for command in [&["token", "import", "empty.jsonl"][..], &["migrate", "down", "--yes"]] {
        let told = cli.run(command).await.with_code(1).says("is read-only (database.url): it is a standby");
        assert!(!format!("{told:?}").contains("s3cret"), "{told:?}");
    }
}
