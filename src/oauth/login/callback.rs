//! What a browser brings back from the authorisation endpoint (RFC 6749, section 4.1.2). Anybody can send a browser here, with any
//! text: nothing of it is believed before its state was compared.

use url::{Url, form_urlencoded};

use super::LoginError;
use crate::domain::plain::plain_words;
use crate::domain::provider::Provider;
use crate::domain::secret::SecretString;

/// Bytes of one value. Codes of Entra have about 1,500.
const LONGEST_VALUE: usize = 8 * 1024;

/// Parameters of one callback, those included that nobody reads.
const MOST_PARAMETERS: usize = 32;

/// Characters that are quoted of a text.
const LONGEST_QUOTE: usize = 160;

#[derive(Debug)]
pub struct Callback {
    pub state: String,
    brought: Brought,
    /// `iss` (RFC 9207).
    issuer: Option<String>,
}

#[derive(Debug)]
enum Brought {
    Code(SecretString),
    /// `error`, and its description in plain words.
    Refusal {
        code: String,
        description: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    #[error("it is no answer of an authorisation endpoint")]
    NotAnAnswer,
    /// RFC 6749, section 3.1: parameters must not be included more than once.
    #[error("a parameter stands there twice")]
    Repeated,
    #[error("it is too long")]
    TooLong,
}

impl Callback {
    /// Reads the query of a redirect.
    ///
    /// # Errors
    /// [`CallbackError`]: no provider redirects like this.
    pub fn read(query: &str) -> Result<Self, CallbackError> {
        let [mut state, mut code, mut error, mut description, mut issuer] = [const { None }; 5];
        for (number, (name, value)) in form_urlencoded::parse(query.as_bytes()).enumerate() {
            if number >= MOST_PARAMETERS || value.len() > LONGEST_VALUE {
                return Err(CallbackError::TooLong);
            }
            let place = match &*name {
                "state" => &mut state,
                "code" => &mut code,
                "error" => &mut error,
                "error_description" => &mut description,
                "iss" => &mut issuer,
                _ => continue,
            };
            if place.replace(value.into_owned()).is_some() {
                return Err(CallbackError::Repeated);
            }
        }
        let brought = match (code.filter(|code| !code.is_empty()), error) {
            (Some(code), None) => Brought::Code(code.into()),
            (None, Some(error)) => Brought::Refusal {
                code: error_code(&error),
                description: quoted(&description.unwrap_or_default()),
            },
            (Some(_), Some(_)) | (None, None) => return Err(CallbackError::NotAnAnswer),
        };
        let state = state.filter(|state| !state.is_empty()).ok_or(CallbackError::NotAnAnswer)?;
        Ok(Self { state, brought, issuer })
    }

    /// The code. Call it once the state is known to be that of a login at this provider.
    ///
    /// # Errors
    /// The provider or its user refuses, or another server sent the browser (a mix-up, RFC 9207).
    pub fn code(self, provider: &Provider) -> Result<SecretString, LoginError> {
        if let Some(issuer) = &self.issuer
            && !is_issued_at(issuer, provider)
        {
            let detail = "the answer comes from another server than the one that was asked (iss)".to_owned();
            return Err(LoginError::Refused { code: "wrong_issuer".to_owned(), detail });
        }
        match self.brought {
            Brought::Code(code) => Ok(code),
            Brought::Refusal { code, description } => {
                let said = if description.is_empty() { String::new() } else { format!(" \"{description}\"") };
                let detail = match &*code {
                    "access_denied" => {
                        format!("{} was not authorised there: access_denied{said}", provider.client_id)
                    }
                    _ => format!("the authorisation endpoint answered {code}{said}"),
                };
                Err(LoginError::Refused { code, detail })
            }
        }
    }
}

/// The issuer has the origin of the provider's endpoints. Its path is not known without its metadata (RFC 8414).
fn is_issued_at(issuer: &str, provider: &Provider) -> bool {
    let Ok(issuer) = Url::parse(issuer) else { return false };
    let endpoints = [provider.authorization_url(), Some(provider.token_url.clone())];
    endpoints.into_iter().flatten().any(|endpoint| endpoint.origin() == issuer.origin())
}

/// An error code that is none is not repeated.
pub(super) fn error_code(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    let is_sign = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=64).contains(&text.len()) && text.bytes().all(is_sign) {
        text
    } else {
        "unknown_error".to_owned()
    }
}

fn quoted(text: &str) -> String {
    plain_words(text).chars().take(LONGEST_QUOTE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::provider::ProviderKind;
    use crate::domain::secret::ExposeSecret;
    use crate::oauth::testing::provider;

    fn code(query: &str) -> Result<String, String> {
        let callback = Callback::read(query).map_err(|error| error.to_string())?;
        let code = callback.code(&provider(ProviderKind::Github)).map_err(|error| error.to_string())?;
        Ok(code.expose_secret().to_owned())
    }

    #[test]
    fn a_code_comes_with_a_state_and_nothing_twice() {
        assert_eq!(code("code=c%2F1&state=s&foo=bar"), Ok("c/1".to_owned()));
        for query in ["", "code=c", "state=s", "code=&state=s", "code=c&state=", "code=c&error=e&state=s"] {
            assert_eq!(Callback::read(query).unwrap_err(), CallbackError::NotAnAnswer, "{query}");
        }
        for query in ["code=c&code=d&state=s", "code=c&state=s&state=t", "iss=a&iss=b&code=c&state=s"] {
            assert_eq!(Callback::read(query).unwrap_err(), CallbackError::Repeated, "{query}");
        }
        for query in
            [format!("state=s&code={}", "c".repeat(8193)), format!("state=s&code=c{}", "&x".repeat(32))]
        {
            assert_eq!(Callback::read(&query).unwrap_err(), CallbackError::TooLong);
        }
    }

    #[test]
    fn an_answer_of_another_server_is_refused() {
        for issuer in ["https://git.example.org", "https://git.example.org/login/oauth"] {
            assert_eq!(code(&format!("code=c&state=s&iss={issuer}")), Ok("c".to_owned()), "{issuer}");
        }
        for issuer in
            ["https://evil.example", "http://git.example.org", "https://git.example.org:8443", "x", ""]
        {
            assert!(
                code(&format!("code=c&state=s&iss={issuer}")).unwrap_err().contains("another server"),
                "{issuer}"
            );
        }
    }

    #[test]
    fn a_refusal_is_told_in_plain_words() {
        let refused = code("error=access_denied&error_description=The+user+said+no&state=s").unwrap_err();
        assert_eq!(
            refused,
            "tokenkeeper-client was not authorised there: access_denied \"The user said no\""
        );
        let hostile =
            code("error=%1b[2J&error_description=gho_16C7e42F292c69+%0aerror:+forged&state=s").unwrap_err();
        assert_eq!(hostile, "the authorisation endpoint answered unknown_error \"… error: forged\"");
    }

    #[test]
    fn a_callback_does_not_show_its_code() {
        let shown = format!("{:?}", Callback::read("code=c0de&state=s").unwrap());
        assert!(!shown.contains("c0de"), "{shown}");
    }
}
