//! How many files this process may open: a connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit to the highest that the system allows this process.
///
/// Many systems begin with 1,024, for the sake of programs that use `select`, and expect others to do this.
pub fn raise_limit() {
    let before = getrlimit(Resource::Nofile);
    let highest = Rlimit { current: before.maximum, ..before };
    match setrlimit(Resource::Nofile, highest) {
        Ok(()) => tracing::info!(before = before.current, now = before.maximum, "limit of open files"),
        Err(error) => {
            tracing::warn!(now = before.current, %error, "cannot raise the limit of open files");
        }
    }
}
