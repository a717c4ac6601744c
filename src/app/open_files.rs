//! The limit of open files. Each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit to the highest that the system allows. Many systems start with 1,024 for programs that use
/// `select`, and expect other programs to raise it.
pub fn raise_limit() {
    let before = getrlimit(Resource::Nofile);
    let highest = Rlimit { current: before.maximum, ..before };
    match setrlimit(Resource::Nofile, highest) {
        Ok(()) => tracing::info!(before = before.current, now = before.maximum, "limit of open files set"),
        Err(error) => {
            tracing::warn!(now = before.current, %error, "cannot raise the limit of open files");
        }
    }
}
