//! What the page refuses, while others are served.

use serde_json::json;

use super::{Browser, Page};
use crate::harness::{Dialect, Kind, World};

/// What a callback of nobody's login is told.
const NOT_HERE: &str = "this is no login that was begun here, in this browser";

/// A form that another site sends, with the browser's own cookie.
async fn sent_by(browser: &Browser, world: &World, form_token: &str, headers: &[(&str, &str)]) -> u16 {
    let mut request = browser.posting(&world.scm.host(), form_token);
    let mut dressed = reqwest::header::HeaderMap::new();
    for (name, value) in headers {
        let name: reqwest::header::HeaderName = name.parse().unwrap();
        dressed.insert(name, value.parse().unwrap());
    }
    request = request.headers(dressed);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_of_another_site_session_or_user_begins_nothing() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let page = Page::start(&world, &["--user-header", "X-Forwarded-User"]).await;
    let host = world.scm.host();
    let mut victim = page.browser_of("victim");
    let token = victim.form_token().await;
    let base = page.base.clone();

    for headers in [
        &[][..],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("origin", &base), ("sec-fetch-site", "cross-site")],
        &[("origin", &base), ("sec-fetch-site", "same-site")],
    ] {
        assert_eq!(sent_by(&victim, &world, &token, headers).await, 400, "{headers:?}");
    }
    // The attacker's own token, or none, in the victim's session.
    let mut attacker = page.browser_of("attacker");
    let foreign = attacker.form_token().await;
    for forged in ["", "AAAA", &foreign, &token[1..]] {
        victim.post(&host, forged).await.says(400, "the form is not of this session");
    }
    // The attacker's session, planted in the victim's browser.
    let mut planted = Browser { cookie: attacker.cookie.clone(), ..victim.clone() };
    planted.post(&host, &foreign).await.says(400, "the form is not of this session");
    let mut without = Browser { cookie: None, ..victim.clone() };
    without.post(&host, &token).await.says(400, "kept no cookie");
    victim.post("unknown.example.org", &token).await.says(404, "there is no such host");
    let long = "x".repeat(8_000);
    assert!(
        victim
            .posting(&long, &token)
            .header("origin", &base)
            .send()
            .await
            .unwrap()
            .status()
            .is_client_error()
    );
    let rebound =
        super::http::client().get(&base).header("host", "evil.example").header("x-forwarded-user", "victim");
    assert_eq!(rebound.send().await.unwrap().status(), 421);
    assert_eq!(world.scm.authorization_requests().len(), 0);

    assert_eq!(page.browser_of("bystander").connect(&world, "bystander").await.status, 303);
    assert_eq!(world.request("bystander").await["status"], "ok");
    assert_eq!(world.request("victim").await["error"]["code"], "user_not_found");
    page.stop(&world).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callback_is_good_once_in_the_session_and_for_the_user_that_began_it() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let page = Page::start(&world, &["--user-header", "X-Forwarded-User"]).await;
    let host = world.scm.host();
    let mut victim = page.browser_of("victim");
    victim.get("/").await;
    let mut attacker = page.browser_of("attacker");
    let away = attacker.leave_for(&host).await;
    let back = world.scm.allow(&away, "attackers-account").await;

    // The attacker's account must not become the victim's.
    victim.get(&back).await.says(400, NOT_HERE);
    let mut planted = Browser { cookie: attacker.cookie.clone(), ..victim.clone() };
    planted.get(&back).await.says(400, NOT_HERE);
    let mut elsewhere = Browser { cookie: None, ..attacker.clone() };
    elsewhere.get(&back).await.says(400, NOT_HERE);
    for query in ["", "?code=c", "?state=s", "?code=c&state=forged", "?code=c&code=d&state=s"] {
        let shown = attacker.get(&format!("/callback{query}")).await;
        assert_eq!(shown.status, 400, "{query}: {}", shown.text);
    }
    assert_eq!(world.request("victim").await["error"]["code"], "user_not_found");

    // All of that has not used it up, and it is used up now.
    assert_eq!(attacker.get(&back).await.status, 303);
    attacker.get(&back).await.says(400, NOT_HERE);
    assert_eq!(world.request("attacker").await["status"], "ok");

    // Nine logins that nobody goes on with leave no room for the first of them, and take none from others.
    let first = attacker.leave_for(&host).await;
    let of_victim = victim.leave_for(&host).await;
    for _ in 0..8 {
        attacker.leave_for(&host).await;
    }
    let back = world.scm.allow(&first, "attackers-account").await;
    attacker.get(&back).await.says(400, NOT_HERE);
    let back = world.scm.allow(&of_victim, "victims-account").await;
    assert_eq!(victim.get(&back).await.status, 303);
    let token = world.scm.latest_pair("victims-account").unwrap().access_token;
    assert_eq!(world.request("victim").await["token"]["value"], token);
    page.stop(&world).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_or_a_worker_refuses_is_told_on_a_page_and_stores_nothing() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let page = Page::start(&world, &["--user", "u-1"]).await;
    let (mut browser, host) = (page.browser(), world.scm.host());

    let away = browser.leave_for(&host).await;
    let back = world.scm.deny(&away).await;
    browser.get(&back).await.says(403, "access_denied &quot;The user has denied access&quot;");

    let away = browser.leave_for(&host).await;
    let back = world.scm.deny(&away).await;
    let hostile = back.replace("The+user", "%3Cscript%3Ealert%281%29%3C%2Fscript%3E+The+user");
    assert_ne!(hostile, back);
    let shown = browser.get(&hostile).await;
    assert!(shown.status == 403 && !shown.text.contains("<script"), "{}", shown.text);

    let away = browser.leave_for(&host).await;
    world.scm.send_issuer("https://evil.example");
    let back = world.scm.allow(&away, "jdoe").await;
    browser.get(&back).await.says(502, "another server than the one that was asked");

    let away = browser.leave_for(&host).await;
    let back = world.scm.allow(&away, "jdoe").await;
    let code = back.split("code=").nth(1).unwrap().split('&').next().unwrap();
    let shown = browser.get(&back.replace(code, "another")).await;
    shown.says(502, "bad_verification_code");

    // No worker has ever run here.
    let away = browser.leave_for(&host).await;
    let back = world.scm.allow(&away, "jdoe").await;
    let shown = browser.get(&back).await;
    shown.says(502, "no queue takes token.store");
    let log = page.stop(&world).await.stderr;
    assert!(log.contains("a login failed"), "{log}");

    let worker = world.start_worker().await;
    assert_eq!(world.request("u-1").await["error"]["code"], json!("user_not_found"));
    worker.stop().await;
}
