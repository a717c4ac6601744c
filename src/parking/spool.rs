//! The spool folder: a file a pair, encrypted, readable by its owner alone, synced to disk.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::store::ParkedPair;

/// What a finished file ends in; one that is being written has another name.
const EXTENSION: &str = "parked";

/// A folder for pairs that neither the database nor the broker took.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: Arc<Path>,
}

impl Spool {
    /// A spool in this folder, which is made when it is needed.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a file could be written here, found out while there is still time to mend it.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> io::Result<()> {
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            let existed = folder.try_exists()?;
            create(&folder)?;
            tempfile::NamedTempFile::new_in(&folder)?.close()?;
            // Most workers never need it, and a folder that nobody asked for would stay behind each of them.
            if existed { Ok(()) } else { std::fs::remove_dir(&folder) }
        })
        .await
    }

    /// Writes a pair to a file of its own. When this comes back it is on the disk.
    pub(super) async fn write(&self, parked: &ParkedPair) -> io::Result<PathBuf> {
        let name = format!("{}-{}-{}.{EXTENSION}", parked.entry_id, parked.generation, Uuid::new_v4());
        let body = parked.encode();
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            create(&folder)?;
            // Mode 0600 from the beginning.
            let mut file = tempfile::NamedTempFile::new_in(&folder)?;
            file.write_all(&body)?;
            file.as_file().sync_all()?;
            let path = folder.join(name);
            file.persist(&path)?;
            // The name as well.
            File::open(&folder)?.sync_all()?;
            Ok(path)
        })
        .await
    }

    /// The files there are.
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
        Ok(ParkedPair::decode(&tokio::fs::read(file).await?)?)
    }

    /// Removes a file; another worker with the same folder may have done so.
    pub(super) async fn remove(&self, file: &Path) -> io::Result<()> {
        match tokio::fs::remove_file(file).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
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

    #[tokio::test]
    async fn looking_whether_a_folder_can_be_used_leaves_nothing_behind_and_takes_nothing_away() {
        let parent = tempfile::tempdir().unwrap();
        let (new, old) = (parent.path().join("new/spool"), parent.path().join("old"));
        std::fs::create_dir(&old).unwrap();
        for folder in [&new, &old] {
            Spool::new(folder).check().await.unwrap();
        }
        assert!(!new.exists() && old.exists());
        std::fs::write(&new, "a file in its place").unwrap();
        assert!(Spool::new(&new).check().await.is_err());
    }

    #[tokio::test]
    async fn a_folder_that_is_made_is_its_owner_s_alone_and_files_that_are_no_pairs_are_passed_over() {
        let parent = tempfile::tempdir().unwrap();
        let spool = Spool::new(&parent.path().join("spool"));
        assert!(spool.files().await.unwrap().is_empty(), "there is none yet");
        create(spool.folder()).unwrap();
        assert_eq!(spool.folder().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(spool.folder().join(".tmp123"), "half a pair").unwrap();
        let pair = spool.folder().join("1-1-x.parked");
        std::fs::write(&pair, "{}").unwrap();
        assert_eq!(spool.files().await.unwrap(), std::slice::from_ref(&pair));
        assert!(spool.read(&pair).await.is_err(), "it is none");
        spool.remove(&pair).await.unwrap();
        spool.remove(&pair).await.unwrap();
    }
}
