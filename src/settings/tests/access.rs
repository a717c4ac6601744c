use super::*;

#[test]
fn access_rules_come_from_the_file_or_as_json_from_a_variable() {
    let expected = [AccessRule {
        publisher: "login".into(),
        hosts: vec!["*".into()],
        messages: vec![MessageKind::TokenStore, MessageKind::TokenRequest],
    }];
    let text = "[[access.rules]]\npublisher = \"login\"\nhosts = [\"*\"]\nmessages = [\"token.store\", \"token.request\"]";
    assert_eq!(from_file(text).unwrap().access.rules, expected);
    let json = r#"[{"publisher": "login", "hosts": ["*"], "messages": ["token.store", "token.request"]}]"#;
    assert_eq!(from_environment(&[("TOKENKEEPER__ACCESS__RULES", json)]).unwrap().access.rules, expected);
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
