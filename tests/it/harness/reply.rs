//! What a reply says.

use serde_json::Value;

/// The error codes of the contract, and whether the same request may succeed later.
const CODES: [(&str, bool); 13] = [
    ("invalid_request", false),
    ("unknown_host", false),
    ("user_not_found", false),
    ("identity_not_found", false),
    ("token_not_found", false),
    ("not_refreshable", false),
    ("reauthorization_required", false),
    ("provider_misconfigured", false),
    ("provider_unavailable", true),
    ("refresh_timeout", true),
    ("deadline_exceeded", true),
    ("forbidden", false),
    ("internal", true),
];

/// The message of a reply (or of an element of one) that must be this error, with what the contract says of it.
pub(crate) fn error_message<'a>(reply: &'a Value, code: &str) -> &'a str {
    let error = &reply["error"];
    assert_eq!((&reply["status"], &error["code"]), (&"error".into(), &code.into()), "{reply}");
    let (_, retryable) = CODES.iter().find(|(known, _)| *known == code).expect("a code of the contract");
    assert_eq!(error["retryable"], *retryable, "{reply}");
    assert!(reply.get("token").is_none(), "{reply}");
    error["message"].as_str().filter(|message| !message.is_empty()).expect("a message for a person")
}

/// The token of a reply (or of an element of one) that must be ok.
pub(crate) fn token(reply: &Value) -> &Value {
    assert_eq!(reply["status"], "ok", "{reply}");
    assert!(reply.get("error").is_none(), "{reply}");
    &reply["token"]
}
