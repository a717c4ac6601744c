//! The nodes of the broker: several hosts in one URL, or several URLs. They differ in host and port alone.

use std::fmt;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

use lapin::uri::{AMQPAuthority, AMQPUri};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::reader::{Found, Reader};
use super::sources::wipe;
use super::url::ConnectionUrl;
use crate::private_file::FileRule;

const URL: &str = "broker.url";
const FILE: &str = "broker.url_file";
const LIST: &str = "broker.urls";

const DEFAULT: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

/// More are a mistake: RabbitMQ's clusters have three, five or seven.
const MOST: usize = 32;

const LIST_SHAPE: &str = "must be a list of 1 to 32 URLs (in a variable: a JSON array)";
const DIFFERENT: &str = "has URLs that differ in more than host and port; user, password, virtual host, parameters and \
                         amqp:// or amqps:// must be the same for each node";

/// One broker, which is reached by any of these URLs. Shown without their password.
#[derive(Clone)]
pub struct Nodes {
    /// Each with one host, in the order in which this process tries them.
    urls: Arc<[ConnectionUrl]>,
    /// All of it as one URL, in the order in which the operator wrote them.
    redacted: String,
    /// Decides the order: another one in each process, so that replicas spread over the nodes.
    seed: u64,
}

impl Nodes {
    /// What stands behind `broker.url`, `broker.url_file` or `broker.urls`, in an order of this process's own.
    pub(super) fn read(from: &mut Reader, files: FileRule) -> Self {
        let one = from.url([URL, FILE], DEFAULT, Self::of_url, files);
        let listed = from.value(LIST);
        let beside = [URL, FILE].into_iter().find(|key| from.is_set(key));
        let nodes = match (listed, beside) {
            (None, _) => one,
            (Some(found), Some(key)) => {
                found.wipe();
                from.problem(LIST, format!("is set beside `{key}`; set one of the two"));
                None
            }
            (Some(found), None) => {
                let nodes = Self::of_list(&found);
                found.wipe();
                nodes.map_err(|text| from.problem(LIST, text)).ok()
            }
        };
        let nodes = nodes.unwrap_or_else(|| Self::of(vec![ConnectionUrl::refused()]));
        nodes.in_order_of(RandomState::new().hash_one(()))
    }

    /// One URL, whose host may be several with commas between.
    ///
    /// # Errors
    /// Says what would be right; never repeats the URL.
    pub(super) fn of_url(text: &str) -> Result<Self, &'static str> {
        let urls = match split(text) {
            // Written for each host, the rest would be part of the first one's password.
            Some((before, _, _)) if before.contains(',') && before.matches('@').count() > 1 => {
                return Err(
                    "must have user and password once, before the first host, with `@` and `,` in them percent-encoded",
                );
            }
            Some((before, hosts, behind)) if hosts.contains(',') => {
                let each = hosts.split(',').take(MOST);
                each.map(|host| ConnectionUrl::broker(&format!("{before}{}{behind}", host.trim()))).collect()
            }
            _ => ConnectionUrl::broker(text).map(|url| vec![url]),
        };
        urls.map(Self::of)
    }

    fn of_list(found: &Found) -> Result<Self, String> {
        let mut list = match found {
            Found::Typed(value) => value.clone(),
            Found::Text(text) => serde_json::from_str(text).unwrap_or_default(),
        };
        let nodes = Self::of_values(&list);
        wipe(&mut list);
        nodes
    }

    fn of_values(list: &Value) -> Result<Self, String> {
        let texts: Option<Vec<&str>> =
            list.as_array().map(|list| list.iter().map(Value::as_str).collect()).unwrap_or_default();
        let texts = texts.filter(|texts| (1..=MOST).contains(&texts.len())).ok_or(LIST_SHAPE)?;
        let mut urls = Vec::new();
        for (at, text) in texts.into_iter().enumerate() {
            let nodes = Self::of_url(text.trim());
            let nodes = nodes.map_err(|expected| format!("is wrong: URL {} of it {expected}", at + 1))?;
            urls.extend(nodes.urls.iter().cloned());
        }
        let mut shared = urls.iter().map(shared_by_all);
        let first = shared.next();
        if shared.any(|other| Some(&other) != first.as_ref()) {
            return Err(DIFFERENT.to_owned());
        }
        Ok(Self::of(urls))
    }

    fn of(urls: Vec<ConnectionUrl>) -> Self {
        let redacted = match &urls[..] {
            [first, _, ..] => {
                let hosts: Vec<&str> = urls.iter().map(address).collect();
                split(first.redacted())
                    .map(|(before, _, behind)| format!("{before}{}{behind}", hosts.join(",")))
                    .unwrap_or_default()
            }
            urls => urls.first().map(|url| url.redacted().to_owned()).unwrap_or_default(),
        };
        Self { urls: urls.into(), redacted, seed: 0 }
    }

    /// The same nodes in the order that the seed makes of them.
    fn in_order_of(self, seed: u64) -> Self {
        let mut urls = self.urls.to_vec();
        urls.sort_by_key(|url| rank(seed, address(url)));
        Self { urls: urls.into(), seed, ..self }
    }

    /// Each with one host, in the order in which this process tries them.
    pub fn urls(&self) -> &[ConnectionUrl] {
        &self.urls
    }

    /// Where the first of `urls` is; the user, the password and the virtual host are everybody's.
    pub fn uri(&self) -> AMQPUri {
        // It was read with the same parser.
        self.urls.first().and_then(|url| url.expose_secret().parse().ok()).unwrap_or_default()
    }

    /// Where one of several things that serve alike stands in the order of this process.
    pub fn rank(&self, one: impl Hash) -> u64 {
        rank(self.seed, one)
    }

    /// For logs and errors: without password and parameters.
    pub(super) fn redacted(&self) -> &str {
        &self.redacted
    }

    pub(super) fn has_password(&self) -> bool {
        self.urls.iter().any(ConnectionUrl::has_password)
    }

    /// Whether only programs of this machine reach them.
    pub(super) fn are_on_this_machine(&self) -> bool {
        self.urls.iter().all(ConnectionUrl::is_on_this_machine)
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.redacted, f)
    }
}

fn rank(seed: u64, one: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, one).hash(&mut hasher);
    hasher.finish()
}

/// Host and port, as the URL has them.
fn address(url: &ConnectionUrl) -> &str {
    split(url.redacted()).map(|(_, host, _)| host).unwrap_or_default()
}

/// The URL without host and port.
fn shared_by_all(url: &ConnectionUrl) -> Option<AMQPUri> {
    let mut uri: AMQPUri = url.expose_secret().parse().ok()?;
    uri.authority = AMQPAuthority { userinfo: uri.authority.userinfo, ..AMQPAuthority::default() };
    Some(uri)
}

/// What stands before the host of a URL, the host with its port, and what stands behind.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let begin = text.find("://")? + "://".len();
    let end = text[begin..].find(['/', '?', '#']).map_or(text.len(), |at| begin + at);
    let begin = text[begin..end].rfind('@').map_or(begin, |at| begin + at + 1);
    Some((&text[..begin], &text[begin..end], &text[end..]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn shown(nodes: &Nodes) -> Vec<&str> {
        nodes.urls().iter().map(ConnectionUrl::redacted).collect()
    }

    fn of_list(urls: &[&str]) -> Result<Nodes, String> {
        Nodes::of_list(&Found::Typed(urls.iter().copied().map(Value::from).collect()))
    }

    #[test]
    fn the_hosts_of_one_url_share_all_of_the_rest() {
        let nodes = Nodes::of_url("amqps://me:s3%2Ccret@a.example.org,b:5673/%2f?heartbeat=5").unwrap();
        assert_eq!(shown(&nodes), ["amqps://me:***@a.example.org/%2f", "amqps://me:***@b:5673/%2f"]);
        assert_eq!(nodes.redacted(), "amqps://me:***@a.example.org,b:5673/%2f");
        assert_eq!(format!("{nodes:?}"), r#""amqps://me:***@a.example.org,b:5673/%2f""#);
        let uri = nodes.uri();
        assert_eq!((uri.query.heartbeat, uri.authority.userinfo.password.as_str()), (Some(5), "s3,cret"));
        assert_eq!(shown(&Nodes::of_url("amqp://a,b").unwrap()), ["amqp://a", "amqp://b"]);
    }

    #[test]
    fn a_list_of_urls_is_the_same_as_one_with_all_their_hosts() {
        let nodes = of_list(&["amqp://u:s3cret@a/v", "amqp://u:s3cret@b:1,c/v"]).unwrap();
        assert_eq!(nodes.redacted(), "amqp://u:***@a,b:1,c/v");
        let text = r#"["amqp://u:s3cret@a/v"]"#.to_owned();
        assert_eq!(Nodes::of_list(&Found::Text(text)).unwrap().redacted(), "amqp://u:***@a/v");
    }

    #[test]
    fn a_list_that_is_wrong_is_refused_and_not_repeated() {
        for (urls, expected) in [
            (&[][..], LIST_SHAPE),
            (&["amqp://u:s3cret@a/v", "amqp://u:s3cret@b/other"], DIFFERENT),
            (&["amqp://u:s3cret@a/v", "amqp://u:s3cret2@a/v"], DIFFERENT),
            (&["amqp://u:s3cret@a/v", "amqp://s3cret:s3cret@a/v"], DIFFERENT),
            (&["amqp://u:s3cret@a/v", "amqps://u:s3cret@b/v"], DIFFERENT),
            (&["amqp://u:s3cret@a/v", "amqp://u:s3cret@a/v?heartbeat=3"], DIFFERENT),
            (&["amqp://u:s3cret@a/v", "http://u:s3cret@b/v"], "URL 2 of it must be a URL like"),
        ] {
            let refused = of_list(urls).unwrap_err();
            assert!(refused.contains(expected) && !refused.contains("s3cret"), "{refused}");
        }
        for text in ["amqp://u:s3cret@a/v", r#"[["amqp://u:s3cret@a/v"]]"#, r#"["s3cret", 5]"#] {
            assert_eq!(Nodes::of_list(&Found::Text(text.to_owned())).unwrap_err(), LIST_SHAPE);
        }
        for url in [
            "amqp://u:s3cret@a,,b/v",
            "amqp://u:s3cret@,/v",
            "amqp://u:s3cret@a,b:port/v",
            "amqp://u:s3,cret/x@a/v",
            "amqp://u:s3cret@a,u:s3cret@b/v",
        ] {
            let refused = Nodes::of_url(url);
            assert!(refused.is_err_and(|text| !text.contains("s3cret")), "{url}");
        }
    }

    #[test]
    fn each_process_has_an_order_of_its_own_and_each_node_is_somewhere_the_first() {
        let nodes = Nodes::of_url("amqp://u:p@a,b,c/v").unwrap();
        let order = |seed| {
            let nodes = nodes.clone().in_order_of(seed);
            assert_eq!(nodes.redacted(), "amqp://u:***@a,b,c/v", "it is shown as it was written");
            shown(&nodes).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(order(7), order(7), "the same seed makes the same order");
        let firsts: Vec<String> = (0..300).map(|seed| order(seed).swap_remove(0)).collect();
        for node in firsts.iter().collect::<BTreeSet<_>>() {
            let share = firsts.iter().filter(|first| *first == node).count();
            assert!((60..=140).contains(&share), "{node} is the first of {share} in 300");
        }
        assert_eq!(firsts.iter().collect::<BTreeSet<_>>().len(), 3);
    }
}
