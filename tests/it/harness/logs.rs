//! The log of every worker that runs inside the test process, at its most talkative.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokenkeeper::telemetry::logs;
use tracing::level_filters::LevelFilter;

use super::json_lines::assert_json_lines;

/// What a reply's `token.userinfo` encodes.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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

/// Panics where one of the secrets stands in the text, as it is or as the user info of a URL has it; says which, by its
/// place among the secrets.
pub(crate) fn assert_holds_none_of(text: &str, secrets: &[String], whose: &str) {
    for (index, secret) in secrets.iter().enumerate() {
        assert!(secret.len() >= 8, "secret {index} is too short to be looked for");
        let encoded = utf8_percent_encode(secret, RESERVED).to_string();
        let encoded = Some(encoded).filter(|encoded| encoded != secret);
        if let Some(at) = text.find(secret.as_str()).or_else(|| text.find(&encoded?)) {
            let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
            panic!("secret {index} of {} is in the log of {whose}, in: {}…", secrets.len(), &text[line..at]);
        }
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
