//! What is built from, and what SECURITY.md says of it. Needs no server.

#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a folder whose names end like this.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What stands behind `key:` in the lines of a YAML file, with its comment.
fn values<'a>(yaml: &'a str, key: &'static str) -> impl Iterator<Item = &'a str> {
    yaml.lines()
        .filter_map(move |line| line.trim_start().trim_start_matches("- ").strip_prefix(key))
        .map(str::trim)
}

/// `owner/name@DIGEST # v1.2.3`.
fn is_pinned_action(uses: &str) -> bool {
    let parts = uses.split_once('@').and_then(|(name, rest)| Some((name, rest.split_once(" # v")?)));
    parts.is_some_and(|(name, (digest, version))| {
        name.contains('/') && is_hex(digest, 40) && version.starts_with(|first: char| first.is_ascii_digit())
    })
}

/// `name:tag@sha256:DIGEST`: the tag for people, the digest for the machine.
fn is_pinned_image(image: &str) -> bool {
    let parts = image.split_once("@sha256:");
    parts.is_some_and(|(name, digest)| name.contains(':') && is_hex(digest, 64))
}

#[test]
fn every_action_is_pinned_by_the_digest_of_its_commit() {
    let mut digests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files(".github/workflows", ".yml") {
        for uses in values(&read(&file), "uses:") {
            assert!(is_pinned_action(uses), "{}: {uses}", file.display());
            let (name, digest) = uses.split_once('@').expect("it is pinned");
            digests.entry(name.to_owned()).or_default().insert(digest.to_owned());
        }
    }
    assert!(digests.len() > 3, "{digests:?}");
    for (name, digests) in digests {
        assert_eq!(digests.len(), 1, "{name} is pinned in two ways: {digests:?}");
    }
    for loose in
        ["actions/checkout@v5", "actions/checkout@main", "a/b@08c6903cd8c0fde910a37f88322edcfb5dd907a # v1"]
    {
        assert!(!is_pinned_action(loose), "{loose}");
    }
}

#[test]
fn a_workflow_may_read_the_sources_and_each_job_says_what_else_it_may() {
    for file in files(".github/workflows", ".yml") {
        let text = read(&file);
        assert!(text.contains("\npermissions:\n  contents: read\n"), "{}", file.display());
        let secrets = text.matches("${{ secrets.").count();
        assert_eq!(secrets, 0, "{} needs a secret that somebody would have to keep", file.display());
    }
}

#[test]
fn every_image_is_pinned_by_its_digest() {
    let (dockerfile, compose) = (read("Dockerfile"), read("docker-compose.yml"));
    let from = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")?.split(' ').next());
    let ours = "tokenkeeper";
    let images: Vec<&str> = from.chain(values(&compose, "image:").filter(|image| *image != ours)).collect();
    assert!(images.len() >= 7, "{images:?}");
    for image in images {
        assert!(is_pinned_image(image), "{image}");
    }
    for loose in ["debian:bookworm-slim", "debian@sha256:0123", "debian:bookworm-slim@sha256:0123"] {
        assert!(!is_pinned_image(loose), "{loose}");
    }
}

/// The packages of a lock file: name and version, with the checksum.
fn locked(file: &str) -> BTreeMap<(String, String), String> {
    let lock: toml::Table = read(file).parse().expect("a lock file");
    let packages = lock["package"].as_array().expect("packages");
    let text = |package: &toml::Value, key: &str| {
        package.get(key).and_then(toml::Value::as_str).unwrap_or_default().to_owned()
    };
    packages.iter().map(|it| ((text(it, "name"), text(it, "version")), text(it, "checksum"))).collect()
}

#[test]
fn what_is_fuzzed_is_what_runs() {
    const OF_FUZZING: [&str; 4] = ["arbitrary", "jobserver", "libfuzzer-sys", "tokenkeeper-fuzz"];
    let (ours, fuzzed) = (locked("Cargo.lock"), locked("fuzz/Cargo.lock"));
    let others = fuzzed.iter().filter(|((name, _), _)| !OF_FUZZING.contains(&name.as_str()));
    let differing: Vec<_> =
        others.filter(|(package, checksum)| ours.get(package) != Some(checksum)).collect();
    assert!(
        differing.is_empty(),
        "cp Cargo.lock fuzz/Cargo.lock, and let cargo add the fuzzers' own: {differing:?}"
    );
}

/// What a page takes for the name of a test: words in backticks, with underscores between them.
fn tests_named_in(page: &str) -> BTreeSet<&str> {
    let is_name = |text: &&str| {
        text.matches('_').count() >= 3
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    page.split('`').skip(1).step_by(2).filter(is_name).collect()
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let sources: String = ["src", "tests"].iter().flat_map(|folder| files(folder, ".rs")).map(read).collect();
    let page = read("SECURITY.md");
    let named = tests_named_in(&page);
    assert!(named.len() > 30, "{named:?}");
    let missing: Vec<&&str> = named.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}

#[test]
fn every_row_of_the_threat_model_has_a_control_and_a_test_or_says_that_there_is_none() {
    let page = read("SECURITY.md");
    let (_, model) = page.split_once("## Who could attack").expect("a threat model");
    let (model, _) = model.split_once("\n## ").expect("what follows it");
    for attacker in [
        "publisher",
        "broker",
        "reads the database",
        "writes the database",
        "provider",
        "operator",
        "user of the machine",
        "stolen backup",
        "stolen replica",
    ] {
        let headings = model.lines().filter(|line| line.starts_with("### "));
        assert!(headings.into_iter().any(|line| line.contains(attacker)), "nothing is said of {attacker}");
    }
    let rows = model.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attempt"));
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, happens, control, tests] = cells[..] else { panic!("four cells: {row}") };
        let is_open = tests == "-" && control == "-";
        let has_test = !tests_named_in(tests).is_empty();
        assert!(!happens.is_empty() && (is_open || has_test && !control.is_empty()), "{row}");
    }
}
