mod access;
mod secrets;
mod tls;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokenkeeper_testkit::authority::Authority;

use super::*;
use crate::contract::MessageKind;
use crate::domain::secret::ExposeSecret;

const EXAMPLE: &str = "tokenkeeper.example.toml";

fn environment(variables: &[(&str, &str)]) -> HashMap<String, String> {
    variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    Settings::load_from(None, environment(variables))
}

/// A settings file in a folder of its own.
fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokenkeeper.toml");
    write_private(&path, text);
    (folder, path)
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    set_mode(path, 0o600);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn from_file(text: &str) -> Result<Settings, SettingsError> {
    let (_folder, path) = file(text);
    Settings::load_from(Some(&path), HashMap::new())
}

fn problems(loaded: Result<Settings, SettingsError>) -> Vec<Problem> {
    match loaded {
        Err(SettingsError::Invalid(problems)) => problems,
        other => panic!("{other:?}"),
    }
}

fn problem(loaded: Result<Settings, SettingsError>) -> Problem {
    let problems = problems(loaded);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.into_iter().next().unwrap()
}

#[test]
fn the_example_file_shows_the_defaults() {
    let example = Settings::load_from(Some(Path::new(EXAMPLE)), HashMap::new()).unwrap();
    let defaults = from_environment(&[]).unwrap();
    assert_eq!(format!("{example:#?}"), format!("{defaults:#?}"));
    for Settings { broker, .. } in [&example, &defaults] {
        let [url] = broker.nodes.urls() else { panic!("{broker:?}") };
        assert_eq!(url.expose_secret(), "amqp://guest:guest@127.0.0.1:5672/%2f");
    }
    assert_eq!(defaults.database.url.expose_secret(), "sqlite://tokenkeeper.db");
}

#[test]
fn the_example_file_shows_exactly_the_known_keys() {
    let (mut section, mut in_list) = (String::new(), String::new());
    let mut shown = BTreeSet::new();
    for line in fs::read_to_string(EXAMPLE).unwrap().lines() {
        let code = line.strip_prefix("# ").unwrap_or(line);
        // A list of tables is one key.
        if let Some(name) = code.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            shown.insert(name.to_owned());
            name.clone_into(&mut in_list);
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
            in_list.clear();
        }
        if !in_list.is_empty() {
            continue;
        }
        if let Some((name, _)) = code.split_once(" = ")
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            shown.insert(format!("{section}.{name}"));
        }
    }
    let mut reader = Reader::new(Sources::read(None, HashMap::new()).unwrap());
    Settings::read(&mut reader);
    let known: BTreeSet<String> = reader.known().iter().map(|&key| key.to_owned()).collect();
    assert_eq!(shown, known);
}

#[test]
fn the_example_file_is_valid_with_its_commented_keys_active() {
    let folder = TempDir::new().unwrap();
    let keys = folder.path().join("tokenkeeper.keys");
    write_private(&keys, KeyRing::generate("k1").expose_secret());
    let text = fs::read_to_string(EXAMPLE).unwrap();
    let is_code = |line: &&str| {
        let code = line.trim_start_matches("# ").trim_start();
        let is_key = code.split_once(" = ").is_some_and(|(name, _)| !name.contains(' '));
        is_key || code.starts_with(['[', ']', '{'])
    };
    // Another one does the same as each of these.
    let doubled =
        ["# keys = ", "# keys_command = ", "# token = ", "# url_file = ", "# urls = ", "# rules = "];
    let is_doubled = |line: &&str| doubled.iter().any(|start| line.starts_with(start));
    let lines: Vec<&str> = text.lines().filter(is_code).filter(|line| !is_doubled(line)).collect();
    let ca = Authority::new("an authority");
    let client = ca.sign_client("tokenkeeper");
    for (name, text) in [("ca.pem", ca.pem()), ("client.pem", &client.cert), ("client-key.pem", &client.key)]
    {
        write_private(&folder.path().join(name), text);
    }
    // The default links stay on this machine and have no TLS.
    let text = lines.join("\n").replace("# ", "").replace("\"amqp://", "\"amqps://");
    let path = folder.path().join("tokenkeeper.toml");
    write_private(&path, &text.replace("sqlite://tokenkeeper.db", "postgres://db.example.org/tokens"));
    let settings = Settings::load_from(Some(&path), HashMap::new()).unwrap();
    let AccessPolicy::Publishers(policies) = &settings.access.policy else { panic!("no publishers") };
    assert_eq!(policies.len(), 3);
    assert!(settings.key_ring().is_ok());
    for tls in [settings.broker.tls, settings.database.tls] {
        assert!(matches!(tls, LinkTls::Verified(tls) if tls.ca.is_some() && tls.identity.is_some()));
    }
    assert_eq!(settings.flags.file, FlagFile::Required(folder.path().join("flags.json")));
}

#[test]
fn what_is_deployed_sets_only_settings_that_there_are() {
    let mut reader = Reader::new(Sources::read(None, HashMap::new()).unwrap());
    Settings::read(&mut reader);
    let known: BTreeSet<String> = reader.known().iter().map(|key| sources::variable_of(key)).collect();
    for file in [
        "deploy/systemd/tokenkeeper.service",
        "deploy/kubernetes/worker.yaml",
        "docker-compose.yml",
        "Dockerfile",
    ] {
        let text = fs::read_to_string(file).unwrap();
        let words = text.split(|sign: char| !sign.is_ascii_uppercase() && sign != '_');
        let set: Vec<&str> = words.filter(|word| word.starts_with("TOKENKEEPER__")).collect();
        let unknown: Vec<&&str> = set.iter().filter(|name| !known.contains(**name)).collect();
        assert!(!set.is_empty() && unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn later_sources_win() {
    let (_folder, path) =
        file("[broker]\nurl = \"amqps://file\"\n[worker]\ngrace_period_secs = 7\nrequest_budget_secs = 40\n");
    let load = |variables| Settings::load_from(Some(&path), environment(variables)).unwrap();
    let settings = load(&[]);
    assert_eq!(settings.broker.display_url(), "amqps://file");
    assert_eq!(settings.worker.grace_period, Duration::from_secs(7));
    assert_eq!(settings.worker.workspace_start_budget, Duration::from_mins(1), "the default");
    let settings = load(&[("AMQP_URL", "amqps://alias"), ("TOKENKEEPER__WORKER__GRACE_PERIOD_SECS", " 8 ")]);
    assert_eq!(settings.broker.display_url(), "amqps://alias");
    assert_eq!(settings.worker.grace_period, Duration::from_secs(8));
    assert_eq!(settings.worker.request_budget, Duration::from_secs(40), "the file's other keys stay");
    let settings = load(&[("AMQP_URL", "amqps://alias"), ("TOKENKEEPER__BROKER__URL", "amqps://own-name")]);
    assert_eq!(settings.broker.display_url(), "amqps://own-name");
}

#[test]
fn an_empty_variable_and_one_of_another_program_are_not_settings() {
    let settings = from_environment(&[
        ("AMQP_URL", "amqps://alias"),
        ("TOKENKEEPER__BROKER__URL", ""),
        ("DATABASE_URL", ""),
        ("TOKENKEEPER__BROKER__PREFX", ""),
        ("TOKENKEEPER_PORT", "tcp://10.0.0.1:9464"),
        ("TOKENKEEPER_CONFIG", "elsewhere.toml"),
    ])
    .unwrap();
    assert_eq!(settings.broker.display_url(), "amqps://alias");
    assert_eq!(settings.database.display_url(), "sqlite://tokenkeeper.db");
}

#[test]
fn an_error_names_key_and_source_and_says_what_is_valid() {
    let key = "worker.prefetch_token_requests";
    let variable = "TOKENKEEPER__WORKER__PREFETCH_TOKEN_REQUESTS";
    let text = "must be a whole number from 1 to 65535, for example 512; it is";
    for value in ["0", "65536", "-1", "many", "1.5"] {
        let found = problem(from_environment(&[(variable, value)]));
        assert_eq!(found.to_string(), format!("`{key}` ({variable}) {text} the text `{value}`"));
    }
    for value in ["0", "65536", "1.5", "true", "\"256\""] {
        let (_folder, path) = file(&format!("[worker]\nprefetch_token_requests = {value}"));
        let found = problem(Settings::load_from(Some(&path), HashMap::new()));
        let start = format!("`{key}` ({}) {text}", path.display());
        assert!(found.to_string().starts_with(&start), "{found}");
    }
}

#[test]
fn one_error_lists_every_wrong_setting() {
    let (_folder, path) = file("[broker]\ntopology = \"declair\"\nprefix = \"amq.x\"\n[log]\nlevel = 3\n");
    let variables = [
        ("TOKENKEEPER__ADMIN__LISTEN", "localhost:9464"),
        ("TOKENKEEPER__DATABASE__MIGRATE_AT_START", "yes"),
        ("DATABASE_URL", "oracle://u:s3cret@db/x"),
    ];
    let error = Settings::load_from(Some(&path), environment(&variables)).unwrap_err().to_string();
    let file = path.display();
    for expected in [
        "6 settings are wrong:".to_owned(),
        format!("`broker.topology` ({file}) must be one of declare, passive, none; it is the text `declair`"),
        format!("`broker.prefix` ({file}) must be 1 to 100 letters"),
        format!("`log.level` ({file}) must be one of trace, debug, info, warn, error; it is `3`"),
        "`admin.listen` (TOKENKEEPER__ADMIN__LISTEN) must be an IP address with a port, for example 127.0.0.1:9464"
            .to_owned(),
        "`database.migrate_at_start` (TOKENKEEPER__DATABASE__MIGRATE_AT_START) must be true or false".to_owned(),
        "`database.url` (DATABASE_URL) must be a URL like".to_owned(),
    ] {
        assert!(error.contains(&expected), "{expected} is not in {error}");
    }
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn the_nodes_of_the_broker_are_in_one_setting_and_each_of_them_needs_tls_or_none() {
    const URLS: &str = "TOKENKEEPER__BROKER__URLS";
    let urls = r#"["amqps://u:s3cret@a/v", "amqps://u:s3cret@b:5673/v"]"#;
    let settings = from_environment(&[(URLS, urls)]).unwrap();
    assert_eq!(settings.broker.display_url(), "amqps://u:***@a,b:5673/v");
    assert_eq!(settings.broker.nodes.urls().len(), 2);
    let both = problem(from_environment(&[(URLS, urls), ("AMQP_URL", "amqps://u:s3cret@a/v")])).to_string();
    let told = format!("`broker.urls` ({URLS}) is set beside `broker.url`; set one of the two");
    assert_eq!(both, told);
    let plain = r#"["amqp://u:s3cret@127.0.0.1/v", "amqp://u:s3cret@b/v"]"#;
    let refused = problem(from_environment(&[(URLS, plain)])).to_string();
    let told = format!("`broker.urls` ({URLS}) would send passwords and tokens to b in plain text");
    assert!(refused.starts_with(&told) && !refused.contains("s3cret"), "{refused}");
    let off = from_environment(&[(URLS, plain), ("TOKENKEEPER__BROKER__TLS", "off")]).unwrap();
    assert_eq!(off.broker.tls, LinkTls::Off { crosses_network: true });
    let (_folder, path) = file("[broker]\nurls = [\"amqps://u:s3cret@a/v\"]\n");
    set_mode(&path, 0o644);
    let exposed = problem(Settings::load_from(Some(&path), HashMap::new())).to_string();
    assert!(exposed.starts_with("`broker.urls` (") && exposed.contains("chmod 600"), "{exposed}");
}

#[test]
fn partitions_are_off_by_default_and_limited_to_64() {
    let partitions = |text| from_environment(&[("TOKENKEEPER__BROKER__PARTITIONS", text)]);
    assert_eq!(from_environment(&[]).unwrap().broker.partitions, 0);
    assert_eq!(partitions("64").unwrap().broker.partitions, 64);
    for wrong in ["65", "-1", "many"] {
        assert_eq!(problem(partitions(wrong)).key, "broker.partitions", "{wrong}");
    }
}

#[test]
fn an_unknown_key_is_an_error_that_suggests_the_most_similar_key() {
    let cases = [
        ("[worker]\ngrace_period = 30", "worker.grace_period", "did you mean `worker.grace_period_secs`?"),
        ("[brokers]\nurl = \"x\"", "brokers.url", "did you mean `broker.url`?"),
        ("prefix = \"x\"", "prefix", "did you mean `broker.prefix`?"),
        ("broker = \"x\"", "broker", "is a section and cannot have a value"),
        ("[log.level]\nname = 1", "log.level.name", "did you mean `log.level`?"),
    ];
    for (text, key, expected) in cases {
        let problems = problems(from_file(text));
        let found = problems.iter().find(|problem| problem.key == key).expect(key);
        assert!(found.text.contains(expected), "{found}");
    }
    let found = problem(from_environment(&[("TOKENKEEPER__WORKER__PREFETCH_TOKEN_REQUEST", "s3cret")]));
    let expected = "`worker.prefetch_token_request` (TOKENKEEPER__WORKER__PREFETCH_TOKEN_REQUEST) is not a setting; \
                    did you mean TOKENKEEPER__WORKER__PREFETCH_TOKEN_REQUESTS?";
    assert_eq!(found.to_string(), expected);
}

#[test]
fn an_error_about_contradicting_limits_names_both_sources() {
    let cases = [
        (
            "refresh.wait_secs",
            "TOKENKEEPER__REFRESH__WAIT_SECS",
            "31",
            "`worker.request_budget_secs` (the default), 30s",
        ),
        (
            "refresh.opportunistic_budget_secs",
            "TOKENKEEPER__REFRESH__OPPORTUNISTIC_BUDGET_SECS",
            "31",
            "`worker.request_budget_secs` (the default), 30s",
        ),
        (
            "refresh.connect_timeout_secs",
            "TOKENKEEPER__REFRESH__CONNECT_TIMEOUT_SECS",
            "16",
            "`refresh.total_timeout_secs` (the default), 15s",
        ),
        (
            "refresh.retry_initial_ms",
            "TOKENKEEPER__REFRESH__RETRY_INITIAL_MS",
            "5001",
            "`refresh.retry_max_ms` (the default), 5s",
        ),
    ];
    for (key, variable, value, limit) in cases {
        let found = problem(from_environment(&[(variable, value)]));
        assert_eq!((found.key.as_str(), &found.source), (key, &Source::Variable(variable.into())));
        assert!(found.text.contains(limit), "{found}");
    }
    let longer_than_the_lease = [("TOKENKEEPER__REFRESH__TOTAL_TIMEOUT_SECS", "60")];
    assert!(from_environment(&longer_than_the_lease).is_ok(), "the heartbeat keeps the lease");
    assert_eq!(
        problem(from_environment(&[("TOKENKEEPER__REFRESH__LEASE_TTL_SECS", "0")])).key,
        "refresh.lease_ttl_secs"
    );
}

#[test]
fn only_sqlite_is_migrated_at_start_by_default() {
    let migrates = |url, set| {
        let variables = [("DATABASE_URL", url), ("TOKENKEEPER__DATABASE__MIGRATE_AT_START", set)];
        from_environment(&variables).unwrap().database.migrate_at_start
    };
    assert!(migrates("", ""));
    assert!(migrates("sqlite:tokens.db", ""));
    assert!(!migrates("postgres://localhost/tokens", ""));
    assert!(!migrates("mariadb://localhost/tokens", ""));
    assert!(migrates("postgres://localhost/tokens", "true"));
    assert!(!migrates("", "false"));
}

#[test]
fn an_error_about_bad_toml_names_line_and_column() {
    let (_folder, path) = file("[broker]\nprefix = \"ü\" x\n");
    match Settings::load_from(Some(&path), HashMap::new()) {
        Err(error @ SettingsError::Syntax { .. }) => {
            let place = format!("{}, line 2, column 14: ", path.display());
            assert!(error.to_string().starts_with(&place), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_named_file_must_exist() {
    let error = Settings::load_from(Some(Path::new("nowhere.toml")), HashMap::new()).unwrap_err().to_string();
    assert!(error.contains("nowhere.toml") && error.contains("--config"), "{error}");
}

#[test]
fn the_flag_file_is_beside_the_settings_unless_it_is_named() {
    let (folder, path) = file("[flags]\nfile = \"conf/flags.json\"");
    let flags = |path: Option<&Path>, variables| {
        Settings::load_from(path, environment(variables)).unwrap().flags.file
    };
    assert_eq!(flags(None, &[]), FlagFile::Optional("flags.json".into()));
    assert_eq!(flags(Some(&path), &[]), FlagFile::Required(folder.path().join("conf/flags.json")));
    let variable = [("TOKENKEEPER__FLAGS__FILE", "conf/flags.json")];
    assert_eq!(flags(Some(&path), &variable), FlagFile::Required("conf/flags.json".into()));
    fs::write(&path, "").unwrap();
    assert_eq!(flags(Some(&path), &[]), FlagFile::Optional(folder.path().join("flags.json")));
}

#[test]
fn a_chain_needs_a_file_to_go_on_from() {
    for to in ["off", "stdout"] {
        let chained = [("TOKENKEEPER__AUDIT__TO", to), ("TOKENKEEPER__AUDIT__CHAIN", "true")];
        let found = problem(from_environment(&chained));
        assert_eq!(found.key, "audit.chain");
        assert!(found.text.starts_with("needs `audit.to = \"file\"`"), "{found}");
    }
    let chained = [("TOKENKEEPER__AUDIT__TO", "file"), ("TOKENKEEPER__AUDIT__CHAIN", "true")];
    assert!(from_environment(&chained).unwrap().audit.is_chained());
    assert!(!from_environment(&chained[..1]).unwrap().audit.is_chained());
}
