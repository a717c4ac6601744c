//! The shape of the code, as ARCHITECTURE.md states it. Needs no server.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The newest compiler that a package of the lock file needs is the one that this workspace says it needs.
#[test]
fn the_workspace_needs_the_compiler_that_its_dependencies_need() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let version = |package: &Value| -> Option<(u32, u32)> {
        let mut parts = package["rust_version"].as_str()?.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    let ours = packages.iter().find(|package| package["name"] == "tokenkeeper").and_then(version);
    let newest = packages
        .iter()
        .filter_map(|package| Some((version(package)?, &package["name"])))
        .max_by_key(|(version, _)| *version);
    let (needed, by) = newest.expect("some package says");
    assert_eq!(ours, Some(needed), "`rust-version` in Cargo.toml is not what {by} needs");
}
