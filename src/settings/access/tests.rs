use super::*;
use crate::contract::MessageKind::{TokenReport, TokenRequest, TokenStore, WorkspaceStart};
use crate::domain::pattern::{HostPattern, TextPattern};

fn rule(publisher: &str, hosts: &[&str], messages: &[MessageKind]) -> AccessRule {
    AccessRule {
        publisher: publisher.into(),
        hosts: hosts.iter().map(|&host| host.into()).collect(),
        messages: messages.into(),
    }
}

fn access(policy: AccessPolicy) -> Access {
    Access { policy, ..Access::default() }
}

fn asked<'a>(publisher: Option<&'a str>, message: MessageKind, user_id: &'a str) -> Asked<'a> {
    Asked { publisher, message, user_id, lifetime: None }
}

/// The answer to a message about one host, in the order in which a worker asks.
fn answer(access: &Access, asked: &Asked<'_>, host: &str) -> Result<(), Denied> {
    access.admits(asked)?;
    access.admits_host(asked.publisher, asked.message, host)
}

#[test]
fn without_a_policy_everyone_may_have_everything() {
    let open = Access::default();
    assert_eq!(answer(&open, &asked(None, TokenStore, "u-1"), "git.example.org"), Ok(()));
    let named = Access { require_user_id: true, ..open };
    assert_eq!(answer(&named, &asked(None, TokenStore, "u-1"), "git.example.org"), Err(Denied::Unnamed));
    assert_eq!(answer(&named, &asked(Some("p"), TokenStore, "u-1"), "git.example.org"), Ok(()));
}

#[test]
fn an_empty_policy_denies_everybody() {
    for policy in [AccessPolicy::Rules(Vec::new()), AccessPolicy::Publishers(BTreeMap::new())] {
        let access = access(policy);
        for publisher in [None, Some("guest")] {
            let denied = if publisher.is_none() { Denied::Unnamed } else { Denied::Unlisted };
            assert_eq!(access.admits(&asked(publisher, TokenRequest, "u-1")), Err(denied), "{access:?}");
            assert_eq!(access.admits_host(publisher, TokenRequest, "git.example.org"), Err(Denied::Host));
        }
    }
}

#[test]
fn a_publisher_has_what_its_rules_give_and_nothing_else() {
    let access = access(AccessPolicy::Rules(vec![
        rule("server", &["git.example.org"], &[TokenRequest]),
        rule("server", &["*"], &[WorkspaceStart]),
        rule("login", &["git.example.org:8443"], &[TokenStore]),
    ]));
    for (publisher, message, host, expected) in [
        (Some("server"), TokenRequest, "git.example.org", Ok(())),
        (Some("server"), TokenRequest, "git.example.org:8443", Err(Denied::Host)),
        (Some("server"), TokenRequest, "other.example.org", Err(Denied::Host)),
        (Some("server"), WorkspaceStart, "other.example.org", Ok(())),
        (Some("server"), TokenStore, "git.example.org", Err(Denied::Message)),
        (Some("login"), TokenStore, "git.example.org:8443", Ok(())),
        (Some("login"), TokenStore, "git.example.org", Err(Denied::Host)),
        (Some("Server"), WorkspaceStart, "git.example.org", Err(Denied::Unlisted)),
        (None, WorkspaceStart, "git.example.org", Err(Denied::Unnamed)),
    ] {
        let found = answer(&access, &asked(publisher, message, "u-1"), host);
        assert_eq!(found, expected, "{publisher:?} {message:?} {host}");
    }
}

/// One service that requests, one that stores.
fn platform() -> Access {
    let server = PublisherPolicy {
        messages: vec![TokenRequest, WorkspaceStart, TokenReport],
        hosts: vec![HostPattern::new("*.example.org")],
        users: vec![TextPattern::new("u-*")],
        max_lifetime: Some(Duration::from_mins(10)),
        reply_queues: Some(vec![TextPattern::new("server.*")]),
        require_sealed_replies: true,
        ..PublisherPolicy::nothing()
    };
    let login = PublisherPolicy {
        messages: vec![TokenStore],
        hosts: vec![HostPattern::new("*")],
        may_store_for: vec![TextPattern::new("u-*")],
        ..PublisherPolicy::nothing()
    };
    access(AccessPolicy::Publishers([("server".into(), server), ("login".into(), login)].into()))
}

#[test]
fn a_publisher_has_what_its_policy_gives_and_nothing_else() {
    let access = platform();
    for (publisher, message, user, host, expected) in [
        (Some("server"), TokenRequest, "u-1", "git.example.org", Ok(())),
        (Some("server"), TokenReport, "u-1", "git.example.org", Ok(())),
        (Some("server"), TokenRequest, "root", "git.example.org", Err(Denied::User)),
        (Some("server"), TokenRequest, "u-1", "evil.org", Err(Denied::Host)),
        (Some("server"), TokenStore, "u-1", "git.example.org", Err(Denied::Message)),
        (Some("login"), TokenStore, "u-1", "anywhere.net", Ok(())),
        (Some("login"), TokenStore, "root", "git.example.org", Err(Denied::StoreFor)),
        (Some("login"), TokenRequest, "u-1", "git.example.org", Err(Denied::Message)),
        (Some("guest"), TokenRequest, "u-1", "git.example.org", Err(Denied::Unlisted)),
        (None, TokenRequest, "u-1", "git.example.org", Err(Denied::Unnamed)),
    ] {
        let found = answer(&access, &asked(publisher, message, user), host);
        assert_eq!(found, expected, "{publisher:?} {message:?} {user} {host}");
    }
    let setting = Some("publishers.require_sealed_replies");
    assert_eq!(access.must_seal(Some("server"), WorkspaceStart), setting);
    assert_eq!(access.must_seal(Some("server"), TokenStore), None);
    assert_eq!(access.must_seal(Some("login"), TokenRequest), None);
    assert_eq!(access.must_seal(None, TokenRequest), None);
}

#[test]
fn a_lifetime_that_is_asked_for_is_refused_above_the_limit_and_any_other_is_cut() {
    let access = platform();
    let for_secs = |secs| Asked {
        lifetime: Some(Duration::from_secs(secs)),
        ..asked(Some("server"), TokenRequest, "u-1")
    };
    assert_eq!(access.admits(&for_secs(600)), Ok(()));
    let denied = access.admits(&for_secs(601)).unwrap_err();
    assert_eq!(denied, Denied::Lifetime { most_secs: 600 });
    let hour = Duration::from_hours(1);
    assert_eq!(access.within_limit(Some("server"), hour), Duration::from_mins(10));
    assert_eq!(access.within_limit(Some("login"), hour), hour);
    assert_eq!(Access::default().within_limit(None, hour), hour);
}

#[test]
fn only_publishers_that_the_settings_name_are_listed() {
    let rules = access(AccessPolicy::Rules(vec![rule("server", &["*"], &[TokenRequest])]));
    for access in [rules, platform()] {
        assert_eq!(access.listed(Some("server")), Some("server"));
        assert_eq!((access.listed(Some("made-up")), access.listed(None)), (None, None));
    }
    assert_eq!(Access::default().listed(Some("server")), None);
}

#[test]
fn each_setting_demands_the_seal_of_its_own_messages() {
    let demanded = |access: &Access| {
        [TokenRequest, WorkspaceStart, TokenStore, TokenReport].map(|kind| access.must_seal(None, kind))
    };
    assert_eq!(demanded(&Access::default()), [None; 4]);
    let replies = Access { require_sealed_replies: true, ..Access::default() };
    let setting = Some("access.require_sealed_replies");
    assert_eq!(demanded(&replies), [setting, setting, None, None]);
    let stores = Access { require_sealed_stores: true, ..Access::default() };
    assert_eq!(demanded(&stores), [None, None, Some("access.require_sealed_stores"), None]);
}
