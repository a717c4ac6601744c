use super::reader::Reader;
use crate::domain::secret::{DEFAULT_DEPLOYMENT, KeyRing, is_key_id};
use crate::private_file::FileRule;

const DEPLOYMENT_SHAPE: &str = "1 to 64 letters, digits, `-`, `_` or `.`";

/// Keys for what is encrypted at rest.
#[derive(Debug, Clone)]
pub struct Encryption {
    /// None: commands that need them refuse to run ([`Settings::key_ring`](super::Settings::key_ring)). They know the deployment, and
    /// whether format 1 is accepted.
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
        // What a row is bound to. Of the settings and not of the database, which must not decide it.
        let deployment = from.text("encryption.deployment", is_key_id, DEPLOYMENT_SHAPE);
        let deployment = deployment.unwrap_or_else(|| DEFAULT_DEPLOYMENT.to_owned());
        let accepts_format_1 = from.boolean("encryption.accept_format_1").unwrap_or(false);
        let of_command = |command: Vec<String>| from.key_ring_of_command(SOURCES[2], &command, limit);
        let keys = keys.or(keys_of_file).or_else(|| command.and_then(of_command));
        Self { keys: keys.map(|keys| keys.of_deployment(&deployment, accepts_format_1)) }
    }
}
