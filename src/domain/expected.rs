//! What a message of serde expects, in plain words and without the value, which may be a secret.

/// `must be …` for a message about a wrong type or value, as `invalid type: string "…", expected u64`. None for any other one.
pub fn must_be(message: &str) -> Option<String> {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _position)| message);
    let is_about_a_value =
        ["invalid type:", "invalid value:", "invalid length"].iter().any(|start| message.starts_with(start));
    if !is_about_a_value {
        return None;
    }
    Some(match message.rsplit_once(", expected ") {
        Some((_, expected)) => format!("must be {}", in_plain_words(expected)),
        None => "has a wrong type or value".to_owned(),
    })
}

/// The names that a parser has for what JSON and TOML are made of.
fn in_plain_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "bool" | "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        // A type of ours, which a list of its fields could stand for.
        _ if expected.starts_with("struct ") => "an object",
        _ => expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_left_out_and_what_is_expected_is_told_in_plain_words() {
        for (message, told) in [
            (
                "invalid type: string \"s3cret, expected x\", expected u64 at line 1 column 9",
                "must be a whole number",
            ),
            ("invalid type: sequence, expected a map", "must be an object"),
            ("invalid type: integer `7`, expected a string", "must be a string"),
            ("invalid length 0, expected struct Definitions with 2 elements", "must be an object"),
            ("invalid value: s3cret", "has a wrong type or value"),
        ] {
            assert_eq!(must_be(message).as_deref(), Some(told));
        }
        assert_eq!(must_be("missing field `host` at line 1 column 2"), None);
    }
}
