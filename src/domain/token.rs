//! Which texts are usable as an access or refresh token.

/// The longest token, in bytes: far above what any provider issues, and what the database is made for.
pub const MAX_TOKEN_LEN: usize = 32 * 1024;

/// Whether a value can be used as an access or refresh token: 1 to [`MAX_TOKEN_LEN`] characters of VSCHAR
/// (RFC 6749, appendix A.12 and A.17). Anything else would break a header, a credential line or a column.
pub fn is_usable_token(value: &str) -> bool {
    (1..=MAX_TOKEN_LEN).contains(&value.len()) && value.bytes().all(|byte| matches!(byte, 0x20..=0x7e))
}
