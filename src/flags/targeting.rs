//! What a targeting rule depends on: whether its answer for a user can be remembered.

use serde_json::Value;

/// What a rule may read. The provider offers it the time as well (`$flagd.timestamp`), and there are more ways to that
/// than its name: a path that is put together, or the empty one, which is everything.
const READABLE: [&str; 2] = ["targetingKey", "$flagd.flagKey"];

/// Operators that look at nothing but their arguments; `fractional` at the user and the flag's name too.
const PURE: [&str; 27] = [
    "if",
    "?:",
    "and",
    "or",
    "!",
    "!!",
    "==",
    "===",
    "!=",
    "!==",
    "<",
    "<=",
    ">",
    ">=",
    "in",
    "cat",
    "substr",
    "merge",
    "min",
    "max",
    "+",
    "-",
    "%",
    "fractional",
    "starts_with",
    "ends_with",
    "sem_ver",
];

/// How deep references may go. The provider refuses those that go round in a circle, later.
const MOST_REFERENCES: usize = 16;

/// Whether the rule says the same of a user every time. Only where that is certain: a rule with anything in it that is
/// not known here is evaluated anew each time, which is slower and never wrong. `evaluators` are the file's
/// `$evaluators`, the parts that a rule can refer to.
pub(super) fn depends_on_user_alone(rule: &Value, evaluators: &Value) -> bool {
    is_known(rule, evaluators, MOST_REFERENCES)
}

fn is_known(rule: &Value, evaluators: &Value, references: usize) -> bool {
    let all_known = |rules: &[Value]| rules.iter().all(|rule| is_known(rule, evaluators, references));
    match rule {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        Value::Array(rules) => all_known(rules),
        Value::Object(operation) => {
            let mut entries = operation.iter();
            let (Some((operator, argument)), None) = (entries.next(), entries.next()) else { return false };
            match operator.as_str() {
                "var" => match argument {
                    Value::String(name) => READABLE.contains(&name.as_str()),
                    Value::Array(arguments) => match &arguments[..] {
                        [Value::String(name), default @ ..] => {
                            READABLE.contains(&name.as_str()) && all_known(default)
                        }
                        _ => false,
                    },
                    _ => false,
                },
                "$ref" => {
                    let referred = argument.as_str().and_then(|name| evaluators.get(name));
                    let left = references.checked_sub(1);
                    referred.zip(left).is_some_and(|(rule, left)| is_known(rule, evaluators, left))
                }
                operator => PURE.contains(&operator) && is_known(argument, evaluators, references),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_about_the_user_alone_is_told_from_one_that_may_look_at_the_time() {
        let evaluators = json!({
            "staff": {"in": [{"var": "targetingKey"}, ["u-1", "u-2"]]},
            "early": {"<": [{"var": "$flagd.timestamp"}, 1_700_000_000]},
            "also early": {"$ref": "early"},
            "round": {"$ref": "round"},
        });
        for rule in [
            json!({"if": [{"in": [{"var": "targetingKey"}, ["u-1", "u-2"]]}, "on", "off"]}),
            json!({"fractional": [["on", 50], ["off", 50]]}),
            json!({"fractional": [{"cat": [{"var": "$flagd.flagKey"}, {"var": "targetingKey"}]}, ["on", 1]]}),
            json!({"if": [{"starts_with": [{"var": ["targetingKey", "nobody"]}, "team-a/"]}, "on"]}),
            json!({"if": [{"$ref": "staff"}, "on", "off"]}),
        ] {
            assert!(depends_on_user_alone(&rule, &evaluators), "{rule}");
        }
        for rule in [
            json!({"<": [{"var": "$flagd.timestamp"}, 1_700_000_000]}),
            json!({"var": ["$flagd.timestamp"]}),
            json!({"var": ["targetingKey", {"var": "$flagd.timestamp"}]}),
            json!({"in": ["1", {"var": ""}]}),
            json!({"var": {"cat": ["$flagd", ".timestamp"]}}),
            json!({"var": "$flagd"}),
            json!({"val": ["$flagd", "timestamp"]}),
            json!({"if": [{"<": [{"now": []}, 1]}, "on", "off"]}),
            json!({"if": [{"$ref": "early"}, "on", "off"]}),
            json!({"$ref": "also early"}),
            json!({"$ref": "round"}),
            json!({"$ref": "nowhere"}),
            json!({"==": [1, 1], "var": "targetingKey"}),
        ] {
            assert!(!depends_on_user_alone(&rule, &evaluators), "{rule}");
        }
    }
}
