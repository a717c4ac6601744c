use super::*;
use crate::tls::ClientTls;

const BROKER_TLS: &str = "TOKENKEEPER__BROKER__TLS";
const DATABASE_TLS: &str = "TOKENKEEPER__DATABASE__TLS";

const VERIFIED: LinkTls = LinkTls::Verified(ClientTls { ca: None, identity: None, server_name: None });
const LOCAL: LinkTls = LinkTls::Off { crosses_network: false };
const EXPOSED: LinkTls = LinkTls::Off { crosses_network: true };

fn broker(variables: &[(&str, &str)]) -> LinkTls {
    from_environment(variables).unwrap().broker.tls
}

fn database(variables: &[(&str, &str)]) -> LinkTls {
    from_environment(variables).unwrap().database.tls
}

#[test]
fn a_broker_on_another_machine_is_verified_unless_the_operator_says_off() {
    assert_eq!(broker(&[]), LOCAL);
    for here in ["amqp://localhost/%2f", "amqp://127.0.0.1:5673/%2f", "amqp://LOCALHOST", "amqp://127.1.2.3"]
    {
        assert_eq!(broker(&[("AMQP_URL", here)]), LOCAL, "{here}");
    }
    assert_eq!(broker(&[("AMQP_URL", "amqps://mq.example.org/%2f")]), VERIFIED);
    assert_eq!(broker(&[("AMQP_URL", "amqps://localhost/%2f"), (BROKER_TLS, "verify")]), VERIFIED);
    for there in [
        "amqp://u:s3cret@mq.example.org/%2f",
        "amqp://u:s3cret@10.0.0.1",
        "amqp://u:s3cret@localhost.example.org",
    ] {
        let refused = problem(from_environment(&[("AMQP_URL", there)])).to_string();
        assert!(
            refused.starts_with("`broker.url` (AMQP_URL) would send passwords and tokens to ")
                && refused.contains("write amqps://")
                && refused.contains("TOKENKEEPER__BROKER__TLS=off")
                && !refused.contains("s3cret"),
            "{refused}"
        );
        assert_eq!(broker(&[("AMQP_URL", there), (BROKER_TLS, "off")]), EXPOSED, "{there}");
    }
}

#[test]
fn a_database_on_another_machine_is_verified_unless_the_operator_says_off() {
    assert_eq!(database(&[]), LOCAL, "SQLite");
    for here in [
        "postgres://u@localhost/t",
        "postgres://u@127.0.0.1:5433/t",
        "postgres://u@[::1]/t",
        "postgres://u@%2Fvar%2Frun%2Fpostgresql/t",
        "postgres://u@db.example.org/t?host=/var/run/postgresql",
        "postgres://u@127.0.0.1/t?sslmode=require",
        "mysql://u@localhost/t",
        "mariadb://u@db.example.org/t?socket=/run/mysqld/mysqld.sock",
    ] {
        assert_eq!(database(&[("DATABASE_URL", here)]), LinkTls::AsOffered, "{here}");
    }
    for there in [
        "postgres://u@db.example.org/t",
        "postgres://u@localhost/t?host=db.example.org",
        "postgres://u@localhost/t?hostaddr=10.0.0.1",
        "postgresql://u@db.example.org/t?sslmode=verify-full",
        "postgres://u@127.0.0.1/t?sslmode=verify-full",
        "mysql://u@10.0.0.1/t",
        "mariadb://u@db.example.org/t?ssl-mode=VERIFY_IDENTITY",
    ] {
        assert_eq!(database(&[("DATABASE_URL", there)]), VERIFIED, "{there}");
    }
    for url in ["postgres://u@db.example.org/t", "mysql://u@db.example.org/t"] {
        assert_eq!(database(&[("DATABASE_URL", url), (DATABASE_TLS, "off")]), EXPOSED, "{url}");
    }
    for url in
        ["postgres://u@db.example.org/t?sslmode=disable", "mysql://u@db.example.org/t?ssl-mode=DISABLED"]
    {
        assert_eq!(database(&[("DATABASE_URL", url)]), EXPOSED, "{url}");
    }
    assert_eq!(database(&[("DATABASE_URL", "postgres://u@localhost/t"), (DATABASE_TLS, "off")]), LOCAL);
    assert_eq!(database(&[("DATABASE_URL", "postgres://u@localhost/t"), (DATABASE_TLS, "verify")]), VERIFIED);
}

#[test]
fn an_sslmode_that_takes_any_server_for_the_right_one_is_refused() {
    for mode in ["allow", "prefer", "require", "verify-ca"] {
        let url = format!("postgres://u:s3cret@db.example.org/t?sslmode={mode}");
        let refused = problem(from_environment(&[("DATABASE_URL", &url)]));
        assert_eq!(refused.key, "database.url");
        assert!(refused.text.contains("write sslmode=verify-full"), "{refused}");
        assert!(!refused.text.contains("s3cret"), "{refused}");
    }
    for mode in ["PREFERRED", "REQUIRED", "VERIFY_CA"] {
        let url = format!("mysql://u:s3cret@db.example.org/t?ssl-mode={mode}");
        let refused = problem(from_environment(&[("DATABASE_URL", &url)]));
        assert!(refused.text.contains("ssl-mode=VERIFY_IDENTITY"), "{refused}");
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let ca = Authority::new("an authority");
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ca.pem");
    fs::write(&path, ca.pem()).unwrap();
    let path = path.to_str().unwrap();
    let in_url = format!("postgres://u@db.example.org/t?sslrootcert={path}");
    let (encrypted, plain) = (("AMQP_URL", "amqps://mq.example.org"), ("AMQP_URL", "amqp://localhost"));
    let database = ("DATABASE_URL", "postgres://u@db.example.org/t");
    for (variables, key) in [
        (&[encrypted, (BROKER_TLS, "off")][..], "broker.tls"),
        (&[plain, (BROKER_TLS, "verify")], "broker.tls"),
        (&[plain, (BROKER_TLS, "no")], "broker.tls"),
        (&[plain, ("TOKENKEEPER__BROKER__TLS_CA_FILE", path)], "broker.tls_ca_file"),
        (&[plain, ("TOKENKEEPER__BROKER__TLS_SERVER_NAME", "mq")], "broker.tls_server_name"),
        (&[encrypted, ("TOKENKEEPER__BROKER__TLS_SERVER_NAME", "m q")], "broker.tls_server_name"),
        (&[encrypted, ("TOKENKEEPER__BROKER__TLS_CERT_FILE", path)], "broker.tls_key_file"),
        (&[encrypted, ("TOKENKEEPER__BROKER__TLS_KEY_FILE", path)], "broker.tls_cert_file"),
        (&[("AMQP_URL", "amqps://mq.example.org/%2f?auth_mechanism=external")], "broker.url"),
        (&[(DATABASE_TLS, "verify")], "database.tls"),
        (&[("TOKENKEEPER__DATABASE__TLS_CA_FILE", path)], "database.tls_ca_file"),
        (
            &[database, (DATABASE_TLS, "off"), ("TOKENKEEPER__DATABASE__TLS_CA_FILE", path)],
            "database.tls_ca_file",
        ),
        (&[("DATABASE_URL", &in_url), ("TOKENKEEPER__DATABASE__TLS_CA_FILE", path)], "database.tls_ca_file"),
        (&[("DATABASE_URL", "postgres://u@h/t?sslmode=disable"), (DATABASE_TLS, "verify")], "database.tls"),
        (&[("DATABASE_URL", "postgres://u@h/t?sslmode=verify-full"), (DATABASE_TLS, "off")], "database.tls"),
        (&[("DATABASE_URL", "postgres://u@h/t?sslmode=require"), (DATABASE_TLS, "verify")], "database.tls"),
    ] {
        assert_eq!(problem(from_environment(variables)).key, key, "{variables:?}");
    }
}

#[test]
fn files_of_the_databases_url_count_as_those_of_the_settings() {
    let ca = Authority::new("an authority");
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ca.pem");
    fs::write(&path, ca.pem()).unwrap();
    let url = format!("postgres://u@localhost/t?sslrootcert={}", path.display());
    let LinkTls::Verified(tls) = database(&[("DATABASE_URL", &url)]) else { panic!("{url}") };
    assert_eq!(tls.ca.unwrap().path, path);
    fs::remove_file(path).unwrap();
    assert_eq!(problem(from_environment(&[("DATABASE_URL", &url)])).key, "database.url");
}

#[test]
fn a_file_that_cannot_be_used_is_a_wrong_setting() {
    let there = [("AMQP_URL", "amqps://mq.example.org"), ("DATABASE_URL", "mysql://db.example.org/t")];
    for (variable, key) in [
        ("TOKENKEEPER__BROKER__TLS_CA_FILE", "broker.tls_ca_file"),
        ("TOKENKEEPER__DATABASE__TLS_CA_FILE", "database.tls_ca_file"),
        ("TOKENKEEPER__REFRESH__TLS_CA_FILE", "refresh.tls_ca_file"),
    ] {
        let missing = problem(from_environment(&[there[0], there[1], (variable, "nowhere/ca.pem")]));
        assert_eq!(
            missing.to_string(),
            format!(
                "`{key}` ({variable}) names nowhere/ca.pem, which cannot be read: No such file or directory"
            )
        );
    }
    let (folder, ca) = (TempDir::new().unwrap(), Authority::new("an authority"));
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        write_private(&path, text);
        path.to_str().unwrap().to_owned()
    };
    let cert = path("cert.pem", &ca.sign_client("tokenkeeper").cert);
    let key = path("key.pem", &ca.sign_client("another").key);
    let wrong = problem(from_environment(&[
        there[0],
        ("TOKENKEEPER__BROKER__TLS_CERT_FILE", &cert),
        ("TOKENKEEPER__BROKER__TLS_KEY_FILE", &key),
    ]));
    assert_eq!(wrong.key, "broker.tls_key_file");
    assert!(wrong.text.contains("is not the key of the certificate in"), "{wrong}");
    assert!(!wrong.to_string().contains("BEGIN"), "{wrong}");
}

#[test]
fn a_private_key_that_others_may_read_is_refused_on_every_link() {
    let (folder, client) =
        (TempDir::new().unwrap(), Authority::new("an authority").sign_client("tokenkeeper"));
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
    write_private(&cert, &client.cert);
    write_private(&key, &client.key);
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let there = [("AMQP_URL", "amqps://mq.example.org"), ("DATABASE_URL", "postgres://db.example.org/t")];
    let in_url = format!("{}?sslcert={cert}&sslkey={key}", there[1].1);
    for (variables, of) in [
        (
            [
                there[1],
                ("TOKENKEEPER__BROKER__TLS_CERT_FILE", cert),
                ("TOKENKEEPER__BROKER__TLS_KEY_FILE", key),
            ],
            "broker.tls_key_file",
        ),
        (
            [
                there[1],
                ("TOKENKEEPER__DATABASE__TLS_CERT_FILE", cert),
                ("TOKENKEEPER__DATABASE__TLS_KEY_FILE", key),
            ],
            "database.tls_key_file",
        ),
        (
            [
                there[1],
                ("TOKENKEEPER__REFRESH__TLS_CERT_FILE", cert),
                ("TOKENKEEPER__REFRESH__TLS_KEY_FILE", key),
            ],
            "refresh.tls_key_file",
        ),
        ([("DATABASE_URL", &in_url), ("", ""), ("", "")], "database.url"),
    ] {
        let load = |more: &[(&str, &str)]| from_environment(&[&variables, &there[..1], more].concat());
        set_mode(Path::new(key), 0o600);
        load(&[]).unwrap();
        set_mode(Path::new(key), 0o644);
        let refused = problem(load(&[]));
        assert_eq!(refused.key, of);
        let expected =
            format!("other users of this machine may read or change it (mode 0644); next: chmod 600 {key}");
        assert!(refused.text.contains(&expected) && !refused.text.contains("BEGIN"), "{refused}");
        load(&[("TOKENKEEPER__FILES__REQUIRE_PRIVATE", "false")]).unwrap();
    }
}
