//! Where the lines of the audit log go. A thread of its own writes them, so that a slow disk makes no request wait. The buffer
//! between holds [`BUFFERED`] lines; those that find no room are dropped and counted.

use std::io::{self, BufWriter, Write};
use std::iter;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use super::file::RotatedFile;
use super::{line_lost, line_not_written, not_written};
use crate::domain::escape;
use crate::domain::problem::{Problem, of_system};
use crate::settings::{AuditFile, AuditSettings};

/// Lines of a few hundred bytes: two seconds at full speed, and a few MiB.
const BUFFERED: usize = 16_384;

/// Bytes that are written at once.
const BATCH: usize = 64 * 1024;

/// Lines of this time are written together: waking the thread for each one would cost the requests more than the line.
const EVERY: Duration = Duration::from_millis(20);

/// How long a worker that stops waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Takes lines without blocking. Clones share the buffer.
#[derive(Debug, Clone)]
pub struct AuditSink(SyncSender<Message>);

#[derive(Debug)]
enum Message {
    /// A whole line.
    Line(Vec<u8>),
    /// Everything before this is to be written. The sender is dropped afterwards.
    Flush(SyncSender<()>),
}

impl AuditSink {
    /// None: there is no audit log.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(settings: &AuditSettings) -> Result<Option<Self>, Problem> {
        let to: Box<dyn Write + Send> = match settings {
            AuditSettings::Off => return Ok(None),
            AuditSettings::Stdout => Box::new(io::stdout()),
            AuditSettings::File(file) => {
                Box::new(RotatedFile::open(file).map_err(|error| not_writable(file, &error))?)
            }
        };
        Self::writing_to(to, BUFFERED).map(Some).map_err(|error| {
            Problem::new("cannot start the thread of the audit log", error.to_string(), "allow more threads")
        })
    }

    /// Whether [`AuditSink::open`] could open the file. Leaves none behind.
    ///
    /// # Errors
    /// As [`AuditSink::open`].
    pub fn check(file: &AuditFile) -> Result<(), Problem> {
        RotatedFile::check(file).map_err(|error| not_writable(file, &error))
    }

    fn writing_to(to: Box<dyn Write + Send>, buffered: usize) -> io::Result<Self> {
        let (sender, messages) = sync_channel(buffered);
        thread::Builder::new().name("audit log".to_owned()).spawn(move || write_all(&messages, to))?;
        Ok(Self(sender))
    }

    /// Takes a whole line, and escapes it.
    pub(in crate::telemetry) fn take(&self, line: &[u8]) {
        let line = escape::json(&String::from_utf8_lossy(line)).into_owned().into_bytes();
        if self.0.try_send(Message::Line(line)).is_err() {
            line_lost();
        }
    }

    /// Waits until all lines are written, but not longer than `LAST_LINES`.
    pub fn flush(&self) {
        const PAUSE: Duration = Duration::from_millis(10);
        let (done, written) = sync_channel(0);
        let mut message = Message::Flush(done);
        for _ in 0..LAST_LINES.as_millis() / PAUSE.as_millis() {
            match self.0.try_send(message) {
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

fn not_writable(file: &AuditFile, error: &io::Error) -> Problem {
    let what = format!("cannot write the audit log {} (audit.file)", file.path.display());
    let next = "create its folder, let the worker's user write there, or set audit.to = \"off\"";
    Problem::new(what, of_system(error), next)
}

fn write_all(messages: &Receiver<Message>, to: Box<dyn Write + Send>) {
    let mut to = BufWriter::with_capacity(BATCH, to);
    while let Ok(first) = messages.recv() {
        let mut flushed = Vec::new();
        for message in iter::once(first).chain(messages.try_iter().take(BUFFERED)) {
            match message {
                // A buffer that cannot be written takes no more lines.
                Message::Line(line) => {
                    let _ = to.write_all(&line).inspect_err(line_not_written);
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
        let sink = AuditSink::writing_to(Box::new(Slow(wait, Arc::clone(&written))), 2).unwrap();
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
