//! What other users of this machine get of a process that holds keys: no file that it makes, and none of its memory.

use rustix::fs::Mode;
use rustix::io::Errno;
#[cfg(target_os = "linux")]
use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};

/// Files that this process makes are for its user alone: an SQLite database and its journal, parked pairs, the audit log. No
/// core file is written. On Linux nobody but root reads its memory or its environment, or attaches a debugger.
///
/// # Errors
/// The system refuses one of them. The others hold.
pub fn harden() -> Result<(), Errno> {
    umask(Mode::RWXG | Mode::RWXO);
    let no_core_file = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // A core file that goes to a program (core_pattern with `|`) does not heed that limit, but this.
    #[cfg(target_os = "linux")]
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    no_core_file
}

/// Says in the log where [`harden`] did not succeed.
pub fn warn_if_exposed() {
    let core_files = getrlimit(Resource::Core).current != Some(0);
    #[cfg(target_os = "linux")]
    let memory = !matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    #[cfg(not(target_os = "linux"))]
    let memory = false;
    if core_files || memory {
        tracing::warn!(
            core_files,
            memory,
            "the system does not let this process protect its memory: its user may read the keys there"
        );
    }
}
