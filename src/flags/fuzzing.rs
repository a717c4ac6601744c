//! Fuzzing: flag files.

#![allow(clippy::missing_panics_doc, reason = "to panic is how a fuzzer reports")]

use std::path::Path;

use serde_json::Value;

use super::definition::check;
use super::{OPPORTUNISTIC_TOKEN_REFRESH, WORKSPACE_START_LIFETIME};

/// The input is a flag file.
pub fn flag_files(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let file = Path::new("flags.json");
    let Ok(checked) = check(file, text) else { return };
    let ours = [OPPORTUNISTIC_TOKEN_REFRESH, WORKSPACE_START_LIFETIME];
    assert!(checked.defined.iter().all(|flag| ours.contains(flag)));
    assert!(checked.cacheable.iter().all(|flag| checked.defined.contains(flag)));
    // Some ignored values are no JSON that others read: 1e999.
    let Ok(parsed) = serde_json::from_str::<Value>(text) else { return };
    for flag in checked.defined {
        let flag_of = &parsed["flags"][flag];
        let variants = flag_of["variants"].as_object();
        let default = flag_of["defaultVariant"].as_str();
        let fits = |value: &Value| {
            if flag == OPPORTUNISTIC_TOKEN_REFRESH { value.is_boolean() } else { value.is_i64() }
        };
        assert!(variants.is_some_and(|variants| variants.values().all(fits)), "{flag_of}");
        assert!(
            variants.zip(default).is_some_and(|(variants, default)| variants.contains_key(default)),
            "{flag_of}"
        );
        // A rule whose answers are kept for a user never sees the time.
        let says_when = flag_of["targeting"].to_string().contains("timestamp");
        assert!(!says_when || !checked.cacheable.contains(&flag), "{flag_of}");
    }
    // The same file as another program would write it.
    let again =
        check(file, &parsed.to_string()).map(|again| (again.defined, again.cacheable, again.warnings));
    let again = again.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((again.1, again.2), (checked.cacheable, checked.warnings));
}
