//! A file that is renamed when it is full: `PATH` to `PATH.1`, that to `PATH.2`, and so on.
//!
//! Written here because the crates for it lose lines in silence where the file cannot be opened (`file-rotate`), cannot bound
//! a file's size (`tracing-appender`), or print to standard error (`rolling-file`).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::not_renamed;
use crate::settings::AuditFile;

pub(super) struct RotatedFile {
    settings: AuditFile,
    file: File,
    len: u64,
    /// Whether the last byte ended a line. Else the rest of the line must follow in the same file.
    at_line_end: bool,
}

impl RotatedFile {
    pub(super) fn open(settings: &AuditFile) -> io::Result<Self> {
        let mut rotated = Self::open_as_it_is(settings)?;
        // A process that was killed may have left half a line.
        if !ends_a_line(&settings.path)? {
            rotated.file.write_all(b"\n")?;
            rotated.len += 1;
        }
        Ok(rotated)
    }

    /// The same, also behind half a line.
    pub(super) fn open_as_it_is(settings: &AuditFile) -> io::Result<Self> {
        let file = open(&settings.path)?;
        let len = file.metadata()?.len();
        Ok(Self { settings: settings.clone(), file, len, at_line_end: true })
    }

    /// Whether it could be opened. Makes no file.
    pub(super) fn check(settings: &AuditFile) -> io::Result<()> {
        let path = &settings.path;
        if path.try_exists()? {
            return OpenOptions::new().append(true).open(path).map(drop);
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        fs::metadata(folder)?;
        let tried = tempfile::NamedTempFile::new_in(folder).and_then(tempfile::NamedTempFile::close);
        // The crate's error names the temporary file.
        tried.map_err(|error| error.kind().into())
    }

    /// Renames the file, and begins it anew.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        let AuditFile { path, kept, .. } = &self.settings;
        // It is not there if it was renamed before and could not be opened anew.
        if path.try_exists()? {
            for number in (1..*kept).rev() {
                match fs::rename(numbered(path, number), numbered(path, number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            fs::rename(path, numbered(path, 1))?;
        }
        self.file = open(path)?;
        self.len = 0;
        Ok(())
    }
}

impl Write for RotatedFile {
    /// Expects whole lines.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let len = self.len.saturating_add(lines.len() as u64);
        if len > self.settings.max_bytes && self.len > 0 && self.at_line_end {
            // The lines are worth more than the bound.
            let _ = self.rotate().inspect_err(not_renamed);
        }
        let written = self.file.write(lines)?;
        self.len = self.len.saturating_add(written as u64);
        self.at_line_end = lines[..written].ends_with(b"\n");
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Others than the worker's user may not read who asked for what.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    options.open(path)
}

/// Whether the file is empty or its last byte ends a line. Anything but a file counts as ended.
fn ends_a_line(path: &Path) -> io::Result<bool> {
    if !fs::metadata(path)?.is_file() {
        return Ok(true);
    }
    let mut file = File::open(path)?;
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_renamed_and_the_oldest_ones_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let settings = AuditFile { path: path.clone(), max_bytes: 10, kept: 2, chain: false };
        for line in ["first\n", "second\n"] {
            RotatedFile::open(&settings).unwrap().write_all(line.as_bytes()).unwrap();
        }
        let mut file = RotatedFile::open(&settings).unwrap();
        for line in ["third\n", "4\n", "longer than the bound\n", "last\n"] {
            file.write_all(line.as_bytes()).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "last\n");
        assert_eq!(read(&numbered(&path, 1)), "longer than the bound\n");
        assert_eq!(read(&numbered(&path, 2)), "third\n4\n");
        assert!(!numbered(&path, 3).exists());
    }

    #[test]
    fn half_a_line_of_a_process_that_was_killed_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        fs::write(&path, "whole\nhal").unwrap();
        let settings = AuditFile { path: path.clone(), max_bytes: 1_000, kept: 1, chain: false };
        RotatedFile::open(&settings).unwrap().write_all(b"next\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nhal\nnext\n");
    }

    #[test]
    fn a_file_that_cannot_be_renamed_goes_on_growing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        fs::create_dir_all(numbered(&path, 1).join("in the way")).unwrap();
        let mut file =
            RotatedFile::open(&AuditFile { path: path.clone(), max_bytes: 10, kept: 1, chain: false })
                .unwrap();
        for line in ["first line\n", "second line\n"] {
            file.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "first line\nsecond line\n");
    }
}
