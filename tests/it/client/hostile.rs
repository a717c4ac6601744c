//! Somebody who answers what no worker answers.

use futures_util::future::join_all;
use secrecy::{ExposeSecret, SecretString};
use tokenkeeper_client::UnusableReply;

use super::*;

/// One of each kind, beside good ones.
fn hostile(asked: &Asked, others: &[ShortString]) -> Vec<(ShortString, Vec<u8>)> {
    let to = |body: Vec<u8>| (asked.correlation_id.clone(), body);
    let changed = |field: &str, value: Value| {
        let mut body: Value = serde_json::from_slice(&asked.granted("s3cret")).unwrap();
        body[field] = value;
        to(body.to_string().into_bytes())
    };
    match asked.user() {
        "no-json" => vec![to(b"{\"token\": \"s3cret".to_vec())],
        "array" => vec![to(b"[\"s3cret\"]".to_vec())],
        "deep" => vec![to("[".repeat(100_000).into_bytes())],
        "not-utf-8" => vec![to(vec![0xff; 64])],
        "huge" => vec![to(vec![b' '; 5 * 1024 * 1024])],
        "status" => vec![changed("status", "s3cret".into())],
        "no-error" => vec![changed("status", "error".into())],
        "no-token" => vec![changed("token", Value::Null)],
        "error-of-another-user" => {
            let mut body: Value = serde_json::from_slice(&refused("internal", 0)).unwrap();
            body["user_id"] = "s3cret".into();
            vec![to(body.to_string().into_bytes())]
        }
        "of-no-user" => vec![changed("user_id", Value::Null)],
        "of-no-host" => vec![changed("host", Value::Null)],
        "of-another-user" => vec![changed("user_id", "s3cret".into())],
        "of-another-host" => vec![changed("host", "s3cret".into())],
        // Second answers, answers to nobody, and then to everybody who asked before.
        "good" => {
            let forged = asked.granted("forged");
            let strange = ["", "nobody", "00000000-0000-0000-0000-000000000000"].map(ShortString::from);
            let mut answers: Vec<_> = strange.into_iter().map(|id| (id, forged.clone())).collect();
            answers.push(to(asked.granted("good")));
            answers.extend((0..5).map(|_| to(forged.clone())));
            answers.extend(others.iter().map(|other| (other.clone(), forged.clone())));
            answers
        }
        user => panic!("who is {user}?"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_answer_is_an_error_of_its_own_request_and_of_no_other() {
    let world = world_without_a_worker().await;
    let mut answered = Vec::new();
    let replier = Replier::start(&world, move |asked| {
        let answers = hostile(asked, &answered);
        answered.push(asked.correlation_id.clone());
        answers
    })
    .await;
    let client = client(&world).await;
    let cases = [
        ("no-json", Some(UnusableReply::NotUnderstood)),
        ("array", Some(UnusableReply::NotUnderstood)),
        ("deep", Some(UnusableReply::NotUnderstood)),
        ("not-utf-8", Some(UnusableReply::NotUnderstood)),
        ("huge", Some(UnusableReply::TooLong)),
        ("status", Some(UnusableReply::NotUnderstood)),
        ("no-error", Some(UnusableReply::NotUnderstood)),
        ("no-token", Some(UnusableReply::NotUnderstood)),
        ("error-of-another-user", Some(UnusableReply::OfSomebodyElse)),
        ("of-no-user", Some(UnusableReply::OfSomebodyElse)),
        ("of-no-host", Some(UnusableReply::OfSomebodyElse)),
        ("of-another-user", Some(UnusableReply::OfSomebodyElse)),
        ("of-another-host", Some(UnusableReply::OfSomebodyElse)),
        ("good", None),
    ];

    for _ in 0..3 {
        let asked = cases.map(|(user, _)| client.token(user, "git.example.org").send());
        for ((user, expected), answer) in cases.into_iter().zip(join_all(asked).await) {
            match (expected, answer) {
                (None, Ok(token)) => assert_eq!(token.value.expose_secret(), "good"),
                (Some(expected), Err(Error::Reply(told))) => {
                    assert_eq!(told, expected, "{user}");
                    assert!(!format!("{told:?} {told}").contains("s3cret"));
                }
                (_, answer) => panic!("{user}: {answer:?}"),
            }
        }
    }
    // Nor is it handed over as it came.
    for (user, expected) in cases {
        let body = client.token(user, "git.example.org").body().await;
        match (user, expected) {
            ("no-error" | "no-token" | "good", _) => assert!(body.is_ok(), "{user}: {body:?}"),
            (_, expected) => {
                let told = body.unwrap_err();
                assert!(matches!(&told, Error::Reply(told) if Some(*told) == expected), "{user}: {told:?}");
            }
        }
    }
    drop(replier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_workspace_login_or_report_takes_an_answer_that_is_not_its_own() {
    let world = world_without_a_worker().await;
    let starts = Replier::of(&world, "workspace-starts", |asked| {
        let token = granted("jdoe", "git.example.org", "s3cret");
        let failed =
            json!({"status": "error", "error": {"code": "internal", "message": "m", "retryable": false}});
        let mut body = json!({"status": "ok", "workspace_id": "good", "user_id": "jdoe", "tokens": [token]});
        match asked.body["workspace_id"].as_str().unwrap() {
            // For this one it is another workspace's.
            "good" | "of-another" => {}
            "of-another-user" => body["user_id"] = "s3cret".into(),
            "with-anothers-token" => body["tokens"][0]["user_id"] = "s3cret".into(),
            "without-tokens" => body["tokens"] = json!([]),
            "error-without-one" => body = json!({"status": "error", "tokens": []}),
            "ok-with-a-failed-one" => body["tokens"] = json!([token, failed]),
            workspace => panic!("what is {workspace}?"),
        }
        if asked.body["workspace_id"] != "of-another" {
            body["workspace_id"] = asked.body["workspace_id"].clone();
        }
        vec![(asked.correlation_id.clone(), body.to_string().into_bytes())]
    });
    // Neither taken nor refused.
    let neither = |asked: &Asked| {
        let body = if asked.user() == "bad" {
            json!({"status": "error"})
        } else {
            json!({"status": "ok", "result": "held"})
        };
        vec![(asked.correlation_id.clone(), body.to_string().into_bytes())]
    };
    let logins = Replier::of(&world, "token-stores", neither);
    let reports = Replier::of(&world, "token-reports", neither);
    let repliers = tokio::join!(starts, logins, reports);
    let client = client(&world).await;
    let start =
        |workspace: &str| client.workspace_start(workspace, "jdoe", ["https://git.example.org/p/r.git"]);

    for (workspace, expected) in [
        ("of-another", UnusableReply::OfSomebodyElse),
        ("of-another-user", UnusableReply::OfSomebodyElse),
        ("with-anothers-token", UnusableReply::OfSomebodyElse),
        ("without-tokens", UnusableReply::NotUnderstood),
        ("error-without-one", UnusableReply::NotUnderstood),
        ("ok-with-a-failed-one", UnusableReply::NotUnderstood),
    ] {
        let answer = start(workspace).send().await;
        assert!(matches!(answer, Err(Error::Reply(told)) if told == expected), "{workspace}: {answer:?}");
        if expected == UnusableReply::OfSomebodyElse {
            let body = start(workspace).body().await;
            assert!(matches!(body, Err(Error::Reply(told)) if told == expected), "{workspace}: {body:?}");
        }
    }
    assert_eq!(start("good").send().await.unwrap().tokens.len(), 1);
    let value = SecretString::from("t");
    for user in ["bad", "good"] {
        let stored = client.store(user, "git.example.org", "t").send().await.map(drop);
        let reported = client.report(user, "git.example.org", &value).send().await.map(drop);
        for answer in [stored, reported] {
            let is_expected = match &answer {
                Ok(()) => user == "good",
                Err(error) => matches!(error, Error::Reply(UnusableReply::NotUnderstood)) && user == "bad",
            };
            assert!(is_expected, "{user}: {answer:?}");
        }
    }
    drop(repliers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_beyond_reason_is_not_waited_for_and_harms_nobody() {
    let world = world_without_a_worker().await;
    let mut asked_before = 0;
    let replier = Replier::start(&world, move |asked| {
        asked_before += 1;
        let body = match asked_before {
            1 => refused("provider_unavailable", u64::MAX),
            2 => refused("provider_unavailable", 86_401),
            _ => asked.granted("t"),
        };
        vec![(asked.correlation_id.clone(), body)]
    })
    .await;
    let client = client(&world).await;
    let request = || client.token("jdoe", "git.example.org").timeout(Duration::from_secs(20));
    let error = request().send().await.unwrap_err();
    assert!(error.retryable() && error.retry_after().is_none(), "{error:?}");
    assert!(request().retries(1).send().await.is_ok(), "it is asked again as if no wait were said");
    drop(replier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_wait_that_can_be_written_ends_its_own_request_alone() {
    let world = world_without_a_worker().await;
    let replier = Replier::start(&world, move |asked| {
        let body = match asked.user() {
            "hostile" => refused("provider_unavailable", u64::MAX),
            "a-day" => refused("provider_unavailable", 86_400),
            _ => asked.granted("t"),
        };
        vec![(asked.correlation_id.clone(), body)]
    })
    .await;
    let client = client(&world).await;
    let request = |user: &str| client.token(user, "git.example.org").retries(1).timeout(5 * A_SECOND).send();
    let (hostile, a_day, good) = tokio::join!(request("hostile"), request("a-day"), request("good"));
    assert_eq!(hostile.unwrap_err().retry_after(), None);
    assert_eq!(a_day.unwrap_err().retry_after(), Some(Duration::from_hours(24)));
    assert!(good.is_ok());
    drop(replier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_words_of_a_hostile_error_do_nothing_to_a_terminal() {
    let world = world_without_a_worker().await;
    let replier = Replier::start(&world, move |asked| {
        let long = "x".repeat(10_000);
        let message = format!("a\r\nerror: forged\u{202e}{long}");
        let reason = format!("\u{1b}{long}");
        let error = json!({"code": "\u{1b}[2J", "message": message, "reason": reason, "retryable": false});
        let body = json!({"status": "error", "error": error, "warnings": ["\u{7}"]});
        vec![(asked.correlation_id.clone(), body.to_string().into_bytes())]
    })
    .await;
    let error = client(&world).await.token("jdoe", "git.example.org").send().await.unwrap_err();
    let shown = r"\u001b[2J: a\u000d\u000aerror: forged\u202e";
    assert_eq!(error.to_string(), format!("{shown}{}", "x".repeat(500 - "a..error: forged.".len())));
    let Error::Refused(refusal) = error else { panic!("{error:?}") };
    assert_eq!(refusal.warnings[0].to_string(), r"\u0007");
    assert_eq!(refusal.reason, Some(format!(r"\u001b{}", "x".repeat(499))));
    drop(replier);
}
