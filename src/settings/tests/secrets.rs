use super::*;

#[test]
fn encryption_keys_have_exactly_one_source() {
    let ring = KeyRing::generate("k1").expose_secret().to_owned();
    let shown = |settings: Settings| format!("{:?}", settings.key_ring().unwrap());
    assert_eq!(shown(from_environment(&[("TOKENKEEPER_KEYS", &ring)]).unwrap()), r#"["k1"]"#);
    assert_eq!(shown(from_file(&format!("[encryption]\nkeys = \"{ring}\"")).unwrap()), r#"["k1"]"#);

    let (folder, path) = file("[encryption]\nkeys_file = \"ring\"");
    fs::write(folder.path().join("ring"), format!("{ring}\n")).unwrap();
    assert_eq!(shown(Settings::load_from(Some(&path), HashMap::new()).unwrap()), r#"["k1"]"#);
    let both = problem(Settings::load_from(Some(&path), environment(&[("TOKENKEEPER_KEYS", &ring)])));
    assert!(both.text.contains("set one of the two"), "{both}");
    fs::remove_file(folder.path().join("ring")).unwrap();
    let missing = problem(Settings::load_from(Some(&path), HashMap::new()));
    assert!(missing.text.contains("ring, which is wrong: cannot be read"), "{missing}");
}

#[test]
fn every_command_checks_the_admin_settings_but_only_the_worker_reads_their_files() {
    let token = ("TOKENKEEPER__ADMIN__TOKEN", "0123456789abcdef");
    let token_file = ("TOKENKEEPER__ADMIN__TOKEN_FILE", "nowhere/token");
    let cert = ("TOKENKEEPER__ADMIN__TLS_CERT_FILE", "nowhere/cert.pem");
    let key = ("TOKENKEEPER__ADMIN__TLS_KEY_FILE", "nowhere/key.pem");
    let admin = from_environment(&[token, cert, key]).unwrap().admin;
    assert!(matches!(admin.token, Some(AdminToken::Given(_))) && admin.tls.is_some());
    assert!(!format!("{admin:?}").contains(token.1), "{admin:?}");
    let admin = from_environment(&[token_file]).unwrap().admin;
    assert!(matches!(admin.token, Some(AdminToken::File(_))), "only the worker reads it");
    for (variables, wrong) in [
        (&[token, token_file][..], "admin.token_file"),
        (&[cert], "admin.tls_key_file"),
        (&[key], "admin.tls_cert_file"),
        (&[("TOKENKEEPER__ADMIN__TOKEN", "s3cret-too-sho")], "admin.token"),
        (&[("TOKENKEEPER__ADMIN__TOKEN", "s3cret with blanks in it")], "admin.token"),
    ] {
        let found = problem(from_environment(variables));
        assert_eq!(found.key, wrong);
        assert!(!found.to_string().contains("s3cret"), "{found}");
    }
}

#[test]
fn settings_load_without_keys_until_a_command_needs_them() {
    let error = from_environment(&[]).unwrap().key_ring().unwrap_err().to_string();
    assert!(error.contains("tokenkeeper keys generate") && error.contains("TOKENKEEPER_KEYS"), "{error}");
}

#[test]
fn neither_errors_nor_debug_output_show_a_secret() {
    let ring = KeyRing::generate("k1").expose_secret().to_owned();
    let material = ring.strip_prefix("k1:").unwrap();
    let settings = from_environment(&[
        ("AMQP_URL", "amqp://u:s3cret@mq/%2f"),
        ("DATABASE_URL", "mariadb://u:s3cret@db/tokens"),
        ("TOKENKEEPER_KEYS", &ring),
    ])
    .unwrap();
    let shown = format!("{settings:?} {} {}", settings.broker.display_url(), settings.database.display_url());
    assert!(!shown.contains("s3cret") && !shown.contains(material), "{shown}");
    assert!(shown.contains("amqp://u:***@mq/%2f") && shown.contains("mysql://u:***@db/tokens"), "{shown}");

    let broken = [
        "[broker]\nurl = \"amqp://u:s3cret@mq\"x",
        "[broker]\nurl = amqp://u:s3cret@mq",
        "[broker]\nurl = s3cret",
        "[broker]\nurl = \"amqp://u:s3cret",
        "[broker]\nurl = \"a\"\nurl = \"amqp://u:s3cret@mq\"",
        "[broker]\nurl = \"\\s3cret\"",
        "[broker]\nurl = [\"amqp://u:s3cret@mq\"]",
        "[broker]\npassword = \"s3cret\"",
        "[encryption]\nkeys = \"k1:s3cret\"",
        "[encryption]\nkeys = [\"k1:s3cret\"]",
        "[encryption]\nkeys = \"s3cret\"",
        "[encryption]\nkey = \"s3cret\"",
    ];
    for text in broken {
        let error = from_file(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{text}: {error}");
    }
}
