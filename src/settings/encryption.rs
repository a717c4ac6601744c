use super::private_file::FileRule;
use super::reader::Reader;
use crate::domain::secret::KeyRing;

/// Keys for what is encrypted at rest.
#[derive(Debug, Clone)]
pub struct Encryption {
    /// None: commands that need them refuse to run ([`Settings::key_ring`](super::Settings::key_ring)).
    pub keys: Option<KeyRing>,
}

impl Encryption {
    pub(super) fn read(from: &mut Reader, files: FileRule) -> Self {
        const SOURCES: [&str; 3] = ["encryption.keys", "encryption.keys_file", "encryption.keys_command"];
        let keys = from.key_ring(SOURCES[0]);
        let keys_of_file = from.key_ring_file(SOURCES[1], files);
        let limit = from.seconds("encryption.keys_command_timeout_secs", 1..=300, 30);
        let command = from.list::<String>(SOURCES[2]);
        let set: Vec<&str> = SOURCES.into_iter().filter(|key| from.is_set(key)).collect();
        if let [first, second, ..] = set[..] {
            from.problem(second, format!("is set beside `{first}`; set one of them"));
            return Self { keys: keys.or(keys_of_file) };
        }
        let of_command = |command: Vec<String>| from.key_ring_of_command(SOURCES[2], &command, limit);
        Self { keys: keys.or(keys_of_file).or_else(|| command.and_then(of_command)) }
    }
}
