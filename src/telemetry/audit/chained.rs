//! A file whose lines are chained. The chain goes on over rotations and restarts.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::mem;
use std::path::Path;

use super::chain::{ChainEnd, Link, torn_line_found};
use super::file::{RotatedFile, numbered, open};
use super::sink::{BATCH, Lines};
use super::{chain_is_at, not_renamed};
use crate::domain::secret::AuditKey;
use crate::settings::AuditFile;

/// How much of a file's end is looked at. No line is nearly as long.
const TAIL_LEN: u64 = 256 * 1024;

/// About how many bytes the chain adds to a line.
const CHAIN_FIELDS: u64 = 150;

pub(super) struct ChainedFile {
    file: BufWriter<RotatedFile>,
    settings: AuditFile,
    key: AuditKey,
    end: ChainEnd,
    /// Of the file, with what is still in memory.
    len: u64,
    /// The size at which it is renamed. More than the setting after that failed.
    full_at: u64,
    /// Held for as long as this process writes the file.
    lock: File,
}

impl ChainedFile {
    /// Goes on behind the last line that is there.
    ///
    /// # Errors
    /// The file cannot be read or written, or another process writes it: their lines would be two chains.
    pub(super) fn open(settings: &AuditFile, key: AuditKey) -> io::Result<Self> {
        let path = &settings.path;
        let lock = locked(path)?;
        let found = Found::at(path)?;
        let is_new = !matches!(found, Found::Chain { .. });
        let before = found.chain_before(path);
        // It is renamed between two lines, here and not by its size.
        let unbounded = AuditFile { max_bytes: u64::MAX, ..settings.clone() };
        let mut file = RotatedFile::open_as_it_is(&unbounded)?;
        let (end, rest) = match found {
            Found::Chain { end, rest } => (end, rest),
            Found::Nothing => (before, Vec::new()),
            Found::Fragment | Found::NoChain => {
                file.rotate()?;
                (before, Vec::new())
            }
        };
        let len = fs::metadata(path)?.len();
        let mut chained = Self {
            file: BufWriter::with_capacity(BATCH, file),
            settings: settings.clone(),
            key,
            end,
            len,
            full_at: settings.max_bytes,
            lock,
        };
        if is_new {
            chained.relock();
            chained.put(chained.end.file_begun().as_bytes())?;
        } else if !rest.is_empty() {
            chained.file.write_all(b"\n")?;
            // The last line may lack its line feed alone.
            if Link::read(&rest).is_none() {
                chained.put(torn_line_found(&rest).as_bytes())?;
            }
        }
        chained.flush()?;
        Ok(chained)
    }

    pub(super) const fn sequence(&self) -> u64 {
        self.end.sequence
    }

    /// The chain's end moves only if the line was taken.
    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        let (linked, end) = self.end.link(line, &self.key);
        self.file.write_all(&linked)?;
        self.len = self.len.saturating_add(linked.len() as u64);
        self.end = end;
        Ok(())
    }

    fn next_file(&mut self) -> io::Result<()> {
        Write::flush(&mut self.file)?;
        if let Err(error) = self.file.get_mut().rotate() {
            not_renamed(&error);
            self.full_at = self.len.saturating_add(BATCH as u64);
            return Ok(());
        }
        self.relock();
        (self.len, self.full_at) = (0, self.settings.max_bytes);
        self.put(self.end.file_begun().as_bytes())
    }

    /// Whoever opened the new file in between would be found by `audit verify`.
    fn relock(&mut self) {
        if let Ok(lock) = locked(&self.settings.path) {
            drop(mem::replace(&mut self.lock, lock));
        }
    }
}

impl Lines for ChainedFile {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.len > 0 && self.len.saturating_add(line.len() as u64 + CHAIN_FIELDS) > self.full_at {
            self.next_file()?;
        }
        self.put(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Write::flush(&mut self.file)?;
        chain_is_at(self.end.sequence);
        Ok(())
    }
}

/// What the file ends with.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// No line, or no file.
    Nothing,
    Chain {
        end: ChainEnd,
        /// What stands behind the last line feed: a process was killed while it wrote.
        rest: Vec<u8>,
    },
    /// The beginning of a line, and nothing else.
    Fragment,
    /// Its last line has no chain.
    NoChain,
}

impl Found {
    fn at(path: &Path) -> io::Result<Self> {
        let tail = match tail_of(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Nothing),
            tail => tail?,
        };
        if tail.is_empty() {
            return Ok(Self::Nothing);
        }
        let last_feed = tail.iter().rposition(|byte| *byte == b'\n');
        let (whole, rest) = tail.split_at(last_feed.map_or(0, |at| at + 1));
        if let Some(link) = Link::read(rest) {
            return Ok(Self::Chain { end: link.end, rest: rest.to_vec() });
        }
        if whole.is_empty() {
            return Ok(Self::Fragment);
        }
        let last = whole.strip_suffix(b"\n").unwrap_or(whole).rsplit(|byte| *byte == b'\n').next();
        Ok(match last.and_then(Link::read) {
            Some(link) => Self::Chain { end: link.end, rest: rest.to_vec() },
            None => Self::NoChain,
        })
    }
}

impl Found {
    /// Where the chain of the file that was renamed last ends. A process may have ended before it wrote a line into the new
    /// one. Behind lines without a chain a new chain begins.
    fn chain_before(&self, path: &Path) -> ChainEnd {
        match (self, Self::at(&numbered(path, 1))) {
            (Self::Nothing | Self::Fragment, Ok(Self::Chain { end, .. })) => end,
            _ => ChainEnd::NEW,
        }
    }
}

/// The last bytes. Empty for anything but a file.
fn tail_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut tail = Vec::new();
    let mut file = File::open(path)?;
    let about = file.metadata()?;
    if about.is_file() {
        file.seek(SeekFrom::Start(about.len().saturating_sub(TAIL_LEN)))?;
        file.take(TAIL_LEN).read_to_end(&mut tail)?;
    }
    Ok(tail)
}

/// Opens the file, and locks it for this process.
fn locked(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    match file.try_lock() {
        // Some file systems have no locks.
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another process writes it, and a chain has one writer",
        )),
    }
}

#[cfg(test)]
mod tests;
