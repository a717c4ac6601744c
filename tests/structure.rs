//! The shape of the code, as ARCHITECTURE.md and Cargo.toml state it. Needs no server.

#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The layers that ARCHITECTURE.md lists under "Layers": each module with its place, the lowest layer first.
fn layers() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, section) = text.split_once("## Layers").expect("a section of that name");
    let (_, block) = section.split_once("```text\n").expect("a block with the layers");
    let (block, _) = block.split_once("```").expect("its end");
    let lines: Vec<&str> = block.lines().filter(|line| !line.trim().is_empty()).collect();
    let placed = lines.iter().rev().enumerate();
    placed
        .flat_map(|(place, line)| line.split_whitespace().map(move |name| (name.to_owned(), place)))
        .collect()
}

fn source_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            source_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The modules at the top that a source file uses, apart from its tests.
fn imports(source: &str) -> BTreeSet<&str> {
    let (code, _tests) = source.split_once("#[cfg(test)]\nmod ").unwrap_or((source, ""));
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1).map(first_word))
        .filter(|name| !name.is_empty())
        .collect()
}

fn first_word(text: &str) -> &str {
    let end = text.find(|sign: char| !sign.is_ascii_lowercase() && sign != '_').unwrap_or(text.len());
    &text[..end]
}

#[test]
fn every_module_imports_from_lower_layers_alone() {
    let layers = layers();
    let source = root().join("src");
    let mut files = Vec::new();
    source_files(&source, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&source).expect("a path below src");
        let name = relative.file_name().expect("a name").to_string_lossy();
        let top = relative.iter().next().expect("a first part").to_string_lossy();
        let module = top.trim_end_matches(".rs");
        // Tests may stand on anything.
        if matches!(&*name, "tests.rs" | "testing.rs") || module == "lib" {
            continue;
        }
        let place = layers.get(module).unwrap_or_else(|| panic!("ARCHITECTURE.md has no layer for {module}"));
        let text = fs::read_to_string(&file).expect("a source file");
        for import in imports(&text).into_iter().filter(|import| *import != module) {
            match layers.get(import) {
                Some(other) if other < place => {}
                _ => wrong.push(format!("{} imports {import}", relative.display())),
            }
        }
    }
    assert!(wrong.is_empty(), "against the layers of ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn an_import_is_found_wherever_it_stands_but_in_tests_and_comments() {
    let source = "use crate::clock::Clock;\nfn f() { crate::store::g(crate::secret::h()) }\n// crate::broker\n\
                  #[cfg(test)]\nmod tests {\n    use crate::worker::Worker;\n}";
    assert_eq!(imports(source), BTreeSet::from(["clock", "secret", "store"]));
}

#[test]
fn the_workspace_needs_the_compiler_that_its_dependencies_need() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let run = |arguments: &[&str]| {
        let output = Command::new(&cargo).args(arguments).current_dir(root()).output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let version = run(&["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host");
    // Of other platforms' packages nothing has been downloaded yet on a new machine.
    let metadata =
        run(&["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host]);
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let version = |package: &Value| -> Option<(u32, u32)> {
        let mut parts = package["rust_version"].as_str()?.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    let ours = packages.iter().find(|package| package["name"] == "tokenkeeper").and_then(version);
    let dependencies = packages.iter().filter(|package| !package["source"].is_null());
    let newest =
        dependencies.filter_map(|package| Some((version(package)?, &package["name"]))).max_by_key(|it| it.0);
    let (needed, by) = newest.expect("some package says");
    assert_eq!(ours, Some(needed), "`rust-version` in Cargo.toml is not what {by} needs");
}
