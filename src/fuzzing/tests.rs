use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use super::*;

fn fuzz(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder)
}

/// The names in a folder, without their extensions.
fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let name = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    entries.map(|entry| name(entry.unwrap().path())).collect()
}

#[test]
fn every_input_that_a_fuzzer_kept_is_still_dealt_with_as_promised() {
    let mut broken = Vec::new();
    for (name, target) in TARGETS {
        let corpus = fuzz("corpus").join(name);
        let inputs: Vec<PathBuf> =
            fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(inputs.len() >= 10, "{} holds {} inputs", corpus.display(), inputs.len());
        for path in inputs {
            let input = fs::read(&path).unwrap();
            if catch_unwind(|| target(&input)).is_err() {
                broken.push(path);
            }
        }
    }
    assert!(broken.is_empty(), "these break a promise: {broken:#?}");
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names_in(&fuzz("fuzz_targets")), targets);
    assert_eq!(names_in(&fuzz("corpus")), targets);
}

#[test]
fn the_corpora_stay_small() {
    let folders = names_in(&fuzz("corpus"));
    let files = folders.iter().flat_map(|folder| fs::read_dir(fuzz("corpus").join(folder)).unwrap());
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 1024 * 1024, "{bytes} bytes; minimise them with scripts/fuzz.sh --minimise");
}

/// A target that lets everything pass finds nothing.
#[test]
fn a_target_panics_where_a_promise_is_broken() {
    let breaks = |check: fn()| catch_unwind(check).is_err();
    assert!(breaks(|| crate::domain::secret::fuzzing::assert_untold("told: s3cr3t", "s3cr3t")));
}
