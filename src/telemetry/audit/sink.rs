//! Where the lines of the audit log go. A thread of its own writes them, so that a slow disk makes no request wait. The buffer
//! between holds [`BUFFERED`] lines; those that find no room are dropped and counted.

use std::io::{self, BufWriter, Write};
use std::iter;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use super::chained::ChainedFile;
use super::file::RotatedFile;
use super::{chain_goes_on, line_lost, line_not_written, not_written};
use crate::domain::escape;
use crate::domain::problem::{Problem, of_system};
use crate::domain::secret::AuditKey;
use crate::settings::{AuditFile, AuditSettings};

/// Lines of a few hundred bytes: two seconds at full speed, and a few MiB.
const BUFFERED: usize = 16_384;

/// Bytes that are written at once.
pub(super) const BATCH: usize = 64 * 1024;

/// Lines of this time are written together: waking the thread for each one would cost the requests more than the line.
const EVERY: Duration = Duration::from_millis(20);

/// How long a worker that stops waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Takes lines without blocking. Clones share the buffer.
#[derive(Debug, Clone)]
pub struct AuditSink {
    to: SyncSender<Message>,
    /// The last sequence number of the chain when it was opened. None: there is no chain.
    chained_from: Option<u64>,
}

/// Takes whole lines, and writes them at the latest when it is flushed.
pub(super) trait Lines: Send {
    /// # Errors
    /// The line was not taken.
    fn line(&mut self, line: &[u8]) -> io::Result<()>;
    /// # Errors
    /// What is not written stays in memory.
    fn flush(&mut self) -> io::Result<()>;
}

impl<W: Write + Send> Lines for BufWriter<W> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        self.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Write::flush(self)
    }
}

#[derive(Debug)]
enum Message {
    /// A whole line.
    Line(Vec<u8>),
    /// Everything before this is to be written. The sender is dropped afterwards.
    Flush(SyncSender<()>),
}

impl AuditSink {
    /// None: there is no audit log. `key` chains the lines, if the settings want that.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(settings: &AuditSettings, key: Option<AuditKey>) -> Result<Option<Self>, Problem> {
        match (settings, key) {
            (AuditSettings::Off, _) => Ok(None),
            (AuditSettings::Stdout, _) => Self::writing_to(buffered(io::stdout()), None, BUFFERED).map(Some),
            (AuditSettings::File(file), Some(key)) => {
                let to = ChainedFile::open(file, key).map_err(|error| unusable(file, &error))?;
                let chained_from = Some(to.sequence());
                Self::writing_to(Box::new(to), chained_from, BUFFERED).map(Some)
            }
            (AuditSettings::File(file), None) => {
                let to = RotatedFile::open(file).map_err(|error| unusable(file, &error))?;
                Self::writing_to(buffered(to), None, BUFFERED).map(Some)
            }
        }
    }

    /// Whether [`AuditSink::open`] could open the file. Leaves none behind.
    ///
    /// # Errors
    /// As [`AuditSink::open`].
    pub fn check(file: &AuditFile) -> Result<(), Problem> {
        RotatedFile::check(file).map_err(|error| unusable(file, &error))
    }

    fn writing_to(to: Box<dyn Lines>, chained_from: Option<u64>, room: usize) -> Result<Self, Problem> {
        let (sender, messages) = sync_channel(room);
        let started =
            thread::Builder::new().name("audit log".to_owned()).spawn(move || write_all(&messages, to));
        started.map_err(|error| {
            Problem::new("cannot start the thread of the audit log", error.to_string(), "allow more threads")
        })?;
        Ok(Self { to: sender, chained_from })
    }

    /// Says where the chain goes on, once there are logs and metrics.
    pub fn tell_chain(&self) {
        if let Some(sequence) = self.chained_from {
            chain_goes_on(sequence);
        }
    }

    /// Takes a whole line, and escapes it.
    pub(in crate::telemetry) fn take(&self, line: &[u8]) {
        let line = escape::json(&String::from_utf8_lossy(line)).into_owned().into_bytes();
        if self.to.try_send(Message::Line(line)).is_err() {
            line_lost();
        }
    }

    /// Waits until all lines are written, but not longer than `LAST_LINES`.
    pub fn flush(&self) {
        const PAUSE: Duration = Duration::from_millis(10);
        let (done, written) = sync_channel(0);
        let mut message = Message::Flush(done);
        for _ in 0..LAST_LINES.as_millis() / PAUSE.as_millis() {
            match self.to.try_send(message) {
                Ok(()) => {
                    // An error means done: the sender is dropped.
                    let _ = written.recv_timeout(LAST_LINES);
                    return;
                }
                Err(TrySendError::Full(again)) => message = again,
                Err(TrySendError::Disconnected(_)) => return,
            }
            thread::sleep(PAUSE);
        }
    }
}

fn buffered(to: impl Write + Send + 'static) -> Box<dyn Lines> {
    Box::new(BufWriter::with_capacity(BATCH, to))
}

fn unusable(file: &AuditFile, error: &io::Error) -> Problem {
    let what = format!("cannot write the audit log {} (audit.file)", file.path.display());
    let next = if error.kind() == io::ErrorKind::ResourceBusy {
        "give each worker a file of its own in audit.file"
    } else {
        "create its folder, let the worker's user write there, or set audit.to = \"off\""
    };
    Problem::new(what, of_system(error), next)
}

fn write_all(messages: &Receiver<Message>, mut to: Box<dyn Lines>) {
    while let Ok(first) = messages.recv() {
        let mut flushed = Vec::new();
        for message in iter::once(first).chain(messages.try_iter().take(BUFFERED)) {
            match message {
                // A buffer that cannot be written takes no more lines.
                Message::Line(line) => {
                    let _ = to.line(&line).inspect_err(line_not_written);
                }
                Message::Flush(done) => flushed.push(done),
            }
        }
        let _ = to.flush().inspect_err(not_written);
        drop(flushed);
        thread::sleep(EVERY);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};

    use super::*;

    /// Waits for a word before each write.
    struct Slow(Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_escaped_and_those_that_find_no_room_are_dropped_and_make_nobody_wait() {
        let (go, wait) = mpsc::channel();
        let written = Arc::default();
        let sink = AuditSink::writing_to(buffered(Slow(wait, Arc::clone(&written))), None, 2).unwrap();
        for number in 0..50 {
            sink.take(format!("{{\"line\":{number},\"user\":\"\u{202e}\"}}\n").as_bytes());
        }
        for _ in 0..50 {
            go.send(()).unwrap();
        }
        sink.flush();
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = written.lines().collect();
        assert!((2..50).contains(&lines.len()), "{}", lines.len());
        assert_eq!(lines[0], "{\"line\":0,\"user\":\"\\u202e\"}");
    }
}
