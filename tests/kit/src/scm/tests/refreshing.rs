use super::*;

#[tokio::test]
async fn a_refresh_issues_a_new_pair_in_every_dialect_and_kills_the_old_token_where_the_kind_says_so() {
    for dialect in Dialect::ALL {
        let scm = SimulatedScm::start_as(dialect).await;
        let old = scm.authorize("alice");
        let new = refresh_well(&scm, &old).await;
        assert!(scm.is_alive(&new.access_token), "{dialect:?}");
        assert_eq!(scm.is_alive(&old.access_token), !dialect.kills_old_token(), "{dialect:?}");
        assert_eq!(scm.refreshes("alice"), 1);

        refresh(&scm, &old.refresh_token).await;
        assert_eq!(last_event(&scm).outcome, RefreshOutcome::Refused, "{dialect:?}");
        assert_eq!((scm.refreshes("alice"), scm.refresh_requests("alice")), (1, 2));
    }
}

#[tokio::test]
async fn a_dead_refresh_token_and_a_wrong_secret_are_refused_in_the_dialects_words() {
    let standard = (400, "invalid_grant", 401, "invalid_client");
    for (dialect, (grant_status, grant_error, client_status, client_error)) in [
        (Dialect::BitbucketServer, standard),
        (Dialect::GitLab, standard),
        (Dialect::Generic, standard),
        (Dialect::GitHub, (200, "bad_refresh_token", 200, "incorrect_client_credentials")),
        (Dialect::Bitbucket, (400, "invalid_request", 400, "unauthorized_client")),
    ] {
        let scm = SimulatedScm::start_as(dialect).await;
        let pair = scm.authorize("alice");
        let wrong_client = refresh_request_with(&scm, "wrong", &pair.refresh_token).send().await;
        let dead_token = refresh(&scm, "no-such-token").await;
        for (answer, status, error) in [
            (dead_token, grant_status, grant_error),
            (wrong_client.expect("an answer"), client_status, client_error),
        ] {
            assert_eq!(answer.status(), status, "{dialect:?}");
            assert_eq!(json_body(answer).await["error"], error, "{dialect:?}");
        }
        assert!(scm.is_alive(&pair.access_token));
    }
}

#[tokio::test]
async fn client_credentials_count_only_where_the_dialect_expects_them() {
    for dialect in Dialect::ALL {
        let scm = SimulatedScm::start_as(dialect).await;
        let pair = scm.authorize("alice");
        let other_way = match dialect.client_auth() {
            ClientAuth::Basic => ClientAuth::Body,
            ClientAuth::Body => ClientAuth::Basic,
        };
        let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", &pair.refresh_token)];
        let request = http::client().post(scm.token_url());
        let request = match other_way {
            ClientAuth::Basic => request.basic_auth(scm.client_id(), Some(scm.client_secret())),
            ClientAuth::Body => {
                form.extend([("client_id", scm.client_id()), ("client_secret", scm.client_secret())]);
                request
            }
        };
        request.form(&form).send().await.expect("an answer");
        assert_eq!(last_event(&scm).outcome, RefreshOutcome::Refused, "{dialect:?}");
    }
}

#[tokio::test]
async fn a_missing_redirect_uri_is_an_invalid_grant_that_names_nothing() {
    for dialect in [Dialect::BitbucketServer, Dialect::GitLab] {
        let scm = SimulatedScm::start_as(dialect).await;
        let pair = scm.authorize("alice");
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", &pair.refresh_token),
            ("client_id", scm.client_id()),
            ("client_secret", scm.client_secret()),
        ];
        let answer = http::client().post(scm.token_url()).form(&form).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        assert_eq!(json_body(answer).await["error"], "invalid_grant");
        assert!(scm.is_alive(&pair.access_token), "a refusal changes nothing");
    }
}

#[tokio::test]
async fn github_answers_a_form_unless_json_is_asked_for() {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let pair = scm.authorize("alice");
    let request = refresh_request(&scm, &pair.refresh_token);
    let mut request = request.build().expect("a request");
    request.headers_mut().remove(header::ACCEPT);
    let answer = http::client().execute(request).await.expect("an answer");
    let body = answer.text().await.expect("a body");
    let fields: HashMap<_, _> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let new = scm.latest_pair("alice").expect("a pair");
    assert_eq!(fields["access_token"], new.access_token);
    assert_eq!(fields["expires_in"], "7200");
}

#[tokio::test]
async fn answers_leave_out_what_the_options_say_and_a_kept_refresh_token_goes_on_working() {
    let options =
        ScmOptions { omit_refresh_token: true, omit_expires_in: true, ..ScmOptions::new(Dialect::GitLab) };
    let scm = SimulatedScm::start(options).await;
    let pair = scm.authorize("alice");
    for _ in 0..2 {
        let body = json_body(refresh(&scm, &pair.refresh_token).await).await;
        assert_eq!(body.get("refresh_token").or(body.get("expires_in")), None);
        assert!(body["created_at"].is_i64());
    }
    assert_eq!(scm.refreshes("alice"), 2);
}

#[tokio::test]
async fn bitbucket_cloud_sends_long_tokens_and_its_own_name_for_the_scopes() {
    let scm = SimulatedScm::start_as(Dialect::Bitbucket).await;
    let pair = scm.authorize("alice");
    let body = json_body(refresh(&scm, &pair.refresh_token).await).await;
    assert!(body["access_token"].as_str().expect("a token").len() > 2_500);
    assert_eq!((body.get("scope"), &body["scopes"]), (None, &json!("account repository:write")));
}

#[tokio::test]
async fn tokens_expire_by_the_clock_that_was_given() {
    let now = Arc::new(AtomicI64::new(1_000));
    let clock = now.clone();
    let options = ScmOptions {
        token_lifetime: Duration::from_mins(1),
        clock: Arc::new(move || clock.load(Ordering::SeqCst)),
        ..ScmOptions::new(Dialect::Generic)
    };
    let scm = SimulatedScm::start(options).await;
    let pair = scm.authorize("alice");
    assert_eq!((pair.issued_at_ms, pair.expires_at_ms), (1_000, 61_000));
    now.store(60_999, Ordering::SeqCst);
    assert!(scm.is_alive(&pair.access_token));
    now.store(61_000, Ordering::SeqCst);
    assert!(!scm.is_alive(&pair.access_token));
    let new = refresh_well(&scm, &pair).await;
    assert_eq!(new.expires_at_ms, 121_000);
    assert_eq!(last_event(&scm).started_at_ms, 61_000);
    assert!(!scm.is_alive(&scm.authorize_until("alice", 60_000).access_token));
}

#[tokio::test]
async fn a_refresh_of_a_revoked_user_is_refused() {
    let scm = SimulatedScm::start_as(Dialect::GitLab).await;
    let pair = scm.authorize("alice");
    scm.revoke("alice");
    assert!(!scm.is_alive(&pair.access_token));
    assert_eq!(json_body(refresh(&scm, &pair.refresh_token).await).await["error"], "invalid_grant");
}

#[tokio::test]
async fn overlap_is_counted_per_user_and_in_total_while_requests_are_held() {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let (alice, other, bob) = (scm.authorize("alice"), scm.authorize("alice"), scm.authorize("bob"));
    let gate = scm.hold_refreshes();
    let test = async {
        scm.wait_for_refreshes_in_flight(3).await;
        gate.wait_for_parked(3).await;
        assert!(scm.log().iter().all(|event| event.outcome == RefreshOutcome::InFlight));
        assert!(scm.is_alive(&alice.access_token), "nothing is done behind the gate");
        gate.release();
    };
    tokio::join!(
        test,
        refresh(&scm, &alice.refresh_token),
        refresh(&scm, &other.refresh_token),
        refresh(&scm, &bob.refresh_token)
    );
    assert_eq!([scm.max_overlap("alice"), scm.max_overlap("bob"), scm.max_overlap_total()], [2, 1, 3]);
    assert_eq!((scm.refreshes("alice"), scm.refreshes("bob")), (2, 1));
    refresh_well(&scm, &scm.latest_pair("bob").expect("a pair")).await;
    assert_eq!(scm.max_overlap("bob"), 1, "one after the other is no overlap");
}

#[tokio::test]
async fn discarded_requests_are_closed_without_being_acted_on_and_later_ones_are_served() {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let pair = scm.authorize("alice");
    let gate = scm.hold_refreshes();
    let discarding = async {
        gate.wait_for_parked(1).await;
        gate.discard();
    };
    let (answer, ()) = tokio::join!(refresh_request(&scm, &pair.refresh_token).send(), discarding);
    assert!(answer.is_err());
    assert!(scm.is_alive(&pair.access_token));
    refresh_well(&scm, &pair).await;
}

#[tokio::test]
async fn a_request_whose_client_left_is_abandoned_and_acted_on_when_released() {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let pair = scm.authorize("alice");
    let gate = scm.hold_refreshes();
    let impatient = refresh_request(&scm, &pair.refresh_token).timeout(Duration::from_millis(100)).send();
    assert!(impatient.await.expect_err("nobody answers").is_timeout());
    abandoned(&scm).await;
    gate.release();
    eventually("the rotation", async || last_event(&scm).rotated).await;
    assert!(!scm.is_alive(&pair.access_token));
    assert_eq!(last_event(&scm).outcome, RefreshOutcome::Abandoned);
}

#[tokio::test]
async fn bitbucket_server_refreshes_one_at_a_time_and_the_others_do_not() {
    for (dialect, at_work) in [(Dialect::BitbucketServer, 1), (Dialect::GitLab, 3)] {
        let options = ScmOptions { latency: Duration::from_millis(200), ..ScmOptions::new(dialect) };
        let scm = SimulatedScm::start(options).await;
        let users = ["alice", "bob", "carol"].map(|user| scm.authorize(user));
        let gate = scm.hold_refreshes();
        let test = async {
            gate.wait_for_parked(3).await;
            gate.release();
        };
        let refreshes = futures_util::future::join_all(users.iter().map(|pair| refresh_well(&scm, pair)));
        tokio::join!(test, refreshes);
        assert_eq!(scm.max_at_work(), at_work, "{dialect:?}");
    }
}

#[tokio::test]
async fn a_refresh_that_cannot_get_the_lock_in_time_is_answered_500_and_changes_nothing() {
    let options = ScmOptions {
        latency: Duration::from_millis(500),
        refresh_lock_timeout: Some(Duration::from_millis(10)),
        ..ScmOptions::new(Dialect::BitbucketServer)
    };
    let scm = SimulatedScm::start(options).await;
    let pairs = [scm.authorize("alice"), scm.authorize("bob")];
    let gate = scm.hold_refreshes();
    let test = async {
        gate.wait_for_parked(2).await;
        gate.release();
    };
    let [alice, bob] = &pairs;
    let ((), first, second) =
        tokio::join!(test, refresh(&scm, &alice.refresh_token), refresh(&scm, &bob.refresh_token));
    let mut statuses = [first.status().as_u16(), second.status().as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 500]);
    assert_eq!(pairs.iter().filter(|pair| scm.is_alive(&pair.access_token)).count(), 1);
}

#[tokio::test]
async fn the_api_takes_a_living_token_as_bearer_or_as_password_below_the_context_path() {
    let options =
        ScmOptions { context_path: "/bitbucket".to_owned(), ..ScmOptions::new(Dialect::BitbucketServer) };
    let scm = SimulatedScm::start(options).await;
    let pair = scm.authorize("alice");
    assert_eq!(scm.token_url(), format!("http://{}/bitbucket/rest/oauth2/latest/token", scm.host()));
    let ask = async |authorize: fn(RequestBuilder, &str) -> RequestBuilder| {
        let request = authorize(http::client().get(scm.user_url()), &pair.access_token);
        request.send().await.expect("an answer").status().as_u16()
    };
    let bearer = |request: RequestBuilder, token: &str| request.bearer_auth(token);
    let basic = |request: RequestBuilder, token: &str| request.basic_auth("anybody", Some(token));
    assert_eq!([ask(bearer).await, ask(basic).await, ask(|request, _| request).await], [200, 200, 401]);
    refresh_well(&scm, &pair).await;
    assert_eq!([ask(bearer).await, ask(basic).await], [401, 401]);
}

#[tokio::test]
async fn a_provider_block_has_what_the_scm_needs_and_overrides_win() {
    let scm = SimulatedScm::start_as(Dialect::Generic).await;
    let block = scm.provider_toml("client_secret_env = \"SECRET\"\nclient_auth = \"body\"");
    let (host, id) = (scm.host(), scm.client_id());
    let expected = format!(
        "[[provider]]\nhost = \"{host}\"\nkind = \"generic\"\nclient_id = \"{id}\"\n\
         token_url = \"http://{host}/token\"\n\
         client_secret_env = \"SECRET\"\nclient_auth = \"body\"\n"
    );
    assert_eq!(block, expected);
    let redirecting = SimulatedScm::start_as(Dialect::GitLab).await;
    assert!(redirecting.provider_toml("").contains("redirect_uri = \"https://app.example.org/callback\"\n"));
}

#[tokio::test]
async fn a_token_store_body_carries_the_pair_and_secrets_lists_every_token() {
    let options = ScmOptions { clock: Arc::new(|| 1_577_836_800_000), ..ScmOptions::new(Dialect::GitHub) };
    let scm = SimulatedScm::start(options).await;
    let pair = scm.authorize("alice");
    let body = scm.token_store_body(&pair);
    assert_eq!(body["token"]["expires_at"], "2020-01-01T02:00:00.000Z");
    assert_eq!(body["token"]["refresh_token"], pair.refresh_token);
    let new = refresh_well(&scm, &pair).await;
    let secrets = scm.secrets();
    for secret in [&pair.access_token, &pair.refresh_token, &new.access_token, &new.refresh_token] {
        assert!(secrets.contains(secret));
        assert!(!format!("{pair:?}").contains(secret.as_str()));
    }
    assert!(secrets.iter().any(|secret| secret == scm.client_secret()));
}
