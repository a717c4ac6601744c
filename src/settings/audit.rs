//! Section `[audit]`.

use std::path::PathBuf;

use super::reader::Reader;

/// Where the audit log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditSettings {
    /// No audit log is written.
    Off,
    Stdout,
    File(AuditFile),
}

/// A file that is renamed when it is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFile {
    pub path: PathBuf,
    /// The size at which the file is renamed to `PATH.1` and begun anew, in bytes.
    pub max_bytes: u64,
    /// How many renamed files are kept.
    pub kept: u32,
    /// Whether each line is chained to the one before.
    pub chain: bool,
}

const MIB: u64 = 1024 * 1024;

impl AuditSettings {
    /// Whether its lines are chained.
    pub const fn is_chained(&self) -> bool {
        matches!(self, Self::File(AuditFile { chain: true, .. }))
    }

    pub(super) fn read(from: &mut Reader) -> Self {
        let choices = [("off", To::Off), ("stdout", To::Stdout), ("file", To::File)];
        let to = from.choice("audit.to", &choices, To::Off);
        let path = from.path("audit.file").unwrap_or_else(|| from.beside_the_file("tokenkeeper-audit.jsonl"));
        let max_mib: u32 = from.integer("audit.max_file_mib", 1..=1_048_576, 100);
        let kept = from.integer("audit.kept_files", 1..=1_000, 10);
        let chain = from.boolean("audit.chain").unwrap_or(false);
        if chain && !matches!(to, To::File) {
            from.problem(
                "audit.chain",
                "needs `audit.to = \"file\"`: the chain goes on from the last line of the file",
            );
        }
        match to {
            To::Off => Self::Off,
            To::Stdout => Self::Stdout,
            To::File => Self::File(AuditFile { path, max_bytes: u64::from(max_mib) * MIB, kept, chain }),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum To {
    Off,
    Stdout,
    File,
}
