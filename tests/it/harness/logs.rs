//! The log of every worker that runs inside the test process, at its most talkative.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use tokenkeeper::telemetry::logs;
use tokenkeeper_testkit::leaks::Leaks;
use tracing::level_filters::LevelFilter;

use super::evidence::line_before;
use super::json_lines::assert_json_lines;

static CAPTURED: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static INSTALL: Once = Once::new();

/// Starts to capture, once a process.
pub(crate) fn capture() {
    INSTALL.call_once(|| {
        logs::install(LevelFilter::TRACE, logs::Format::Json, Arc::new(Capture), None)
            .expect("the only subscriber");
    });
}

/// Everything that was logged so far.
pub(crate) fn captured() -> String {
    String::from_utf8_lossy(&lines()).into_owned()
}

/// Panics where a line that was logged since the last call is not strictly JSON.
pub(crate) fn assert_captured_json() {
    static CHECKED: Mutex<usize> = Mutex::new(0);
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    let new = lines()[*checked..].to_vec();
    // The lines behind it are looked at next time, and the first wrong one fails one test alone.
    *checked += new.len();
    assert_json_lines(&String::from_utf8_lossy(&new), "the workers in this process");
}

/// How much was logged so far, in bytes.
pub(crate) fn captured_len() -> usize {
    lines().len()
}

/// What was logged behind so many bytes.
pub(crate) fn captured_since(len: usize) -> Vec<u8> {
    lines()[len..].to_vec()
}

/// Panics where one of the secrets stands in the text, in any form that it can be read back from; says which, by its place
/// among the secrets.
#[track_caller]
pub(crate) fn assert_holds_none_of(text: impl AsRef<[u8]>, secrets: &[String], whose: &str) {
    let text = text.as_ref();
    if let Some(leak) = Leaks::of(secrets).find(text) {
        let (count, before) = (secrets.len(), line_before(text, leak.at));
        panic!("secret {} of {count} ({:?}) is in the log of {whose}, in: {before}…", leak.secret, leak.form);
    }
}

struct Capture;

impl io::Write for &Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lines().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines() -> MutexGuard<'static, Vec<u8>> {
    CAPTURED.lock().unwrap_or_else(PoisonError::into_inner)
}
