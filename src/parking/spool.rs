//! The spool folder: one encrypted file for each pair, readable only by its owner and synced to disk.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use uuid::Uuid;

use crate::domain::problem::Problem;
use crate::store::ParkedPair;
use crate::telemetry::SpoolTrouble;

/// Of a finished file. A file that is being written has another name.
const EXTENSION: &str = "parked";

/// How often the folder is checked.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// What the last check found.
#[derive(Debug, Default)]
enum Found {
    #[default]
    NotChecked,
    Good,
    Wrong(Problem),
}

/// Clones share what was found out.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: Arc<Path>,
    found: Arc<Mutex<Found>>,
}

impl Spool {
    /// The folder is created when it is needed.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), found: Arc::default() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Why no file can be written here, as the last check found it.
    pub fn problem(&self) -> Option<Problem> {
        match &*self.found.lock() {
            Found::Wrong(problem) => Some(problem.clone()),
            Found::NotChecked | Found::Good => None,
        }
    }

    /// Checks whether a file can be written here, while there is time to repair the folder.
    pub async fn check(&self) -> Option<Problem> {
        let was_good = matches!(*self.found.lock(), Found::Good);
        let found = match self.try_out(was_good).await {
            Ok(()) => Found::Good,
            Err(error) => Found::Wrong(not_writable(&self.folder, &error)),
        };
        *self.found.lock() = found;
        self.problem()
    }

    /// Checks now and then, for as long as the process lives.
    pub async fn keep_checking(self) {
        let mut trouble: Option<SpoolTrouble> = None;
        loop {
            if let Some(problem) = self.check().await {
                trouble.get_or_insert_with(SpoolTrouble::begin).because(&problem);
            } else if let Some(trouble) = trouble.take() {
                trouble.end();
            }
            sleep(CHECK_EVERY).await;
        }
    }

    /// Makes the folder and a file in it, and removes both again. A folder that is not there was tried out before, if `was_good`:
    /// it is left alone, because a pair may be about to be written there.
    async fn try_out(&self, was_good: bool) -> io::Result<()> {
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            let existed = folder.try_exists()?;
            if !existed && was_good {
                return Ok(());
            }
            create(&folder)?;
            tempfile::NamedTempFile::new_in(&folder)?.close()?;
            // Most workers never need the folder, so do not leave an empty one behind.
            if existed { Ok(()) } else { std::fs::remove_dir(&folder) }
        })
        .await
    }

    /// Writes a pair to a file of its own. It is on the disk when this returns.
    pub(super) async fn write(&self, parked: &ParkedPair) -> io::Result<PathBuf> {
        let name = format!("{}-{}-{}.{EXTENSION}", parked.entry_id, parked.generation, Uuid::new_v4());
        let body = parked.encode();
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            create(&folder)?;
            // Created with mode 0600.
            let mut file = tempfile::NamedTempFile::new_in(&folder)?;
            file.write_all(&body)?;
            file.as_file().sync_all()?;
            let path = folder.join(name);
            file.persist(&path)?;
            // Syncs the name too.
            File::open(&folder)?.sync_all()?;
            Ok(path)
        })
        .await
    }

    pub(super) async fn files(&self) -> io::Result<Vec<PathBuf>> {
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            let entries = match folder.read_dir() {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut files = Vec::new();
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == EXTENSION) {
                    files.push(path);
                }
            }
            Ok(files)
        })
        .await
    }

    pub(super) async fn read(&self, file: &Path) -> io::Result<ParkedPair> {
        read_pair(&tokio::fs::read(file).await?)
    }

    /// Removes a file; another worker with the same folder may have done so.
    pub(super) async fn remove(&self, file: &Path) -> io::Result<()> {
        match tokio::fs::remove_file(file).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Reads a file's content. The decoder's own error could repeat what stands there.
pub(super) fn read_pair(content: &[u8]) -> io::Result<ParkedPair> {
    ParkedPair::decode(content).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        io::Error::new(ErrorKind::InvalidData, format!("it is not what a worker parked ({place})"))
    })
}

fn not_writable(folder: &Path, error: &io::Error) -> Problem {
    let cause = match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => "a file is in its place".to_owned(),
        kind => kind.to_string(),
    };
    let folder = folder.display();
    Problem::new(
        format!("the spool folder {folder} cannot be written (worker.spool_dir)"),
        cause,
        format!("ls -ld {folder}, and give it to the user that runs tokenkeeper, or name another folder"),
    )
}

fn create(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::domain::problem::documented;

    #[tokio::test]
    async fn checking_a_folder_leaves_the_file_system_unchanged() {
        let parent = tempfile::tempdir().unwrap();
        let (new, old) = (parent.path().join("new/spool"), parent.path().join("old"));
        std::fs::create_dir(&old).unwrap();
        for folder in [&new, &old] {
            assert_eq!(Spool::new(folder).check().await, None);
        }
        assert!(!new.exists() && old.exists());
        std::fs::write(&new, "a file in its place").unwrap();
        let spool = Spool::new(&new);
        assert!(spool.check().await.is_some() && spool.problem().is_some());
        std::fs::remove_file(&new).unwrap();
        assert!(spool.check().await.is_none() && spool.problem().is_none(), "somebody repaired it");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_as_it_is_documented() {
        let error = ErrorKind::PermissionDenied.into();
        documented("spool not writable", &not_writable(Path::new("/var/lib/tokenkeeper/spool"), &error));
    }

    #[tokio::test]
    async fn a_new_folder_is_private_and_other_files_in_it_are_ignored() {
        let parent = tempfile::tempdir().unwrap();
        let spool = Spool::new(&parent.path().join("spool"));
        assert!(spool.files().await.unwrap().is_empty(), "the folder does not exist yet");
        create(spool.folder()).unwrap();
        assert_eq!(spool.folder().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(spool.folder().join(".tmp123"), "half a pair").unwrap();
        let pair = spool.folder().join("1-1-x.parked");
        std::fs::write(&pair, "{}").unwrap();
        assert_eq!(spool.files().await.unwrap(), std::slice::from_ref(&pair));
        assert!(spool.read(&pair).await.is_err(), "it is not a pair");
        spool.remove(&pair).await.unwrap();
        spool.remove(&pair).await.unwrap();
    }
}
