use std::collections::BTreeMap;

use super::*;

#[test]
fn access_rules_come_from_the_file_or_as_json_from_a_variable() {
    let expected = AccessPolicy::Rules(vec![AccessRule {
        publisher: "login".into(),
        hosts: vec!["*".into()],
        messages: vec![MessageKind::TokenStore, MessageKind::TokenRequest],
    }]);
    let text = "[[access.rules]]\npublisher = \"login\"\nhosts = [\"*\"]\nmessages = [\"token.store\", \"token.request\"]";
    assert_eq!(from_file(text).unwrap().access.policy, expected);
    let json = r#"[{"publisher": "login", "hosts": ["*"], "messages": ["token.store", "token.request"]}]"#;
    assert_eq!(from_environment(&[("TOKENKEEPER__ACCESS__RULES", json)]).unwrap().access.policy, expected);
}

#[test]
fn an_access_rule_that_can_never_match_is_an_error() {
    let cases = [
        ("login", "must be a JSON array"),
        ("{}", "is wrong at `access.rules`: must be a list"),
        ("[{\"publisher\": \"p\"}]", "is wrong at `access.rules[0]`: missing field `hosts`"),
        (
            r#"[{"publisher": "p", "hosts": ["*"], "messages": ["token.get"]}]"#,
            "`access.rules[0].messages[0]`: unknown variant",
        ),
        (
            r#"[{"publisher": "p", "hosts": ["*"], "messages": ["token.store"], "user": 1}]"#,
            "unknown field `user`",
        ),
        (r#"[{"publisher": "", "hosts": ["*"], "messages": ["token.store"]}]"#, "rule 1: `publisher`"),
        (r#"[{"publisher": "p", "hosts": [], "messages": ["token.store"]}]"#, "rule 1: `hosts`"),
        (
            r#"[{"publisher": "p", "hosts": ["*.example.org"], "messages": ["token.store"]}]"#,
            "rule 1: `hosts`",
        ),
        (
            r#"[{"publisher": "p", "hosts": ["https://git.example.org"], "messages": ["token.store"]}]"#,
            "rule 1: `hosts`",
        ),
        (r#"[{"publisher": "p", "hosts": ["*"], "messages": []}]"#, "rule 1: `messages`"),
    ];
    for (json, expected) in cases {
        let found = problem(from_environment(&[("TOKENKEEPER__ACCESS__RULES", json)]));
        assert_eq!(found.key, "access.rules");
        assert!(found.text.contains(expected), "{found}");
    }
}

/// The settings with these publishers in a variable.
fn publishers(json: &str) -> Result<Settings, SettingsError> {
    from_environment(&[("TOKENKEEPER__PUBLISHERS", json)])
}

#[test]
fn publishers_come_from_the_file_or_as_json_from_a_variable() {
    let text = r#"
        access.require_user_id = true

        [[publishers]]
        amqp_user = "ci"
        messages = ["token.request"]
        hosts = ["*.example.org"]
        users = ["ci-*"]
        max_lifetime_secs = 900
        requests_per_second = 20
        reply_queues = ["ci.replies.*", "amq.rabbitmq.reply-to"]
        require_sealed_replies = true

        [[publishers]]
        amqp_user = "login"
        messages = ["token.store"]
        hosts = ["*"]
        may_store_for = ["*"]
    "#;
    let of_file = from_file(text).unwrap().access;
    let json = r#"[
        {"amqp_user": "ci", "messages": ["token.request"], "hosts": ["*.example.org"], "users": ["ci-*"],
         "max_lifetime_secs": 900, "requests_per_second": 20,
         "reply_queues": ["ci.replies.*", "amq.rabbitmq.reply-to"], "require_sealed_replies": true},
        {"amqp_user": "login", "messages": ["token.store"], "hosts": ["*"], "may_store_for": ["*"]}
    ]"#;
    assert_eq!(of_file.policy, publishers(json).unwrap().access.policy);
    assert!(of_file.require_user_id);
    let AccessPolicy::Publishers(policies) = of_file.policy else { panic!("no publishers") };
    assert_eq!(policies.keys().collect::<Vec<_>>(), ["ci", "login"]);
    assert_eq!(policies["ci"].max_lifetime, Some(Duration::from_mins(15)));
    assert_eq!(policies["login"].reply_queues, None);
}

#[test]
fn an_empty_list_is_a_policy_and_not_none() {
    assert_eq!(from_file("").unwrap().access.policy, AccessPolicy::Open);
    assert_eq!(from_file("[access]\nrules = []").unwrap().access.policy, AccessPolicy::Rules(Vec::new()));
    let nobody = AccessPolicy::Publishers(BTreeMap::new());
    assert_eq!(from_file("publishers = []").unwrap().access.policy, nobody);
    assert_eq!(publishers("[]").unwrap().access.policy, nobody);
    let rules = from_environment(&[("TOKENKEEPER__ACCESS__RULES", "[]")]).unwrap();
    assert_eq!(rules.access.policy, AccessPolicy::Rules(Vec::new()));
}

#[test]
fn rules_beside_publishers_are_an_error() {
    let both = "publishers = []\n[access]\nrules = []";
    let found = problem(from_file(both));
    assert_eq!(found.key, "access.rules");
    assert_eq!(found.text, "is set beside `publishers`; set one of the two");
}

#[test]
fn an_error_about_a_publisher_names_its_entry_and_its_key() {
    let right = r#""messages": ["token.request"], "hosts": ["*"], "users": ["*"]"#;
    let store = r#""messages": ["token.store"], "hosts": ["*"]"#;
    let with = |more: &str| format!(r#"[{{"amqp_user": "ci", {right}, {more}}}]"#);
    for (json, expected) in [
        ("{}".to_owned(), "is wrong at `publishers`: must be a list"),
        (r#"[{"amqp_user": "ci"}]"#.to_owned(), "is wrong at `publishers[0]`: missing field `messages`"),
        (with(r#""user": ["u"]"#), "unknown field `user`; did you mean `users`?"),
        (with(r#""max_lifetime": 7"#), "unknown field `max_lifetime`; did you mean `max_lifetime_secs`?"),
        (with(r#""require_sealed_replies": "yes""#), "publishers[0].require_sealed_replies`: must be true or false"),
        (with(r#""max_lifetime_secs": 86401"#), "entry 1 (`ci`): `max_lifetime_secs` must be a whole number from 1 to 86400; it is `86401`"),
        (with(r#""max_lifetime_secs": 0"#), "`max_lifetime_secs` must be"),
        (with(r#""requests_per_second": 0"#), "`requests_per_second` must be a whole number from 1 to 1000000"),
        (with(r#""reply_queues": []"#), "`reply_queues` must list"),
        (with(r#""reply_queues": ["amq.gen-*"]"#), "`reply_queues` must list"),
        (with(r#""reply_queues": ["tokenkeeper.*"]"#), "`reply_queues` must list"),
        (with(r#""may_store_for": ["*"]"#), "`may_store_for` has no effect"),
        (format!(r#"[{{"amqp_user": "ci", {store}}}]"#), "`may_store_for` is missing"),
        (format!(r#"[{{"amqp_user": "ci", {store}, "may_store_for": []}}]"#), "`may_store_for` must list"),
        (format!(r#"[{{"amqp_user": "ci", {store}, "may_store_for": ["*"], "users": ["*"]}}]"#), "`users` has no effect"),
        (format!(r#"[{{"amqp_user": "ci", {store}, "may_store_for": ["*"], "max_lifetime_secs": 9}}]"#), "`max_lifetime_secs` has no effect"),
        (r#"[{"amqp_user": "ci", "messages": ["token.request"], "hosts": ["*"]}]"#.to_owned(), "`users` is missing"),
        (r#"[{"amqp_user": "ci", "messages": ["token.request"], "hosts": ["*"], "users": [""]}]"#.to_owned(), "`users` must list"),
        (r#"[{"amqp_user": "ci", "messages": ["token.request"], "hosts": [], "users": ["*"]}]"#.to_owned(), "`hosts` must list"),
        (r#"[{"amqp_user": "ci", "messages": ["token.request"], "hosts": ["https://git"], "users": ["*"]}]"#.to_owned(), "`hosts` must list"),
        (r#"[{"amqp_user": "ci", "messages": [], "hosts": ["*"]}]"#.to_owned(), "`messages` must name"),
        (format!(r#"[{{"amqp_user": "ci-*", {right}}}]"#), "`amqp_user` must be the name of one user"),
        (format!(r#"[{{"amqp_user": "", {right}}}]"#), "`amqp_user` must be the name of one user"),
        (format!(r#"[{{"amqp_user": "a", {right}}}, {{"amqp_user": "a", {right}}}]"#), "entry 2 (`a`): this `amqp_user` has an entry already"),
    ] {
        let found = problem(publishers(&json));
        assert_eq!(found.key, "publishers");
        assert!(found.text.contains(expected), "{found}\nis not: {expected}");
    }
}

#[test]
fn every_mistake_of_every_entry_is_told_at_once() {
    let json = r#"[{"amqp_user": "", "messages": [], "hosts": []}, {"amqp_user": "b", "messages": [], "hosts": ["*"]}]"#;
    assert_eq!(problems(publishers(json)).len(), 4);
}

#[test]
fn a_worker_that_every_user_of_a_shared_broker_may_ask_is_told_of() {
    let unguarded = |url, rules| {
        from_environment(&[("AMQP_URL", url), ("TOKENKEEPER__ACCESS__RULES", rules)]).unwrap().unguarded()
    };
    let shared = "amqps://worker:s3cret@mq.example.org/%2f";
    crate::domain::problem::documented("no publishers named", &unguarded(shared, "").unwrap());
    assert_eq!(unguarded(shared, "[]"), None);
    assert_eq!(unguarded("amqp://guest:guest@127.0.0.1:5672/%2f", ""), None);
}
