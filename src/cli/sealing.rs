//! A request whose reply the broker cannot read: a key pair for this one exchange, and the opening of its reply.

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};
use tokenkeeper::domain::sealed_box::SecretKey;

pub(super) struct Sealing(SecretKey);

impl Sealing {
    pub(super) fn new() -> Self {
        Self(SecretKey::generate())
    }

    /// For the field `reply_public_key`.
    pub(super) fn public_key(&self) -> String {
        self.0.public_key().to_string()
    }

    /// The reply with each `token.sealed` replaced by what lies in it. `user`: whom the request was about.
    ///
    /// # Errors
    /// A token is in clear, or its box does not open or holds somebody else's token.
    pub(super) fn open(&self, user: &str, reply: &[u8]) -> anyhow::Result<Vec<u8>> {
        // The body may hold a token, and errors of serde quote parts of the input.
        let mut reply: Map<String, Value> =
            serde_json::from_slice(reply).ok().context("the reply is not a JSON object")?;
        match reply.get_mut("tokens").and_then(Value::as_array_mut) {
            Some(tokens) => {
                for element in tokens.iter_mut().filter_map(Value::as_object_mut) {
                    self.open_token(user, element)?;
                }
            }
            None => self.open_token(user, &mut reply)?,
        }
        Ok(Value::Object(reply).to_string().into_bytes())
    }

    /// An error has no token, and stays as it is.
    fn open_token(&self, user: &str, reply: &mut Map<String, Value>) -> anyhow::Result<()> {
        let host = reply.get("host").cloned();
        let Some(token) = reply.get_mut("token").and_then(Value::as_object_mut) else { return Ok(()) };
        let sealed = token.remove("sealed").context(
            "the reply is not sealed: the worker is of an older version, and the broker has seen the token",
        )?;
        let sealed = sealed.as_str().and_then(|text| BASE64.decode(text).ok());
        let opened = sealed.and_then(|sealed| self.0.open(&sealed));
        let opened =
            opened.context("the sealed token does not open: somebody changed the reply on its way")?;
        let mut opened: Map<String, Value> =
            serde_json::from_slice(&opened).ok().context("what is sealed in the reply is no JSON object")?;
        ensure!(
            opened.remove("user_id").as_ref().and_then(Value::as_str) == Some(user)
                && opened.remove("host") == host,
            "the sealed token is of another user or host: somebody changed the reply on its way"
        );
        token.append(&mut opened);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sealed_for(sealing: &Sealing, user: &str, host: &str) -> String {
        let content = json!({"user_id": user, "host": host, "value": "s3cret", "userinfo": "x:s3cret"});
        BASE64.encode(sealing.0.public_key().seal(content.to_string().as_bytes()))
    }

    fn open(sealing: &Sealing, reply: &Value) -> anyhow::Result<Value> {
        let opened = sealing.open("u-1", reply.to_string().as_bytes())?;
        Ok(serde_json::from_slice(&opened)?)
    }

    #[test]
    fn every_token_of_a_reply_is_opened_and_errors_stay_as_they_are() {
        let sealing = Sealing::new();
        let error = json!({"status": "error", "host": "h-2", "error": {"code": "unknown_host"}});
        let sealed =
            json!({"host": "h-1", "token": {"sealed": sealed_for(&sealing, "u-1", "h-1"), "username": "x"}});
        let opened =
            json!({"host": "h-1", "token": {"value": "s3cret", "userinfo": "x:s3cret", "username": "x"}});
        assert_eq!(open(&sealing, &sealed).unwrap(), opened);
        assert_eq!(open(&sealing, &error).unwrap(), error);
        let start = json!({"tokens": [sealed, error]});
        assert_eq!(open(&sealing, &start).unwrap(), json!({"tokens": [opened, error]}));
    }

    #[test]
    fn a_token_in_clear_or_of_somebody_else_is_not_taken() {
        let sealing = Sealing::new();
        for (token, expected) in [
            (json!({"value": "s3cret"}), "is not sealed"),
            (json!({"sealed": sealed_for(&Sealing::new(), "u-1", "h-1")}), "does not open"),
            (json!({"sealed": "s3cret"}), "does not open"),
            (json!({"sealed": sealed_for(&sealing, "u-2", "h-1")}), "another user or host"),
            (json!({"sealed": sealed_for(&sealing, "u-1", "h-2")}), "another user or host"),
        ] {
            let error = open(&sealing, &json!({"host": "h-1", "token": token})).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("s3cret"), "{error}");
        }
    }
}
