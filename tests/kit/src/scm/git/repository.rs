//! Repositories to clone.

use std::{fs, path::Path};

use tempfile::TempDir;
use uuid::Uuid;

use super::client::git;

/// Enough commits for a history; the size is spread over them.
const COMMITS: usize = 4;

/// The bare repositories of one SCM, in a temporary folder.
pub(in crate::scm) struct Repositories(TempDir);

impl Repositories {
    pub(in crate::scm) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder for repositories"))
    }

    pub(super) fn root(&self) -> &Path {
        self.0.path()
    }

    /// Makes a bare repository with a few commits of together about `size_bytes` that do not compress.
    pub(in crate::scm) async fn create(&self, project: &str, name: &str, size_bytes: usize) {
        let folder = self.root().join(project).join(format!("{name}.git"));
        fs::create_dir_all(&folder).expect("a folder for the repository");
        let commits = fast_import(size_bytes);
        let created = async {
            git(&folder, &["init", "--quiet", "--bare", "--initial-branch=main"], Vec::new()).await?;
            git(&folder, &["fast-import", "--quiet"], commits).await
        };
        created.await.expect("create a repository");
    }
}

/// Commits in the format of `git fast-import`: no working tree, one process.
fn fast_import(size_bytes: usize) -> Vec<u8> {
    let mut stream = Vec::with_capacity(size_bytes + 4 * 1024);
    for number in 1..=COMMITS {
        let header = format!(
            "commit refs/heads/main\ncommitter Test Kit <kit@example.org> {} +0000\n",
            1_577_836_800 + number
        );
        stream.extend_from_slice(header.as_bytes());
        add_data(&mut stream, format!("Add part {number}").as_bytes());
        stream.extend_from_slice(format!("M 100644 inline part-{number}.bin\n").as_bytes());
        add_data(&mut stream, &incompressible(size_bytes / COMMITS));
    }
    stream
}

fn add_data(stream: &mut Vec<u8>, data: &[u8]) {
    stream.extend_from_slice(format!("data {}\n", data.len()).as_bytes());
    stream.extend_from_slice(data);
    stream.push(b'\n');
}

/// Noise by xorshift: much cheaper than asking the system for megabytes of randomness.
fn incompressible(size_bytes: usize) -> Vec<u8> {
    let (mut state, _) = Uuid::new_v4().as_u64_pair();
    let mut bytes = Vec::with_capacity(size_bytes + 8);
    while bytes.len() < size_bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size_bytes);
    bytes
}
