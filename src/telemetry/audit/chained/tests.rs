use std::path::PathBuf;

use tempfile::TempDir;

use super::super::verify::{Broken, Fault, TornLine, Verifier, Why};
use super::*;
use crate::domain::secret::{ExposeSecret, KeyRing};

/// The first and the last sequence number, and the unfinished lines.
type Verified = (Option<(u64, u64)>, Vec<TornLine>);

/// A folder with a chained audit log.
struct Log {
    folder: TempDir,
    keys: KeyRing,
    max_bytes: u64,
}

impl Log {
    fn new() -> Self {
        let keys = KeyRing::parse(KeyRing::generate("k1").expose_secret()).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), keys, max_bytes: 1_000_000 }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    fn try_open(&self) -> io::Result<ChainedFile> {
        let settings = AuditFile { path: self.path(), max_bytes: self.max_bytes, kept: 9, chain: true };
        ChainedFile::open(&settings, self.keys.newest().audit_key().clone())
    }

    /// A process that writes these lines and ends.
    fn write(&self, users: &[&str]) {
        let mut file = self.try_open().unwrap();
        for user in users {
            file.line(format!("{{\"event\":\"refused\",\"user\":\"{user}\"}}\n").as_bytes()).unwrap();
        }
        file.flush().unwrap();
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.path()).unwrap().lines().map(str::to_owned).collect()
    }

    fn set_lines(&self, lines: &[String]) {
        fs::write(self.path(), lines.join("\n") + "\n").unwrap();
    }

    /// The first fault over these texts, or the sequence numbers and the torn lines.
    fn verify_texts(&self, texts: &[String]) -> Result<Verified, Fault> {
        let mut verifier = Verifier::new(&self.keys);
        let mut torn = Vec::new();
        for text in texts {
            for line in text.split_inclusive('\n') {
                torn.extend(match line.strip_suffix('\n') {
                    Some(line) => verifier.take(line.as_bytes())?,
                    None => verifier.take_unfinished(line.as_bytes())?,
                });
            }
            verifier.end_of_file()?;
        }
        Ok((verifier.range(), torn))
    }

    fn verify(&self) -> Result<Verified, Fault> {
        self.verify_texts(&[fs::read_to_string(self.path()).unwrap()])
    }

    /// All files, the oldest first.
    fn files(&self) -> Vec<String> {
        let numbers = (1..10).rev().map(|number| numbered(&self.path(), number));
        let texts = numbers.chain([self.path()]).filter_map(|path| fs::read_to_string(path).ok());
        texts.collect()
    }
}

fn broken(line: u64, why: Broken) -> Result<Verified, Fault> {
    Err(Fault { line, why: Why::Broken(why) })
}

fn unbroken(last: u64) -> Verified {
    (Some((1, last)), Vec::new())
}

#[test]
fn whatever_is_done_to_a_line_is_found_at_the_first_line_that_shows_it() {
    let log = Log::new();
    log.write(&["a", "b", "c", "d"]);
    assert_eq!(log.verify(), Ok(unbroken(5)));
    let lines = log.lines();
    let changed = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        log.set_lines(&lines);
        log.verify()
    };
    let edit = |lines: &mut Vec<String>, at: usize, from: &str, to: &str| {
        assert!(lines[at].contains(from));
        lines[at] = lines[at].replace(from, to);
    };

    assert_eq!(changed(&|it| edit(it, 2, r#""user":"b""#, r#""user":"x""#)), broken(3, Broken::Changed));
    assert_eq!(changed(&|it| drop(it.remove(2))), broken(3, Broken::Missing { expected: 3, found: 4 }));
    assert_eq!(changed(&|it| it.swap(1, 2)), broken(2, Broken::Missing { expected: 2, found: 3 }));
    assert_eq!(
        changed(&|it| it.insert(2, it[1].clone())),
        broken(3, Broken::OutOfOrder { expected: 3, found: 2 })
    );
    assert_eq!(changed(&|it| it.insert(2, r#"{"event":"x"}"#.to_owned())), broken(3, Broken::Unchained));
    assert_eq!(changed(&|it| it.insert(5, r#"{"event":"x"}"#.to_owned())), broken(6, Broken::Unchained));
    assert_eq!(changed(&|it| drop(it.remove(0))), broken(1, Broken::Beheaded));
    // Renumbered behind a line that was taken away.
    let renumber = |it: &mut Vec<String>| {
        it.remove(2);
        edit(it, 2, r#""sequence":4"#, r#""sequence":3"#);
    };
    assert_eq!(changed(&renumber), broken(3, Broken::Changed));
    // A code without the key is no code.
    let guess = |it: &mut Vec<String>| {
        let (content, _) = it[4].rsplit_once(r#","chain":"#).unwrap();
        it[4] = format!(r#"{content},"chain":"{}"}}"#, "0".repeat(64));
    };
    assert_eq!(changed(&guess), broken(5, Broken::Changed));
    // What is cut off at the end is not missed.
    assert_eq!(changed(&|it| it.truncate(3)), Ok(unbroken(3)));
    assert_eq!(changed(&|_| {}), Ok(unbroken(5)));
}

#[test]
fn the_chain_goes_on_over_rotations_and_each_file_can_be_verified_alone() {
    let mut log = Log::new();
    log.max_bytes = 700;
    log.write(&["a", "b", "c", "d", "e", "f", "g"]);
    let files = log.files();
    assert!(files.len() > 2, "{files:#?}");
    assert!(files.iter().all(|file| file.len() < 1_000), "{files:#?}");
    let (range, _) = log.verify_texts(&files).unwrap();
    assert_eq!(range, Some((1, 7 + files.len() as u64)), "each file has a line of its own");
    let (alone, _) = log.verify_texts(&files[1..]).unwrap();
    assert!(alone.is_some_and(|(first, _)| first > 1), "{alone:?}");

    let swapped = [files[1].clone(), files[0].clone()];
    let fault = log.verify_texts(&swapped).unwrap_err();
    assert!(matches!(fault, Fault { line: 1, why: Why::Broken(Broken::OutOfOrder { .. }) }), "{fault:?}");
    let gap = [files[0].clone(), files[2].clone()];
    let fault = log.verify_texts(&gap).unwrap_err();
    assert!(matches!(fault, Fault { line: 1, why: Why::Broken(Broken::Missing { .. }) }), "{fault:?}");
}

#[test]
fn a_new_process_goes_on_from_the_last_line_also_right_behind_a_rotation() {
    let log = Log::new();
    log.write(&["a"]);
    log.write(&["b", "c"]);
    assert_eq!(log.verify(), Ok(unbroken(4)));
    // It was killed between the rename and the first line of the new file.
    fs::rename(log.path(), numbered(&log.path(), 1)).unwrap();
    log.write(&["d"]);
    assert_eq!(log.verify_texts(&log.files()), Ok(unbroken(6)));
    // The same in the middle of that line.
    fs::rename(numbered(&log.path(), 1), numbered(&log.path(), 2)).unwrap();
    fs::rename(log.path(), numbered(&log.path(), 1)).unwrap();
    fs::write(log.path(), "{\"timestamp\":\"20").unwrap();
    log.write(&["e"]);
    assert_eq!(log.verify_texts(&log.files()), Ok((Some((1, 8)), vec![TornLine(1)])));
}

#[test]
fn a_line_that_a_killed_process_left_unfinished_is_told_from_one_that_was_changed() {
    let log = Log::new();
    log.write(&["a", "b"]);
    let text = fs::read_to_string(log.path()).unwrap();
    fs::write(log.path(), &text[..text.len() - 30]).unwrap();
    assert_eq!(log.verify(), Ok((Some((1, 2)), vec![TornLine(3)])), "before the next start");
    log.write(&["c"]);
    assert_eq!(log.verify(), Ok((Some((1, 4)), vec![TornLine(3)])), "after it");

    // Nobody can put another text in its place, or let one pass for it.
    let mut lines = log.lines();
    lines[2] = r#"{"event":"token_handed_out","user":"x""#.to_owned();
    log.set_lines(&lines);
    assert_eq!(log.verify(), broken(3, Broken::Unchained));
    // Only its line feed was missing.
    fs::write(log.path(), text.trim_end()).unwrap();
    log.write(&["c"]);
    assert_eq!(log.verify(), Ok(unbroken(4)));
}

#[test]
fn lines_without_a_chain_are_left_in_a_file_of_their_own() {
    let log = Log::new();
    fs::write(log.path(), "{\"event\":\"refused\"}\n").unwrap();
    log.write(&["a"]);
    assert_eq!(log.verify(), Ok(unbroken(2)));
    assert_eq!(fs::read_to_string(numbered(&log.path(), 1)).unwrap(), "{\"event\":\"refused\"}\n");
}

#[test]
fn a_key_that_is_gone_is_no_broken_chain_and_another_key_of_its_id_is_one() {
    let mut log = Log::new();
    log.write(&["a"]);
    let old = mem::replace(&mut log.keys, Log::new().keys);
    assert_eq!(log.verify(), broken(1, Broken::Changed), "another key of the same id");
    let other = KeyRing::generate("k2");
    log.keys = KeyRing::parse(other.expose_secret()).unwrap();
    let fault = log.verify().unwrap_err();
    assert!(matches!(fault, Fault { line: 1, why: Why::UnknownKey(_) }), "{fault:?}");
    log.keys = old;
    assert_eq!(log.verify(), Ok(unbroken(2)));
}

#[test]
fn a_file_has_one_writer() {
    let log = Log::new();
    let first = log.try_open().unwrap();
    let second = log.try_open().map(drop).unwrap_err();
    assert!(second.to_string().contains("another process writes it"), "{second}");
    drop(first);
    log.write(&["a"]);
    assert_eq!(log.verify(), Ok(unbroken(2)));
}

#[test]
fn the_chain_of_a_file_that_cannot_be_renamed_goes_on_in_it() {
    let log = Log::new();
    let mut file = log.try_open().unwrap();
    file.full_at = 0;
    fs::create_dir_all(numbered(&log.path(), 9).join("in the way")).unwrap();
    for number in 1..9 {
        fs::write(numbered(&log.path(), number), "").unwrap();
    }
    file.line(b"{\"event\":\"a\"}\n").unwrap();
    file.flush().unwrap();
    assert_eq!(log.verify(), Ok(unbroken(2)), "it goes on growing");
}
