//! Somebody who answers what no worker answers.

use futures_util::future::join_all;
use secrecy::ExposeSecret;
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
    drop(replier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_words_of_a_hostile_error_do_nothing_to_a_terminal() {
    let world = world_without_a_worker().await;
    let replier = Replier::start(&world, move |asked| {
        let error = json!({"code": "\u{1b}[2J", "message": "a\r\nerror: forged\u{202e}", "retryable": false});
        let body = json!({"status": "error", "error": error, "warnings": ["\u{7}"]});
        vec![(asked.correlation_id.clone(), body.to_string().into_bytes())]
    })
    .await;
    let error = client(&world).await.token("jdoe", "git.example.org").send().await.unwrap_err();
    assert_eq!(error.to_string(), r"\u{1b}[2J: a\u{d}\u{a}error: forged\u{202e}");
    drop(replier);
}
