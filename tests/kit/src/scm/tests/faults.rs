use super::*;

/// Starts an SCM whose next refresh request fails like this, and sends one.
async fn refresh_with(fault: Fault) -> (SimulatedScm, IssuedPair, reqwest::Result<Response>) {
    let scm = SimulatedScm::start_as(Dialect::BitbucketServer).await;
    let pair = scm.authorize("alice");
    scm.fail_next(1, fault);
    let answer = refresh_request(&scm, &pair.refresh_token).send().await;
    (scm, pair, answer)
}

/// Nothing has happened to the pair, and the next refresh works.
async fn assert_untouched(scm: &SimulatedScm, pair: &IssuedPair) {
    assert!(scm.is_alive(&pair.access_token));
    let event = last_event(scm);
    assert_eq!((event.outcome, event.rotated), (RefreshOutcome::Failed, false));
    refresh_well(scm, pair).await;
}

/// The pair is replaced although the client did not get to know the new one.
fn assert_rotated(scm: &SimulatedScm, pair: &IssuedPair) {
    assert!(!scm.is_alive(&pair.access_token));
    assert!(scm.is_alive(&scm.latest_pair("alice").expect("a pair").access_token));
    let event = last_event(scm);
    assert_eq!((event.outcome, event.rotated), (RefreshOutcome::Failed, true));
    assert_eq!(scm.refreshes("alice"), 1);
}

#[tokio::test]
async fn a_status_a_rate_limit_and_a_retry_after_are_seen_as_such() {
    for (fault, status, retry_after) in [
        (Fault::Status(500), 500, None),
        (Fault::TooManyRequests, 429, None),
        (Fault::RetryAfter { status: 503, seconds: 7 }, 503, Some("7")),
        (Fault::RetryAfter { status: 429, seconds: 1 }, 429, Some("1")),
    ] {
        let (scm, pair, answer) = refresh_with(fault).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), status);
        let seconds = answer.headers().get(header::RETRY_AFTER).map(|value| value.to_str().expect("text"));
        assert_eq!(seconds, retry_after);
        assert_untouched(&scm, &pair).await;
    }
}

#[tokio::test]
async fn refusals_on_order_use_the_dialects_words() {
    for (fault, error) in [(Fault::InvalidGrant, "invalid_grant"), (Fault::InvalidClient, "invalid_client")] {
        let (scm, pair, answer) = refresh_with(fault).await;
        assert_eq!(json_body(answer.expect("an answer")).await["error"], error);
        assert_untouched(&scm, &pair).await;
    }
}

#[tokio::test]
async fn a_login_page_is_html_with_status_200() {
    let (scm, pair, answer) = refresh_with(Fault::Html).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()[header::CONTENT_TYPE].to_str().expect("text").starts_with("text/html"));
    assert!(answer.text().await.expect("a body").starts_with("<!DOCTYPE html>"));
    assert_untouched(&scm, &pair).await;
}

#[tokio::test]
async fn an_oversized_answer_does_not_announce_its_length() {
    let (scm, pair, answer) = refresh_with(Fault::Oversized).await;
    let answer = answer.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.content_length()), (200, None));
    assert!(answer.text().await.expect("a body").len() > 64 * 1024);
    assert_untouched(&scm, &pair).await;
}

#[tokio::test]
async fn a_redirect_leads_to_the_login_page() {
    let (scm, pair, answer) = refresh_with(Fault::Redirect).await;
    let answer = answer.expect("an answer");
    assert_eq!((answer.status().as_u16(), scm.login_page_views()), (302, 0));
    let location = answer.headers()[header::LOCATION].to_str().expect("text");
    let page = http::client().get(location).send().await.expect("an answer");
    assert!(page.text().await.expect("a body").contains("Log in"));
    assert_eq!(scm.login_page_views(), 1);
    assert_untouched(&scm, &pair).await;
}

#[tokio::test]
async fn a_raw_answer_is_what_was_given() {
    let raw = Fault::Raw { status: 418, content_type: "text/plain".to_owned(), body: "short".to_owned() };
    let (scm, pair, answer) = refresh_with(raw).await;
    let answer = answer.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()[header::CONTENT_TYPE]),
        (418, &"text/plain".parse().expect("a header"))
    );
    assert_eq!(answer.text().await.expect("a body"), "short");
    assert_untouched(&scm, &pair).await;
}

#[tokio::test]
async fn a_connection_closed_before_the_act_is_a_connection_error_and_changes_nothing() {
    let (scm, pair, answer) = refresh_with(Fault::CloseBefore).await;
    let error = answer.expect_err("no answer");
    assert!(error.status().is_none() && !error.is_timeout(), "{error:?}");
    assert_untouched(&scm, &pair).await;
}

#[tokio::test]
async fn a_connection_closed_after_the_act_is_the_same_error_but_the_pair_is_replaced() {
    let (scm, pair, answer) = refresh_with(Fault::CloseAfter).await;
    let error = answer.expect_err("no answer");
    assert!(error.status().is_none() && !error.is_timeout(), "{error:?}");
    assert_rotated(&scm, &pair);
}

#[tokio::test]
async fn a_truncated_answer_has_a_good_status_and_a_body_that_breaks_off() {
    let (scm, pair, answer) = refresh_with(Fault::Truncated).await;
    let answer = answer.expect("the headers arrive");
    assert_eq!(answer.status(), 200);
    let announced = answer.content_length().expect("a length");
    let mut received = 0;
    let mut answer = answer;
    let broken = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => received += chunk.len() as u64,
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broken && 0 < received && received < announced, "{received} of {announced} bytes");
    assert_rotated(&scm, &pair);
}

#[tokio::test]
async fn a_hanging_endpoint_never_answers_and_counts_as_failed_when_the_client_leaves() {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let pair = scm.authorize("alice");
    scm.fail_next(1, Fault::Hang);
    let request = refresh_request(&scm, &pair.refresh_token).timeout(Duration::from_millis(100));
    assert!(request.send().await.expect_err("no answer").is_timeout());
    eventually("the request to end", async || last_event(&scm).ended_at_ms.is_some()).await;
    assert_untouched(&scm, &pair).await;
}

#[tokio::test]
async fn a_slow_endpoint_answers_after_its_delay_and_acts_though_the_client_has_left() {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let first = scm.authorize("alice");
    scm.fail_next(2, Fault::Slow(Duration::from_millis(300)));
    let second = refresh_well(&scm, &first).await;
    let request = refresh_request(&scm, &second.refresh_token).timeout(Duration::from_millis(50));
    assert!(request.send().await.expect_err("too slow").is_timeout());
    abandoned(&scm).await;
    eventually("the rotation", async || scm.refreshes("alice") == 2).await;
    assert!(!scm.is_alive(&second.access_token));
}

#[tokio::test]
async fn faults_of_one_user_spare_the_others_and_healing_ends_them() {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let (alice, bob) = (scm.authorize("alice"), scm.authorize("bob"));
    scm.fail_always_for("alice", Fault::Status(500));
    scm.fail_next_for("alice", 1, Fault::Status(502));
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(refresh(&scm, &alice.refresh_token).await.status().as_u16());
    }
    assert_eq!(statuses, [502, 500, 500]);
    refresh_well(&scm, &bob).await;
    scm.heal();
    refresh_well(&scm, &alice).await;
    assert_eq!((scm.refreshes("alice"), scm.refresh_requests("alice")), (1, 4));
}

#[tokio::test]
async fn connections_end_with_the_scm() {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let pair = scm.authorize("alice");
    scm.fail_always(Fault::Hang);
    let request = tokio::spawn(refresh_request(&scm, &pair.refresh_token).send());
    scm.wait_for_refreshes_in_flight(1).await;
    let url = scm.user_url();
    drop(scm);
    let error = request.await.expect("a client").expect_err("no answer");
    assert!(!error.is_timeout(), "{error:?}");
    assert!(http::client().get(url).send().await.expect_err("nobody listens").is_connect());
}
