//! Texts of others that may hold a secret, reduced to plain words. Providers echo what they were sent, and a panic may show the
//! value that it was about.

/// Replaces what is left out.
pub const LEFT_OUT: &str = "…";

/// The plain words of a text, with `…` for everything between them. A random token is never a plain word.
pub fn plain_words(text: &str) -> String {
    let mut words: Vec<&str> =
        text.split_whitespace().map(|word| if is_plain_word(word) { word } else { LEFT_OUT }).collect();
    words.dedup_by(|word, before| word == before && *word == LEFT_OUT);
    words.join(" ")
}

/// Words of error texts and OAuth parameter names: `expired,` `client_id` `and/or` `(HTTP` `10`. Tokens are long and
/// random: they have digits, mixed case or other characters, or are longer than a word.
fn is_plain_word(word: &str) -> bool {
    let is_part = |part: &str| match part.as_bytes() {
        [first, rest @ ..] if part.len() <= 20 && first.is_ascii_alphabetic() => {
            rest.iter().all(u8::is_ascii_lowercase) || part.bytes().all(|byte| byte.is_ascii_uppercase())
        }
        digits => (1..=4).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
    };
    let word = word.trim_matches(|sign| ".,:;!?()\"'`".contains(sign));
    word.len() <= 32 && word.split(['_', '-', '/', '\'']).all(is_part)
}
