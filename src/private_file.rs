//! Files that hold secrets: nobody but their owner may read or change them.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::domain::problem::of_system;

/// Whether such files are refused that others may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRule {
    /// The setting `files.require_private`.
    pub require_private: bool,
}

/// A file that holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateFile {
    path: PathBuf,
    rule: FileRule,
}

/// Why a file with a secret is not used. Repeats nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    #[error("cannot be read: {}", of_system(.0))]
    Unreadable(#[from] io::Error),
    #[error("{exposed}; next: {}", Exposed::next(path))]
    Exposed { path: PathBuf, exposed: Exposed },
}

/// Other users may read or change a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("other users of this machine may read or change it (mode {mode:04o})")]
pub struct Exposed {
    mode: u32,
}

const OTHERS_READ_OR_WRITE: u32 = 0o006;
const GROUP_READS_OR_WRITES: u32 = 0o060;
const GROUP_WRITES: u32 = 0o020;
const PERMISSIONS: u32 = 0o7777;

impl FileRule {
    /// The file at `path`, which holds a secret.
    pub fn file(self, path: PathBuf) -> PrivateFile {
        PrivateFile { path, rule: self }
    }
}

impl Exposed {
    /// Looks at an open file, so that it cannot be replaced between look and use. None: it is private.
    ///
    /// # Errors
    /// The system does not say its mode.
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        Ok(Self::of_metadata(&file.metadata()?))
    }

    fn of_metadata(metadata: &Metadata) -> Option<Self> {
        Self::of_mode(metadata.mode(), metadata.uid())
    }

    /// The group of a file of root's may read it: so Kubernetes (`fsGroup`), Docker and systemd hand a secret to a process that
    /// does not own it.
    fn of_mode(mode: u32, owner: u32) -> Option<Self> {
        let group = if owner == 0 { GROUP_WRITES } else { GROUP_READS_OR_WRITES };
        (mode & (OTHERS_READ_OR_WRITE | group) != 0).then_some(Self { mode: mode & PERMISSIONS })
    }

    /// What the operator does about the file at `path`.
    pub fn next(path: &Path) -> String {
        format!("chmod 600 {}, or files.require_private = false in the settings", path.display())
    }
}

impl PrivateFile {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of the file, which is wiped when it is dropped.
    ///
    /// # Errors
    /// [`PrivateFileError`]: it cannot be read, or others may read it.
    pub fn read(&self) -> Result<Zeroizing<String>, PrivateFileError> {
        let mut file = File::open(&self.path)?;
        if self.rule.require_private
            && let Some(exposed) = Exposed::of(&file)?
        {
            return Err(PrivateFileError::Exposed { path: self.path.clone(), exposed });
        }
        Ok(text_of(&mut file)?)
    }
}

/// The text of an open file, in a buffer that did not grow: growing leaves copies behind.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub fn text_of(file: &mut File) -> io::Result<Zeroizing<String>> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(length + 1));
    file.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_private_if_others_can_neither_read_nor_change_it() {
        const ROOT: u32 = 0;
        const USER: u32 = 1000;
        for (mode, owner, is_private) in [
            (0o600, USER, true),
            (0o400, USER, true),
            (0o700, USER, true),
            (0o640, USER, false),
            (0o620, USER, false),
            (0o604, USER, false),
            (0o602, USER, false),
            (0o644, USER, false),
            // A secret of Kubernetes with fsGroup, of systemd, and as `chown root:tokenkeeper` leaves it.
            (0o440, ROOT, true),
            (0o640, ROOT, true),
            (0o660, ROOT, false),
            // A secret of Kubernetes or Docker by default.
            (0o644, ROOT, false),
            (0o444, ROOT, false),
        ] {
            assert_eq!(
                Exposed::of_mode(0o100_000 | mode, owner).is_none(),
                is_private,
                "{mode:o} of {owner}"
            );
        }
    }

    #[test]
    fn a_refusal_names_the_command_that_mends_it() {
        let exposed = Exposed::of_mode(0o100_644, 1000).unwrap();
        let error = PrivateFileError::Exposed { path: "tokenkeeper.keys".into(), exposed };
        assert_eq!(
            error.to_string(),
            "other users of this machine may read or change it (mode 0644); next: chmod 600 tokenkeeper.keys, or \
             files.require_private = false in the settings"
        );
    }
}
