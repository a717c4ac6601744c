//! What the fuzzers run (`fuzz/`). Compiled for them and for tests alone.
//!
//! Each function takes any bytes, and panics where a promise is broken. A test runs them over every input in `fuzz/corpus/`: what
//! a fuzzer once found worth keeping stays right.

pub use crate::broker::dead_letters::fuzzing::dead_letters;
pub use crate::contract::fuzzing::{clone_urls, messages, properties};
pub use crate::domain::secret::fuzzing::ciphertexts;
pub use crate::flags::fuzzing::flag_files;
pub use crate::oauth::fuzzing::provider_answers;
pub use crate::parking::fuzzing::spool_files;
pub use crate::settings::fuzzing::{provider_files, settings};

/// A function that a fuzzer runs.
pub type Target = fn(&[u8]);

/// Every target and its name: the one of its program in `fuzz/fuzz_targets/`, and of its folder in `fuzz/corpus/`.
pub const TARGETS: [(&str, Target); 10] = [
    ("ciphertexts", ciphertexts),
    ("clone_urls", clone_urls),
    ("dead_letters", dead_letters),
    ("flag_files", flag_files),
    ("messages", messages),
    ("properties", properties),
    ("provider_answers", provider_answers),
    ("provider_files", provider_files),
    ("settings", settings),
    ("spool_files", spool_files),
];

#[cfg(test)]
mod tests;
