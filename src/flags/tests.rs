use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use std::{fs, io};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default};

use super::*;
use crate::domain::clock::{Clock, SystemClock};

const PATIENCE: Duration = Duration::from_secs(20);

/// Flags on a file in a folder of their own, followed while this lives.
struct Followed {
    folder: TempDir,
    file: PathBuf,
    flags: Flags,
    events: UnboundedReceiver<FlagsEvent>,
    reloader: JoinHandle<()>,
}

impl Followed {
    async fn start(text: Option<&str>) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("flags.json");
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        Self::on(folder, file).await
    }

    async fn on(folder: TempDir, file: PathBuf) -> Self {
        let (flags, reloader) = Flags::open(&FlagFile::Optional(file.clone())).await.unwrap();
        let (sender, events) = unbounded_channel();
        let reloader = tokio::spawn(async move {
            reloader.run(move |event| drop(sender.send(event.clone()))).await;
        });
        Self { folder, file, flags, events, reloader }
    }

    fn write(&self, text: &str) {
        fs::write(&self.file, text).unwrap();
    }

    async fn event(&mut self) -> FlagsEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("the change is not seen").unwrap()
    }

    async fn refusal(&mut self) -> FlagsError {
        match self.event().await {
            FlagsEvent::Refused(error) => error,
            FlagsEvent::InForce => panic!("a broken file is in force"),
        }
    }

    async fn minutes(&self, user_id: &str) -> u64 {
        self.flags.workspace_start_lifetime(user_id).await.as_secs() / 60
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.reloader.abort();
    }
}

fn refresh(default_variant: &str, targeting: &Value) -> Value {
    json!({"state": "ENABLED", "variants": {"on": true, "off": false},
           "defaultVariant": default_variant, "targeting": targeting})
}

fn lifetime(minutes: &Value) -> Value {
    json!({"state": "ENABLED", "variants": {"only": minutes}, "defaultVariant": "only"})
}

fn file_of(flags: &[(&str, Value)]) -> String {
    let flags: serde_json::Map<_, _> =
        flags.iter().map(|(name, flag)| ((*name).into(), flag.clone())).collect();
    json!({ "flags": flags }).to_string()
}

fn minutes_file(minutes: i64) -> String {
    file_of(&[(WORKSPACE_START_LIFETIME, lifetime(&json!(minutes)))])
}

async fn open(text: &str) -> Result<Flags, FlagsError> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("flags.json");
    fs::write(&file, text).unwrap();
    Flags::open(&FlagFile::Required(file)).await.map(|(flags, _)| flags)
}

#[tokio::test]
async fn without_a_file_the_defaults_hold_until_one_appears() {
    let mut followed = Followed::start(None).await;
    assert!(followed.flags.opportunistic_token_refresh("u-1").await);
    assert_eq!(followed.minutes("u-1").await, 10);
    followed.write(&file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, refresh("off", &json!({})))]));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    assert!(!followed.flags.opportunistic_token_refresh("u-1").await);
    assert_eq!(followed.minutes("u-1").await, 10, "a flag that the file does not define has its default");
}

#[tokio::test]
async fn a_file_that_an_operator_named_must_be_there() {
    let file = TempDir::new().unwrap().path().join("flags.json");
    let error = Flags::open(&FlagFile::Required(file.clone())).await.err().unwrap();
    assert_eq!(error, FlagsError::Missing(file));
}

#[tokio::test]
async fn the_example_shows_the_defaults_and_a_list_of_users() {
    let flags = open(include_str!("../../flags.example.json")).await.unwrap();
    assert!(flags.opportunistic_token_refresh("u-1").await);
    assert!(!flags.opportunistic_token_refresh("id-of-a-user").await);
    assert_eq!(flags.workspace_start_lifetime("u-1").await, DEFAULT_LIFETIME);
}

#[tokio::test]
async fn a_disabled_flag_has_its_default() {
    let mut disabled = refresh("off", &json!({}));
    disabled["state"] = json!("DISABLED");
    let flags = open(&file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, disabled)])).await.unwrap();
    assert!(flags.opportunistic_token_refresh("u-1").await);
}

#[tokio::test]
async fn a_share_of_the_users_is_the_same_users_every_time() {
    let half = json!({"fractional": [["on", 50], ["off", 50]]});
    let flags = open(&file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, refresh("off", &half))])).await.unwrap();
    let mut on = 0;
    for user in 0..200 {
        let user_id = format!("u-{user}");
        let first = flags.opportunistic_token_refresh(&user_id).await;
        assert_eq!(flags.opportunistic_token_refresh(&user_id).await, first);
        on += u32::from(first);
    }
    assert!((60..=140).contains(&on), "{on} of 200");
}

#[tokio::test]
async fn a_lifetime_is_chosen_by_user() {
    let flag = json!({"state": "ENABLED", "variants": {"short": 5, "long": 60}, "defaultVariant": "short",
                      "targeting": {"if": [{"starts_with": [{"var": "targetingKey"}, "team-a/"]}, "long"]}});
    let flags = open(&file_of(&[(WORKSPACE_START_LIFETIME, flag)])).await.unwrap();
    assert_eq!(flags.workspace_start_lifetime("team-a/u-1").await, Duration::from_hours(1));
    assert_eq!(flags.workspace_start_lifetime("u-1").await, Duration::from_mins(5));
}

#[tokio::test]
async fn a_lifetime_out_of_range_is_the_default() {
    for (minutes, used) in [(0, 10), (-5, 10), (1, 1), (1440, 1440), (1441, 10), (i64::MAX, 10)] {
        let flags = open(&minutes_file(minutes)).await.unwrap();
        assert_eq!(flags.workspace_start_lifetime("u-1").await, Duration::from_mins(used), "{minutes}");
    }
}

#[tokio::test]
async fn a_rule_that_fails_for_one_user_gives_that_user_the_default() {
    let rule = json!({"if": [{"==": [{"var": "targetingKey"}, "u-1"]}, "no-such-variant", "off"]});
    let flags = open(&file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, refresh("off", &rule))])).await.unwrap();
    assert!(flags.opportunistic_token_refresh("u-1").await);
    assert!(!flags.opportunistic_token_refresh("u-2").await);
}

#[tokio::test]
async fn what_a_rule_said_of_a_user_is_remembered_until_the_file_changes() {
    let rule = |answer: &str| {
        let listed = json!({"in": [{"var": "targetingKey"}, ["u-1"]]});
        file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, refresh("on", &json!({"if": [listed, answer]})))])
    };
    let mut followed = Followed::start(Some(&rule("off"))).await;
    for _ in 0..2 {
        assert!(!followed.flags.opportunistic_token_refresh("u-1").await);
        assert!(followed.flags.opportunistic_token_refresh("u-2").await);
    }
    assert_eq!(followed.flags.current().remembered_users(), 2);

    followed.write(&rule("on"));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    assert_eq!(followed.flags.current().remembered_users(), 0);
    assert!(followed.flags.opportunistic_token_refresh("u-1").await);
}

#[tokio::test]
async fn a_rule_that_looks_at_the_time_is_asked_every_time() {
    let soon = SystemClock.now().as_millis() / 1000 + 2;
    let early = json!({"if": [{"<": [{"var": "$flagd.timestamp"}, soon]}, "on", "off"]});
    let flags = open(&file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, refresh("off", &early))])).await.unwrap();
    assert!(flags.opportunistic_token_refresh("u-1").await);
    let late = async {
        while flags.opportunistic_token_refresh("u-1").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, late).await.expect("the rule is not asked again");
}

#[tokio::test]
async fn two_workers_in_one_process_do_not_share_flags() {
    let (one, other) = (open(&minutes_file(1)).await.unwrap(), open(&minutes_file(2)).await.unwrap());
    assert_eq!(one.workspace_start_lifetime("u-1").await, Duration::from_mins(1));
    assert_eq!(other.workspace_start_lifetime("u-1").await, Duration::from_mins(2));
}

#[tokio::test]
async fn a_broken_file_is_refused_at_start_with_the_place() {
    let refresh_without = |key: &str| {
        let mut flag = refresh("on", &json!({}));
        flag.as_object_mut().unwrap().remove(key);
        file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, flag)])
    };
    let refresh_with = |key: &str, value: Value| {
        let mut flag = refresh("on", &json!({}));
        flag[key] = value;
        file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, flag)])
    };
    let path = |rest: &str| format!("flags.{OPPORTUNISTIC_TOKEN_REFRESH}{rest}");
    let cases = [
        (String::new(), "line 1, column 0".to_owned(), "EOF"),
        ("{\n  \"flags\": {,\n}".to_owned(), "line 2, column 13".to_owned(), "key must be a string"),
        ("{\"flags\": {}} x".to_owned(), "line 1, column 15".to_owned(), "trailing characters"),
        ("{}".to_owned(), "line 1, column 2".to_owned(), "missing field `flags`"),
        ("{\"flags\": []}".to_owned(), "flags (line 1,".to_owned(), "expected a map"),
        (refresh_without("state"), path(" (line 1,"), "missing field `state`"),
        (refresh_without("defaultVariant"), path(" (line 1,"), "missing field `defaultVariant`"),
        (refresh_with("state", json!("ON")), path(".state"), "expected `ENABLED` or `DISABLED`"),
        (refresh_with("variants", json!([])), path(".variants"), "expected a map"),
        (refresh_with("variants", json!({"on": "yes"})), path(".variants.on"), "must be true or false"),
        (
            refresh_with("defaultVariant", json!("up")),
            path(".defaultVariant"),
            "not one of the variants: off, on",
        ),
        (refresh_with("targeting", json!({"perhaps": []})), path(".targeting"), "perhaps"),
        (refresh_with("targeting", json!({"if": [false, "on", "up"]})), path(".targeting"), "up"),
        (refresh_with("targeting", json!({"$ref": "staff"})), "flags".to_owned(), "staff"),
        (
            file_of(&[(WORKSPACE_START_LIFETIME, lifetime(&json!(1.5)))]),
            format!("flags.{WORKSPACE_START_LIFETIME}.variants.only"),
            "whole number of minutes",
        ),
    ];
    for (text, expected_place, expected_reason) in cases {
        match open(&text).await.err() {
            Some(FlagsError::Definition { place, reason, .. }) => {
                assert!(place.starts_with(&expected_place), "{text}: {place}: {reason}");
                assert!(reason.contains(expected_reason), "{text}: {place}: {reason}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn while_a_file_is_broken_its_last_good_flags_stay_in_force() {
    let mut followed = Followed::start(Some(&minutes_file(20))).await;
    followed.write("{\"flags\": {");
    let error = followed.refusal().await.to_string();
    assert!(error.contains("flags.json") && error.contains("line 1, column 11"), "{error}");
    assert_eq!(followed.minutes("u-1").await, 20);

    followed.write(&minutes_file(30).replace("ENABLED", "PERHAPS"));
    let error = followed.refusal().await.to_string();
    assert!(error.contains("flags.workspace_start_scm_access_token_lifetime.state"), "{error}");
    assert_eq!(followed.minutes("u-1").await, 20);

    followed.write(&minutes_file(30));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    assert_eq!(followed.minutes("u-1").await, 30);
}

#[tokio::test]
async fn trouble_is_told_once_and_not_before_it_was_seen_twice() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("flags.json");
    fs::write(&file, minutes_file(20)).unwrap();
    let (flags, mut reloader) = Flags::open(&FlagFile::Required(file.clone())).await.unwrap();
    fs::write(&file, "half of a fi").unwrap();
    assert_eq!(reloader.follow().await, None, "somebody may be writing it");
    fs::write(&file, minutes_file(30)).unwrap();
    assert_eq!(reloader.follow().await, Some(FlagsEvent::InForce));
    fs::write(&file, "broken").unwrap();
    assert_eq!(reloader.follow().await, None);
    assert!(matches!(reloader.follow().await, Some(FlagsEvent::Refused(_))));
    assert_eq!(reloader.follow().await, None);
    assert_eq!(reloader.follow().await, None);
    assert_eq!(flags.workspace_start_lifetime("u-1").await, Duration::from_mins(30));
}

#[tokio::test]
async fn a_file_that_vanishes_is_told_once_and_its_flags_stay_in_force() {
    let mut followed = Followed::start(Some(&minutes_file(20))).await;
    fs::remove_file(&followed.file).unwrap();
    assert_eq!(followed.refusal().await, FlagsError::Missing(followed.file.clone()));
    assert_eq!(followed.minutes("u-1").await, 20);
    followed.write(&minutes_file(20));
    assert_eq!(followed.event().await, FlagsEvent::InForce, "nothing was told twice");
    assert_eq!(followed.minutes("u-1").await, 20);
}

#[test]
fn variables_for_another_program_s_flagd_provider_change_nothing() {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "flags::tests::a_lifetime_is_chosen_by_user"])
        .envs([("FLAGD_RESOLVER", "in-process"), ("FLAGD_OFFLINE_FLAG_SOURCE_PATH", "nowhere.json")])
        .envs([("FLAGD_CACHE", "lru"), ("FLAGD_HOST", "flagd.example.org"), ("FLAGD_TLS", "true")])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && told.contains("1 passed"), "{told}");
}

/// Keeps what is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// What this thread logs until the guards are dropped.
    fn capture() -> (Self, [DefaultGuard; 2]) {
        let log = Self::default();
        let writer = log.clone();
        // With one subscriber alive, a log line is on for all threads or off for all, as the first thread that comes
        // by says; another test's would say off. With two, all of them are asked.
        let other = set_default(NoSubscriber::new());
        let this = set_default(tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish());
        (log, [this, other])
    }

    fn lines(&self, level: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &Value| line["level"] == level).collect()
    }
}

#[tokio::test]
async fn trouble_and_its_end_are_one_line_each_in_the_log() {
    let (log, _guards) = Log::capture();
    let mut followed = Followed::start(Some(&minutes_file(20))).await;
    followed.write("{");
    followed.refusal().await;
    followed.write(&minutes_file(20));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    fs::remove_file(&followed.file).unwrap();
    followed.refusal().await;

    let file = followed.file.display().to_string();
    let [error] = &log.lines("ERROR")[..] else { panic!("{:?}", log.lines("ERROR")) };
    assert_eq!(error["fields"]["file"], file);
    let told = error["fields"]["error"].as_str().unwrap();
    assert!(told.contains(&file) && told.contains("line 1, column 1"), "{told}");
    let [warning] = &log.lines("WARN")[..] else { panic!("{:?}", log.lines("WARN")) };
    assert_eq!(warning["fields"]["file"], file);
    let told: Vec<Value> = log.lines("INFO").iter().map(|line| line["fields"]["message"].clone()).collect();
    assert_eq!(told, ["feature flags are in force", "the flag file is as it was before the trouble"]);
}

#[tokio::test]
async fn a_link_that_moves_to_another_version_is_a_change() {
    let folder = TempDir::new().unwrap();
    let versions = [("..v1", 1), ("..v2", 2)].map(|(name, minutes)| {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("flags.json"), minutes_file(minutes)).unwrap();
        Path::new(name)
    });
    let link_to = |version: &Path| {
        let (next, data) = (folder.path().join("..next"), folder.path().join("..data"));
        std::os::unix::fs::symlink(version, &next).unwrap();
        fs::rename(next, data).unwrap();
    };
    link_to(versions[0]);
    let file = folder.path().join("flags.json");
    std::os::unix::fs::symlink("..data/flags.json", &file).unwrap();
    let (flags, reloader) = Flags::open(&FlagFile::Required(file)).await.unwrap();
    assert_eq!(flags.workspace_start_lifetime("u-1").await, Duration::from_mins(1));
    link_to(versions[1]);
    let (sender, mut events) = unbounded_channel();
    let follow = reloader.run(move |event| drop(sender.send(event.clone())));
    tokio::select! {
        _ = follow => {}
        event = timeout(PATIENCE, events.recv()) => assert_eq!(event.unwrap(), Some(FlagsEvent::InForce)),
    }
    assert_eq!(flags.workspace_start_lifetime("u-1").await, Duration::from_mins(2));
}

#[tokio::test]
async fn writes_beside_the_file_do_not_wear_reloading_out() {
    let mut followed = Followed::start(Some(&minutes_file(20))).await;
    for number in 0..1_500 {
        fs::write(followed.folder.path().join("tokenkeeper.db-wal"), number.to_string()).unwrap();
    }
    followed.write(&minutes_file(30));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    assert_eq!(followed.minutes("u-1").await, 30);
}
