//! An operator's overrides of a kind's defaults that have no column of their own in `auth_provider`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use url::Url;

use super::{Lifespan, Profile};

/// Fields have the names of the provider file. A missing field takes the kind's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overrides {
    /// Whether a refresh revokes the old access token, at once or after the kind's grace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kills_old_token: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_token_grace_secs: Option<Lifespan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token_grace_secs: Option<Lifespan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token_idle_lifetime_secs: Option<Lifespan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unstated_lifetime_secs: Option<Lifespan>,
    /// Sent with every refresh, in addition to the parameters of OAuth. Not for secrets: `provider list` shows them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refresh_parameters: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_hosts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate_url: Option<Url>,
    /// Hosts beside the provider's that tokens and secrets may be sent to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub token_hosts: Vec<String>,
    /// Whether its hosts may have addresses that are not of the internet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_private_network: bool,
    /// The authorisation endpoint, if it does not stand where the kind has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorization_url: Option<Url>,
    /// The same of the device authorisation endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_authorization_url: Option<Url>,
    /// What a login asks for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub login_scopes: Vec<String>,
}

impl Overrides {
    pub fn old_token_grace(&self, profile: &Profile) -> Lifespan {
        match (self.old_token_grace_secs, self.kills_old_token) {
            (Some(grace), _) => grace,
            (None, None) => profile.old_token_grace,
            (None, Some(false)) => Lifespan::Unlimited,
            (None, Some(true)) => match profile.old_token_grace {
                grace @ Lifespan::Ends(_) => grace,
                Lifespan::Unlimited => Lifespan::NONE,
            },
        }
    }

    /// Whether two fields contradict each other about the old access token.
    pub fn contradicts_itself(&self) -> bool {
        match (self.kills_old_token, self.old_token_grace_secs) {
            (Some(kills), Some(grace)) => kills != matches!(grace, Lifespan::Ends(_)),
            (None, _) | (_, None) => false,
        }
    }

    /// The settings that differ from `after`: name, before, after. None: the kind's default.
    pub fn differences(&self, after: &Self) -> Vec<(&'static str, Option<String>, Option<String>)> {
        let secs = |lifespan: Option<Lifespan>| {
            lifespan.map(|lifespan| match lifespan {
                Lifespan::Ends(duration) => duration.as_secs().to_string(),
                Lifespan::Unlimited => Lifespan::UNLIMITED.to_owned(),
            })
        };
        let parameters = |overrides: &Self| {
            let pairs = overrides.refresh_parameters.iter().map(|(name, value)| format!("{name}={value}"));
            let pairs: Vec<String> = pairs.collect();
            (!pairs.is_empty()).then(|| pairs.join(" "))
        };
        let list = |texts: &[String]| (!texts.is_empty()).then(|| texts.join(" "));
        let url = |url: Option<&Url>| url.map(Url::to_string);
        let shown = |overrides: &Self| {
            [
                ("kills_old_token", overrides.kills_old_token.map(|kills| kills.to_string())),
                ("old_token_grace_secs", secs(overrides.old_token_grace_secs)),
                ("refresh_token_grace_secs", secs(overrides.refresh_token_grace_secs)),
                ("refresh_token_idle_lifetime_secs", secs(overrides.refresh_token_idle_lifetime_secs)),
                ("unstated_lifetime_secs", secs(overrides.unstated_lifetime_secs)),
                ("refresh_parameters", parameters(overrides)),
                ("other_hosts", list(&overrides.other_hosts)),
                ("validate_url", url(overrides.validate_url.as_ref())),
                ("token_hosts", list(&overrides.token_hosts)),
                ("allow_private_network", overrides.allow_private_network.then(|| true.to_string())),
                ("authorization_url", url(overrides.authorization_url.as_ref())),
                ("device_authorization_url", url(overrides.device_authorization_url.as_ref())),
                ("login_scopes", list(&overrides.login_scopes)),
            ]
        };
        let both = shown(self).into_iter().zip(shown(after));
        both.filter(|((_, before), (_, after))| before != after)
            .map(|((name, before), (_, after))| (name, before, after))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::provider::ProviderKind;

    #[test]
    fn a_refresh_ends_the_old_token_as_the_file_says_and_else_as_the_kind_does() {
        use ProviderKind::{Bitbucket, BitbucketServer, Gitea};
        let ten_minutes = Lifespan::secs(600);
        for (kind, kills_old_token, old_token_grace_secs, expected) in [
            (BitbucketServer, None, None, Lifespan::NONE),
            (BitbucketServer, Some(false), None, Lifespan::Unlimited),
            (BitbucketServer, None, Some(ten_minutes), ten_minutes),
            (Bitbucket, None, None, ten_minutes),
            (Bitbucket, Some(true), None, ten_minutes),
            (Bitbucket, Some(true), Some(Lifespan::NONE), Lifespan::NONE),
            (Bitbucket, None, Some(Lifespan::Unlimited), Lifespan::Unlimited),
            (Gitea, None, None, Lifespan::Unlimited),
            (Gitea, Some(true), None, Lifespan::NONE),
        ] {
            let overrides = Overrides { kills_old_token, old_token_grace_secs, ..Overrides::default() };
            assert_eq!(overrides.old_token_grace(&kind.profile()), expected, "{kind} {overrides:?}");
        }
    }

    #[test]
    fn what_an_older_or_newer_version_left_out_is_the_kinds() {
        let read: Overrides = serde_json::from_str(r#"{"of_a_later_version": [1]}"#).unwrap();
        assert_eq!(read, Overrides::default());
        assert_eq!(serde_json::to_string(&read).unwrap(), "{}");
    }
}
