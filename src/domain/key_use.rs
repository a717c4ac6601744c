//! Which encryption keys are in use, and who can read what they seal.
//!
//! A key has a *canary* before the first row is sealed with it: a row with a text that it sealed. Whoever starts must open every
//! canary, so nobody runs without a key that rows use. And everybody who seals says in a row which keys they hold. A process seals
//! with a new key once everybody who lives holds it:
//!
//! 1. everybody holds the key;
//! 2. its canary is written (the key is *announced*);
//! 3. everybody still holds it: who started before the canary was there had its row before, and whoever starts later meets
//!    the canary;
//! 4. the canary says that the key is *in use*. From here on nobody needs to ask.
//!
//! A new format of secrets goes the same way. Everybody says which formats they read. Once all who live read the newer one, the
//! canaries are sealed in it, so that no older version starts any more. Whoever still sees that all read it then seals in it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::clock::Timestamp;
use super::problem::Problem;
use super::secret::{Binding, ExposeSecret, Format, KeyRing, OpenError, RingKey, Sealer, SecretString};

/// Whoever was silent for longer is shown as gone. It may be frozen, or have no database.
pub const LIVING_FOR: Duration = Duration::from_secs(60);

/// For so long a new key waits for somebody who is silent and lacks it. While the database is away everybody is silent, so this
/// is longer than most outages.
pub const WAITED_FOR: Duration = Duration::from_mins(10);

/// What a canary says. From format 2 on, the deployment follows after a blank.
const SONG: &str = "tokenkeeper";

/// A key that rows may be sealed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    pub key_id: String,
    /// None: nobody has proven yet that they have the key.
    pub sealed: Option<Vec<u8>>,
    /// Since when rows are sealed with it. None: it is announced.
    pub in_use_since: Option<Timestamp>,
}

/// What a key ring makes of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    Opens,
    /// The ring has a key of this id. Only rows can show whether it is the right one.
    Unproven,
    /// The ring has no key of this id.
    Missing,
    /// The ring has another key of this id.
    OtherKey,
    /// It is the right key, of another deployment.
    OtherDeployment,
    /// It is the right key, and rows may be sealed in format 1, which the ring refuses.
    RefusedFormat,
}

impl Canary {
    /// The canary's ciphertext.
    pub fn sealed_by(sealer: &Sealer<'_>) -> Vec<u8> {
        let song = match sealer.format() {
            Format::One => SONG.to_owned(),
            Format::Two => format!("{SONG} {}", sealer.deployment()),
        };
        sealer.seal(&SecretString::from(song), bound_to(sealer.key().id())).bytes
    }

    /// The format that it is sealed in. None: it is not sealed yet, or in a format that this version does not know.
    pub fn format(&self) -> Option<Format> {
        Format::of(self.sealed.as_deref()?)
    }

    pub const fn is_in_use(&self) -> bool {
        self.in_use_since.is_some()
    }

    pub fn fit(&self, ring: &KeyRing) -> Fit {
        match (self.open(ring), &self.sealed) {
            (Err(OpenError::UnknownKey(_)), _) => Fit::Missing,
            (_, None) => Fit::Unproven,
            (Ok(song), Some(_)) if song.expose_secret() == SONG => {
                if ring.accepts_format_1() {
                    Fit::Opens
                } else {
                    Fit::RefusedFormat
                }
            }
            (Ok(song), Some(_)) => match song.expose_secret().strip_prefix(SONG) {
                Some(deployment) if deployment.trim_start() == ring.deployment() => Fit::Opens,
                Some(_) => Fit::OtherDeployment,
                None => Fit::OtherKey,
            },
            (Err(OpenError::Tampered(_) | OpenError::Format1(_)), Some(_)) => Fit::OtherKey,
        }
    }

    /// The deployment that it is of, if the ring opens it and it says so.
    pub fn deployment(&self, ring: &KeyRing) -> Option<String> {
        let song = self.open(ring).ok()?;
        Some(song.expose_secret().strip_prefix(SONG)?.strip_prefix(' ')?.to_owned())
    }

    fn open(&self, ring: &KeyRing) -> Result<SecretString, OpenError> {
        ring.open(&self.key_id, self.sealed.as_deref().unwrap_or_default(), bound_to(&self.key_id))
    }
}

/// Of any deployment, so that a wrong one can be told from a wrong key.
fn bound_to(key_id: &str) -> Binding {
    Binding::new("key_canary", "sealed")
        .text(key_id)
        .of_any_deployment()
        .also_in_format_1(format!("key_canary/sealed/{key_id}"))
}

/// What is wrong with the settings beside the keys: the deployment, or that format 1 is refused. None: nothing.
pub fn problem_with_settings(ring: &KeyRing, canaries: &[Canary]) -> Option<Problem> {
    let is_any = |wanted: Fit| canaries.iter().find(|canary| canary.fit(ring) == wanted);
    if let Some(canary) = is_any(Fit::OtherDeployment) {
        let theirs = canary.deployment(ring).unwrap_or_default();
        return Some(Problem::new(
            format!(
                "the deployment is `{}` (`encryption.deployment`), and the database's rows are encrypted for `{theirs}`",
                ring.deployment()
            ),
            "a row opens only in the deployment that wrote it",
            "put the deployment's name back, or give this deployment a database of its own",
        ));
    }
    is_any(Fit::RefusedFormat).map(|_| problem_with_format_1())
}

/// Rows may be in format 1, which is refused.
pub fn problem_with_format_1() -> Problem {
    Problem::new(
        "the database's rows may be encrypted in format 1, which is refused here (`encryption.accept_format_1`)",
        "an earlier version wrote them",
        "set it to true for all workers, run `tokenkeeper keys rotate`, and take it away again",
    )
}

/// What is wrong with a ring, by the ids of the keys that it lacks and of those that are other keys. None: nothing.
pub fn problem_with_ring(missing: &[&str], other: &[&str]) -> Option<Problem> {
    let settings = "`encryption.keys`, TOKENKEEPER_KEYS";
    match (missing, other) {
        ([], []) => None,
        (missing, []) => Some(Problem::new(
            format!("the encryption keys ({settings}) lack {}", quoted(missing)),
            "rows of the database are encrypted with that, or soon will be",
            "add it, as the other workers have it; `tokenkeeper keys rotate` says when a key is not needed any more",
        )),
        ([], other) => Some(Problem::new(
            format!(
                "the encryption key {} ({settings}) is not the one that the database's rows are encrypted with",
                quoted(other)
            ),
            "another key has the same id",
            "put the right key back; `tokenkeeper keys status` shows who has it",
        )),
        (missing, other) => Some(Problem::new(
            format!(
                "the encryption keys ({settings}) lack {}, and {} is another key of that id",
                quoted(missing),
                quoted(other)
            ),
            "they may be those of another database",
            "compare them with those of a worker that runs; `tokenkeeper keys status` shows who has which",
        )),
    }
}

fn quoted(ids: &[&str]) -> String {
    ids.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ")
}

/// A process that seals: a worker, or a command while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KnownWorker {
    pub id: String,
    /// `worker`, or the name of a command.
    pub command: String,
    pub version: String,
    /// The check values of the keys that it holds, by their ids ([`RingKey::check`]).
    #[serde(rename = "keys", serialize_with = "ids_alone")]
    pub key_checks: BTreeMap<String, String>,
    /// None: it has not chosen a key yet.
    pub seals_with: Option<String>,
    /// The number of the newest format that it reads ([`Format`]).
    pub reads_format: i32,
    /// The number of the format that it seals in. None: it has not chosen yet, or is of a version that does not say.
    pub seals_in_format: Option<i32>,
    pub started_at: Timestamp,
    pub last_seen_at: Timestamp,
    /// Whether it is heard of ([`LIVING_FOR`]).
    pub is_living: bool,
    /// Whether a new key waits for it ([`WAITED_FOR`]).
    #[serde(skip)]
    pub is_waited_for: bool,
}

impl KnownWorker {
    pub fn holds(&self, key: &RingKey) -> bool {
        self.key_checks.get(key.id()).is_some_and(|check| check == key.check())
    }

    /// No command, and heard of lately.
    pub fn is_living_worker(&self) -> bool {
        self.command == "worker" && self.is_living
    }

    pub const fn reads(&self, format: Format) -> bool {
        self.reads_format >= format.number()
    }
}

fn ids_alone<S: Serializer>(checks: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(checks.keys())
}

/// The ring's keys, as their check values by their ids.
pub fn key_checks(ring: &KeyRing) -> BTreeMap<String, String> {
    ring.keys().iter().map(|key| (key.id().to_owned(), key.check().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(id: &str) -> KeyRing {
        KeyRing::parse(KeyRing::generate(id).expose_secret()).unwrap()
    }

    fn canary_in(format: Format, ring: &KeyRing) -> Canary {
        let key = &ring.keys()[0];
        let sealed = Canary::sealed_by(&ring.sealer_of(key, format));
        Canary { key_id: key.id().to_owned(), sealed: Some(sealed), in_use_since: None }
    }

    fn canary(ring: &KeyRing) -> Canary {
        canary_in(Format::Two, ring)
    }

    #[test]
    fn a_canary_tells_another_deployment_from_another_key_and_names_it() {
        let right = ring("k1");
        let other = right.clone().of_deployment("other", false);
        assert_eq!(canary(&right).fit(&other), Fit::OtherDeployment);
        assert_eq!(canary(&other).fit(&right), Fit::OtherDeployment);
        assert_eq!(canary(&other).fit(&other), Fit::Opens);
        assert_eq!(problem_with_settings(&right, &[canary(&right)]), None);
        let problem = problem_with_settings(&right, &[canary(&other)]).unwrap().to_string();
        assert!(problem.contains("`tokenkeeper`") && problem.contains("for `other`"), "{problem}");
    }

    #[test]
    fn a_canary_of_format_1_opens_only_where_that_is_accepted() {
        let ring = ring("k1");
        let (refusing, accepting) = (ring.clone(), ring.clone().of_deployment("any", true));
        let canary = canary_in(Format::One, &ring);
        assert_eq!((canary.fit(&refusing), canary.fit(&accepting)), (Fit::RefusedFormat, Fit::Opens));
        let problem = problem_with_settings(&refusing, std::slice::from_ref(&canary)).unwrap().to_string();
        assert!(
            problem.contains("encryption.accept_format_1") && problem.contains("keys rotate"),
            "{problem}"
        );
        assert_eq!(problem_with_settings(&accepting, &[canary]), None);
    }

    #[test]
    fn a_canary_tells_the_right_key_from_a_missing_one_and_from_another_of_its_id() {
        let right = ring("k1");
        let canary = canary(&right);
        assert_eq!(canary.fit(&right), Fit::Opens);
        assert_eq!(canary.fit(&ring("k1")), Fit::OtherKey);
        assert_eq!(canary.fit(&ring("k2")), Fit::Missing);
        let unproven = Canary { sealed: None, ..canary };
        assert_eq!(unproven.fit(&right), Fit::Unproven);
        assert_eq!(unproven.fit(&ring("k2")), Fit::Missing);
    }

    #[test]
    fn a_ciphertext_of_something_else_is_no_canary() {
        let right = ring("k1");
        let forged = right.seal(&"tokenkeeper".into(), Binding::new("token_entry", "1")).bytes;
        assert_eq!(Canary { sealed: Some(forged), ..canary(&right) }.fit(&right), Fit::OtherKey);
    }

    #[test]
    fn a_wrong_ring_is_named_by_the_ids_of_its_keys_and_by_what_to_do() {
        assert_eq!(problem_with_ring(&[], &[]), None);
        let missing = problem_with_ring(&["a", "b"], &[]).unwrap().to_string();
        assert!(missing.contains("lack `a`, `b`") && missing.contains("keys rotate"), "{missing}");
        let other = problem_with_ring(&[], &["a"]).unwrap().to_string();
        assert!(other.contains("`a`") && other.contains("the same id"), "{other}");
        let both = problem_with_ring(&["a"], &["b"]).unwrap().to_string();
        assert!(both.contains("lack `a`, and `b`"), "{both}");
    }

    #[test]
    fn a_worker_holds_a_key_only_if_id_and_bytes_are_the_same() {
        let mine = ring("k1");
        let worker = KnownWorker {
            id: "w".to_owned(),
            command: "worker".to_owned(),
            version: "1".to_owned(),
            key_checks: key_checks(&mine),
            seals_with: None,
            reads_format: 1,
            seals_in_format: None,
            started_at: Timestamp::from_millis(0),
            last_seen_at: Timestamp::from_millis(0),
            is_living: true,
            is_waited_for: true,
        };
        assert!(worker.holds(&mine.keys()[0]));
        assert!(!worker.holds(&ring("k1").keys()[0]));
        assert!(!worker.holds(&ring("k2").keys()[0]));
        assert!(worker.reads(Format::One) && !worker.reads(Format::Two));
    }
}
