//! What a world's workers wrote, sent and kept. When the world ends, all of it is searched for the world's secrets (invariant 6),
//! in every form that they can be read back from (`tests/kit/src/leaks.rs`).
//!
//! | place | what is searched |
//! |---|---|
//! | log | the log of the workers in this process since the world began, and of each worker process: at level trace, panics included |
//! | metrics | `/metrics` of each worker process as it is told to stop |
//! | reply | each reply that came, without the token of a reply that is ok |
//! | dead letter | each one that a worker laid into the dead letters: properties, headers, body |
//! | event | each one that a [`Listener`](super::events::Listener) heard |
//! | database | SQLite's files byte for byte, journals included; each row of each table of a server |
//! | file | the folder a worker process ran in (a core file would lie there), its spool folder and its audit log |
//!
//! The broker's own files and those of a database server are theirs. A dead letter that the broker itself laid there is as it
//! was published until a worker seals it: `dead_letters/sealed.rs` looks at those.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use tokenkeeper_testkit::database::contents;
use tokenkeeper_testkit::leaks::{Leak, Leaks};
use tokenkeeper_testkit::queues::{DeadLetter, Reply, remaining_dead_letters};
use tokenkeeper_testkit::wait::{PATIENCE, within};

use super::World;
use super::logs;

/// Where a secret must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Log,
    Metrics,
    Reply,
    DeadLetter,
    Event,
    Database,
    File,
}

impl Place {
    pub(crate) const ALL: [Self; 7] =
        [Self::Log, Self::Metrics, Self::Reply, Self::DeadLetter, Self::Event, Self::Database, Self::File];
}

/// Collected while a world lives. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence(Arc<Mutex<Vec<Piece>>>);

#[derive(Debug, Clone)]
struct Piece {
    place: Place,
    name: String,
    bytes: Vec<u8>,
}

impl Evidence {
    pub(crate) fn add(&self, place: Place, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        let piece = Piece { place, name: name.into(), bytes: bytes.into() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
    }

    /// A file, or every file in a folder and in its folders. Nothing, where there is none.
    pub(crate) fn add_files(&self, path: &Path) {
        if let Ok(entries) = fs::read_dir(path) {
            entries.flatten().for_each(|entry| self.add_files(&entry.path()));
        } else if path.is_file()
            && let Ok(bytes) = fs::read(path)
        {
            self.add(Place::File, path.display().to_string(), bytes);
        }
    }

    fn pieces(&self) -> Vec<Piece> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl World {
    /// Every secret this world's workers could let slip: all tokens and client secrets, the encryption keys, the admin token,
    /// and the passwords of broker and database where they are no everyday words.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let setting = |name: &str| self.environment.get(name).map(String::as_str);
        let rings =
            [Some(self.keys.as_str()), setting("TOKENKEEPER_KEYS"), setting("TOKENKEEPER__ENCRYPTION__KEYS")];
        let entries = rings.into_iter().flatten().flat_map(|ring| ring.split(','));
        let keys = entries.filter_map(|entry| Some(entry.split_once(':')?.1.to_owned()));
        let urls = ["AMQP_URL", "TOKENKEEPER__BROKER__URL", "DATABASE_URL", "TOKENKEEPER__DATABASE__URL"]
            .map(setting);
        let passwords = urls.into_iter().flatten().filter_map(password_of);
        let token = setting("TOKENKEEPER__ADMIN__TOKEN").map(str::to_owned);
        let others = keys.chain(passwords).chain(token).filter(|secret| secret.len() >= 12);
        self.scm.secrets().into_iter().chain(others).collect()
    }

    /// Everything that its workers left behind so far, searched for its secrets. Each that is found comes with its place, and
    /// with what tells a person where to look.
    pub(crate) fn search(&self) -> Vec<(Place, String)> {
        let leaks = Leaks::of(self.secrets());
        everything(self).iter().filter_map(|piece| piece.search(&leaks)).collect()
    }

    /// The places of which a search has something to look at.
    pub(crate) fn searched(&self) -> Vec<Place> {
        let pieces = everything(self);
        let has = |place: &Place| pieces.iter().any(|piece| piece.place == *place && !piece.bytes.is_empty());
        Place::ALL.into_iter().filter(has).collect()
    }

    /// Takes something for what a worker left behind. From here on the test itself says what must be found.
    pub(crate) fn plant(&self, place: Place, bytes: impl Into<Vec<u8>>) {
        self.expect_leaks();
        self.evidence.add(place, "planted", bytes);
    }

    /// From here on the test itself says what must be found.
    pub(crate) fn expect_leaks(&self) {
        self.has_planted.store(true, Ordering::Relaxed);
    }

    /// Where its database is.
    pub(crate) fn database_url(&self) -> &str {
        self.database.url()
    }

    /// Takes note of the files that a worker writes by its settings. Their folders may be gone before the world is.
    pub(super) fn files_of_workers(&self) -> Vec<PathBuf> {
        let settings = ["TOKENKEEPER__AUDIT__FILE", "TOKENKEEPER__WORKER__SPOOL_DIR"];
        settings.iter().filter_map(|name| self.environment.get(*name)).map(PathBuf::from).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            logs::assert_captured_json();
            if !self.has_planted.load(Ordering::Relaxed) {
                let found = self.search();
                assert!(found.is_empty(), "secrets where none may be: {found:#?}");
            }
        }
    }
}

/// The password in a URL, decoded.
fn password_of(url: &str) -> Option<String> {
    let url = url::Url::parse(url).ok()?;
    let password = percent_encoding::percent_decode_str(url.password()?).decode_utf8().ok()?;
    Some(password.into_owned())
}

/// Everything that a world's workers left behind so far.
fn everything(world: &World) -> Vec<Piece> {
    let mut pieces = world.evidence.pieces();
    let mut add =
        |place, name: &str, bytes: Vec<u8>| pieces.push(Piece { place, name: name.to_owned(), bytes });
    add(Place::Log, "the workers in this process", logs::captured_since(world.log_began));
    for reply in world.broker.replies_seen() {
        add(Place::Reply, "a reply", without_its_token(&reply).into_bytes());
    }
    let (letters, database) = left_behind(world);
    for letter in world.broker.dead_letters_seen().into_iter().chain(letters).filter(is_of_a_worker) {
        let mut bytes = format!("{} {:?}\n", letter.routing_key, letter.properties).into_bytes();
        write_table(&letter.headers, &mut bytes);
        bytes.extend_from_slice(&letter.body);
        add(Place::DeadLetter, "a dead letter", bytes);
    }
    for (name, bytes) in database {
        add(Place::Database, &name, bytes);
    }
    pieces
}

impl Piece {
    fn search(&self, leaks: &Leaks) -> Option<(Place, String)> {
        let Leak { secret, form, at } = leaks.find(&self.bytes)?;
        let before = line_before(&self.bytes, at);
        Some((self.place, format!("{}: secret {secret} ({form:?}), in: {before}…", self.name)))
    }
}

/// What stands in the same line before this place: at most 300 bytes.
pub(super) fn line_before(text: &[u8], at: usize) -> String {
    let before = &text[at.saturating_sub(300)..at];
    let begin = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    String::from_utf8_lossy(&before[begin..]).into_owned()
}

/// Dead letters and database as the world leaves them. Both are read over connections of their own, from a thread with a
/// runtime of its own: the test's may be the one that is going down.
fn left_behind(world: &World) -> (Vec<DeadLetter>, Vec<(String, Vec<u8>)>) {
    let (url, prefix) = (world.broker.url(), world.broker.prefix());
    let database = world.database_url();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let read = async { (remaining_dead_letters(url, prefix).await, contents(database).await) };
            runtime.expect("a runtime").block_on(within("what a world leaves behind", PATIENCE, read))
        });
        reading.join().expect("read what a world leaves behind")
    })
}

/// Names and values, texts as they are: `Debug` shows them as numbers.
fn write_table(table: &FieldTable, to: &mut Vec<u8>) {
    for (name, value) in table.inner() {
        to.extend_from_slice(format!("{}: ", name.as_str()).as_bytes());
        write_value(value, to);
        to.push(b'\n');
    }
}

fn write_value(value: &AMQPValue, to: &mut Vec<u8>) {
    match value {
        AMQPValue::LongString(text) => to.extend_from_slice(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => to.extend_from_slice(bytes.as_slice()),
        AMQPValue::FieldTable(table) => write_table(table, to),
        AMQPValue::FieldArray(values) => {
            for value in values.as_slice() {
                write_value(value, to);
                to.push(b' ');
            }
        }
        other => to.extend_from_slice(format!("{other:?}").as_bytes()),
    }
}

/// The broker moves messages as they are. A worker says why.
fn is_of_a_worker(letter: &DeadLetter) -> bool {
    letter.headers.contains_key("x-tokenkeeper-reason")
}

fn without_its_token(reply: &Reply) -> String {
    fn take_tokens_out(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                let is_ok = fields.get("status").is_some_and(|status| status == "ok");
                if let Some(Value::Object(token)) = fields.get_mut("token").filter(|_| is_ok) {
                    token.remove("value");
                    token.remove("userinfo");
                }
                fields.values_mut().for_each(take_tokens_out);
            }
            Value::Array(items) => items.iter_mut().for_each(take_tokens_out),
            _ => {}
        }
    }
    let mut body = reply.body.clone();
    take_tokens_out(&mut body);
    format!("{body} {:?}", reply.properties)
}
