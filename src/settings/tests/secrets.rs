use super::*;

#[test]
fn encryption_keys_have_exactly_one_source() {
    let ring = KeyRing::generate("k1").expose_secret().to_owned();
    let shown = |settings: Settings| format!("{:?}", settings.key_ring().unwrap());
    assert_eq!(shown(from_environment(&[("TOKENKEEPER_KEYS", &ring)]).unwrap()), r#"["k1"]"#);
    assert_eq!(shown(from_file(&format!("[encryption]\nkeys = \"{ring}\"")).unwrap()), r#"["k1"]"#);

    let (folder, path) = file("[encryption]\nkeys_file = \"ring\"");
    write_private(&folder.path().join("ring"), &format!("{ring}\n"));
    assert_eq!(shown(Settings::load_from(Some(&path), HashMap::new()).unwrap()), r#"["k1"]"#);
    let both = problem(Settings::load_from(Some(&path), environment(&[("TOKENKEEPER_KEYS", &ring)])));
    assert!(both.text.contains("set one of them"), "{both}");
    let command = ("TOKENKEEPER__ENCRYPTION__KEYS_COMMAND", "[\"false\"]");
    let both = problem(Settings::load_from(Some(&path), environment(&[command])));
    assert!(both.key == "encryption.keys_command" && both.text.contains("set one of them"), "{both}");
    fs::remove_file(folder.path().join("ring")).unwrap();
    let missing = problem(Settings::load_from(Some(&path), HashMap::new()));
    assert!(missing.text.contains("ring, which is wrong: cannot be read"), "{missing}");
}

#[test]
fn a_settings_file_that_others_may_read_holds_no_secret() {
    let ring = KeyRing::generate("k1").expose_secret().to_owned();
    let of_keys = format!("[encryption]\nkeys = \"{ring}\"");
    for (text, key) in [
        (of_keys.as_str(), "encryption.keys"),
        ("[admin]\ntoken = \"0123456789abcdef\"", "admin.token"),
        ("[broker]\nurl = \"amqps://u:s3cret@mq/%2f\"", "broker.url"),
        ("[database]\nurl = \"postgres://db/tokens?user=u&password=s3cret\"", "database.url"),
    ] {
        let (_folder, path) = file(text);
        let load = |text: &str| {
            write_private(&path, text);
            set_mode(&path, 0o644);
            Settings::load_from(Some(&path), HashMap::new())
        };
        let found = problem(load(text));
        assert_eq!(found.key, key);
        let next = format!("may read or change it (mode 0644); next: chmod 600 {}, or", path.display());
        assert!(found.text.contains(&next) && !found.text.contains("s3cret"), "{found}");
        load(&format!("{text}\n[files]\nrequire_private = false")).unwrap();
    }
    let (_folder, path) =
        file("[broker]\nurl = \"amqp://guest:guest@127.0.0.1:5672/%2f\"\n[log]\nlevel = \"debug\"");
    set_mode(&path, 0o644);
    Settings::load_from(Some(&path), environment(&[("TOKENKEEPER_KEYS", &ring)]))
        .expect("the secret stands elsewhere");
}

#[test]
fn a_url_may_stand_in_a_file_of_its_own() {
    let (folder, path) = file("[broker]\nurl_file = \"broker\"\n[database]\nurl_file = \"database\"");
    let [broker, database] = ["broker", "database"].map(|name| folder.path().join(name));
    write_private(&broker, "amqps://u:s3cret@mq/%2f\n");
    write_private(&database, "postgres://u:s3cret@db/tokens\n");
    let load = |variables| Settings::load_from(Some(&path), environment(variables));
    let settings = load(&[]).unwrap();
    assert_eq!(settings.broker.nodes.urls()[0].expose_secret(), "amqps://u:s3cret@mq/%2f");
    assert_eq!(settings.database.url.expose_secret(), "postgres://u:s3cret@db/tokens");
    let both = problem(load(&[("AMQP_URL", "amqps://mq/%2f")]));
    assert!(both.key == "broker.url_file" && both.text.contains("set one of the two"), "{both}");
    set_mode(&database, 0o644);
    let exposed = problem(load(&[]));
    assert!(exposed.text.contains("chmod 600") && !exposed.text.contains("s3cret"), "{exposed}");
    write_private(&database, "s3cret");
    let wrong = problem(load(&[]));
    assert!(wrong.key == "database.url_file" && !wrong.text.contains("s3cret"), "{wrong}");
}

#[test]
fn keys_may_come_from_a_command() {
    let ring = KeyRing::generate("k1").expose_secret().to_owned();
    let of = |script: &str| {
        let command = serde_json::to_string(&["sh", "-c", script]).unwrap();
        from_environment(&[("TOKENKEEPER__ENCRYPTION__KEYS_COMMAND", &command)])
    };
    let shown = format!("{:?}", of(&format!("echo {ring}")).unwrap().key_ring().unwrap());
    assert_eq!(shown, r#"["k1"]"#);
    for (script, told) in [
        ("echo k1:s3cret", "printed no keys: key `k1` is not 32 bytes in base64"),
        ("echo s3cret; exit 3", "brings no keys: sh ended with exit status: 3"),
    ] {
        let found = problem(of(script));
        assert_eq!(found.key, "encryption.keys_command");
        assert!(found.text.starts_with(told) && !found.text.contains("s3cret"), "{found}");
    }
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
        ("AMQP_URL", "amqps://u:s3cret@mq/%2f"),
        ("DATABASE_URL", "mariadb://u:s3cret@db/tokens"),
        ("TOKENKEEPER_KEYS", &ring),
    ])
    .unwrap();
    let shown = format!("{settings:?} {} {}", settings.broker.display_url(), settings.database.display_url());
    assert!(!shown.contains("s3cret") && !shown.contains(material), "{shown}");
    assert!(shown.contains("amqps://u:***@mq/%2f") && shown.contains("mysql://u:***@db/tokens"), "{shown}");

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
