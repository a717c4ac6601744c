use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

mod reload;

use super::*;
use crate::domain::clock::{Clock, SystemClock};

const PATIENCE: Duration = Duration::from_secs(20);

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
async fn a_required_file_must_exist() {
    let file = TempDir::new().unwrap().path().join("flags.json");
    let error = Flags::open(&FlagFile::Required(file.clone())).await.err().unwrap();
    assert_eq!(error, FlagsError::Missing(file));
}

#[tokio::test]
async fn the_example_file_has_the_defaults_and_a_list_of_users() {
    let flags = open(include_str!("../../flags.example.json")).await.unwrap();
    assert!(flags.opportunistic_token_refresh("u-1").await);
    assert!(!flags.opportunistic_token_refresh("id-of-a-user").await);
    assert_eq!(flags.workspace_start_lifetime("u-1").await, DEFAULT_LIFETIME);
}

#[tokio::test]
async fn a_disabled_flag_has_its_default_value() {
    let mut disabled = refresh("off", &json!({}));
    disabled["state"] = json!("DISABLED");
    let flags = open(&file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, disabled)])).await.unwrap();
    assert!(flags.opportunistic_token_refresh("u-1").await);
}

#[tokio::test]
async fn a_fractional_rule_always_chooses_the_same_users() {
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
async fn a_rule_can_choose_a_lifetime_by_user() {
    let flag = json!({"state": "ENABLED", "variants": {"short": 5, "long": 60}, "defaultVariant": "short",
                      "targeting": {"if": [{"starts_with": [{"var": "targetingKey"}, "team-a/"]}, "long"]}});
    let flags = open(&file_of(&[(WORKSPACE_START_LIFETIME, flag)])).await.unwrap();
    assert_eq!(flags.workspace_start_lifetime("team-a/u-1").await, Duration::from_hours(1));
    assert_eq!(flags.workspace_start_lifetime("u-1").await, Duration::from_mins(5));
}

#[tokio::test]
async fn a_lifetime_out_of_range_is_replaced_by_the_default() {
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
async fn a_rule_that_reads_the_time_is_evaluated_every_time() {
    let soon = SystemClock.now().as_millis() / 1000 + 2;
    let early = json!({"if": [{"<": [{"var": "$flagd.timestamp"}, soon]}, "on", "off"]});
    let flags = open(&file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, refresh("off", &early))])).await.unwrap();
    assert!(flags.opportunistic_token_refresh("u-1").await);
    let late = async {
        while flags.opportunistic_token_refresh("u-1").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, late).await.expect("the rule is not evaluated again");
}

#[tokio::test]
async fn a_rule_that_does_not_name_the_time_is_not_shown_it() {
    let name = json!({"cat": ["time", "stamp"]});
    for path in [json!({"var": {"cat": ["$flagd.", name]}}), json!({"val": ["$flagd", name]})] {
        let rule = json!({"if": [path, "on", "off"]});
        let flags = open(&file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, refresh("off", &rule))])).await.unwrap();
        assert!(!flags.opportunistic_token_refresh("u-1").await, "{rule}");
    }
}

#[tokio::test]
async fn two_workers_in_one_process_do_not_share_flags() {
    let (one, other) = (open(&minutes_file(1)).await.unwrap(), open(&minutes_file(2)).await.unwrap());
    assert_eq!(one.workspace_start_lifetime("u-1").await, Duration::from_mins(1));
    assert_eq!(other.workspace_start_lifetime("u-1").await, Duration::from_mins(2));
}

#[tokio::test]
async fn a_broken_file_is_refused_at_start_with_the_place_of_the_error() {
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
        (String::new(), "line 1, column 0".to_owned(), "ends too soon"),
        ("{\n  \"flags\": {,\n}".to_owned(), "line 2, column 13".to_owned(), "key must be a string"),
        ("{\"flags\": {}} x".to_owned(), "line 1, column 15".to_owned(), "trailing characters"),
        ("{}".to_owned(), "line 1, column 2".to_owned(), "missing field `flags`"),
        ("{\"flags\": []}".to_owned(), "flags (line 1,".to_owned(), "must be an object"),
        (refresh_without("state"), path(" (line 1,"), "missing field `state`"),
        (refresh_without("defaultVariant"), path(" (line 1,"), "missing field `defaultVariant`"),
        (refresh_with("state", json!("ON")), path(".state"), "`ENABLED` or `DISABLED`"),
        (refresh_with("variants", json!([])), path(".variants"), "must be an object"),
        (refresh_with("variants", json!({"on": "yes"})), path(".variants.on"), "must be true or false"),
        (
            refresh_with("defaultVariant", json!("up")),
            path(".defaultVariant"),
            "not one of the variants: off, on",
        ),
        (refresh_with("targeting", json!({"perhaps": []})), path(".targeting"), "perhaps"),
        // An operator that reads the clock would have to stop its rule's answers from being cached.
        (refresh_with("targeting", json!({"<": [{"now": []}, 1]})), path(".targeting"), "now"),
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

#[test]
fn flagd_variables_of_another_program_are_ignored() {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "flags::tests::a_rule_can_choose_a_lifetime_by_user"])
        .envs([("FLAGD_RESOLVER", "in-process"), ("FLAGD_OFFLINE_FLAG_SOURCE_PATH", "nowhere.json")])
        .envs([("FLAGD_CACHE", "lru"), ("FLAGD_HOST", "flagd.example.org"), ("FLAGD_TLS", "true")])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
fn what_an_operator_reads_of_a_flag_file_stands_in_the_documentation() {
    let file = || PathBuf::from("/etc/tokenkeeper/flags.json");
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    for (event, error) in [
        ("flags file missing", FlagsError::Missing(file())),
        (
            "flags file not readable",
            FlagsError::Unreadable { file: file(), reason: crate::domain::problem::of_system(&denied) },
        ),
        (
            "flags file broken",
            FlagsError::Definition {
                file: file(),
                place: "line 2, column 13".to_owned(),
                reason: "key must be a string".to_owned(),
            },
        ),
    ] {
        crate::domain::problem::documented(event, &error.problem());
    }
}
