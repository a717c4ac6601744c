//! Where a client secret stands: in the file itself, in an environment variable, or in a file of its own.

use std::path::Path;

use super::SecretSource;
use super::block::is_printable_ascii;
use crate::domain::secret::SecretString;

const IN_VARIABLE: &str = "client_secret_env";
const IN_FILE: &str = "client_secret_file";

pub(super) const KEYS: [&str; 3] = ["client_secret", IN_VARIABLE, IN_FILE];

const SHAPE: &str = "must be, or point at, 1 to 4096 printable ASCII characters (RFC 6749, appendix A.2)";

/// The secret that the text behind one of [`KEYS`] is, or points at. An error says what is wrong.
///
/// A pointer may be the secret itself, pasted behind the wrong key. So an error repeats it only if it looks like what belongs
/// there.
pub(super) fn find(key: &str, text: &str, secrets: &dyn SecretSource) -> Result<SecretString, String> {
    let secret = match key {
        IN_VARIABLE => secrets.variable(text).ok_or_else(|| {
            let name = shown(text, is_variable_name(text));
            format!("names an environment variable that is not set: {name}")
        })?,
        IN_FILE => match secrets.file(Path::new(text)) {
            // Nearly every editor ends a file with a line break.
            Ok(content) => content.trim_end_matches(['\r', '\n']).to_owned(),
            Err(error) => {
                let path = shown(text, is_path(text));
                return Err(format!("names a file that cannot be read ({error}): {path}"));
            }
        },
        _ => text.to_owned(),
    };
    let is_usable = (1..=4096).contains(&secret.len()) && is_printable_ascii(&secret);
    is_usable.then(|| secret.into()).ok_or_else(|| SHAPE.to_owned())
}

fn shown(text: &str, is_harmless: bool) -> &str {
    if is_harmless { text } else { "what stands there is not repeated, because it may be the secret itself" }
}

/// Words of capitals and digits, as nobody writes a secret: those of providers have small letters, or are one long word.
fn is_variable_name(text: &str) -> bool {
    let is_word = |word: &str| word.len() <= 20;
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_uppercase() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
        && text.split('_').all(is_word)
}

/// A path that says that it is one, or the name of a file with an extension. A secret in base64 may have slashes too.
fn is_path(text: &str) -> bool {
    let of_path = |byte: u8| byte.is_ascii_alphanumeric() || b"/\\._-: ".contains(&byte);
    let is_extension = |extension: &str| {
        (2..=5).contains(&extension.len()) && extension.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    let is_part = |part: &str| part.len() <= 32;
    let begins_as_path = ["/", "./", "../"].iter().any(|start| text.starts_with(start))
        || text.as_bytes().get(1..3) == Some(b":\\");
    text.bytes().all(of_path)
        && text.split(['/', '\\']).all(is_part)
        && (begins_as_path || text.rsplit_once('.').is_some_and(|(_, extension)| is_extension(extension)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As providers issue them: GitHub, GitLab, Bitbucket, Azure, base64.
    const SECRETS: [&str; 8] = [
        "0123456789abcdef0123456789abcdef01234567",
        "gloas-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "AbCdEf0123456789AbCdEf0123456789",
        "Q~8Q~0123456789.abcdefghijklmnop-_ABCDEF",
        "/bcdefghijklmnopqrstuvwxyz0123456789ABCDEFG=",
        "AAAABBBBCCCCDDDDEEEEFFFF22223333",
        "s3cret",
        "ab/cd+ef.gh",
    ];

    #[test]
    fn a_secret_looks_neither_like_a_variable_nor_like_a_path() {
        for secret in SECRETS {
            assert!(!is_variable_name(secret) && !is_path(secret), "{secret}");
        }
        for name in ["UNSET", "GITHUB_CLIENT_SECRET", "_X2"] {
            assert!(is_variable_name(name), "{name}");
        }
        for path in ["/run/secrets/github", "none.txt", "secrets/git.example.org.key", "../x", "C:\\keys\\a"]
        {
            assert!(is_path(path), "{path}");
        }
    }
}
