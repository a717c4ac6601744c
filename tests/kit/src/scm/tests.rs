//! The simulated SCM, seen by a real HTTP client and a real git.

use std::{collections::HashMap, sync::atomic::AtomicI64, time::Duration};

use reqwest::{RequestBuilder, Response, StatusCode, header};
use url::form_urlencoded;

use super::*;
use crate::{
    http,
    wait::{self, PATIENCE},
};

mod faults;
mod git;
mod refreshing;

/// A refresh as a good client of this SCM sends it.
fn refresh_request(scm: &SimulatedScm, refresh_token: &str) -> RequestBuilder {
    refresh_request_with(scm, scm.client_secret(), refresh_token)
}

fn refresh_request_with(scm: &SimulatedScm, client_secret: &str, refresh_token: &str) -> RequestBuilder {
    let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", refresh_token)];
    if let Some(redirect_uri) = &scm.scm.options.redirect_uri {
        form.push(("redirect_uri", redirect_uri));
    }
    let request = http::client().post(scm.token_url()).header(header::ACCEPT, "application/json");
    match scm.scm.options.client_auth {
        ClientAuth::Basic => request.basic_auth(scm.client_id(), Some(client_secret)).form(&form),
        ClientAuth::Body => {
            form.extend([("client_id", scm.client_id()), ("client_secret", client_secret)]);
            request.form(&form)
        }
    }
}

async fn refresh(scm: &SimulatedScm, refresh_token: &str) -> Response {
    refresh_request(scm, refresh_token).send().await.expect("an answer")
}

/// A refresh that works: the new pair is what the SCM issued last.
async fn refresh_well(scm: &SimulatedScm, pair: &IssuedPair) -> IssuedPair {
    let answer = refresh(scm, &pair.refresh_token).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let body = json_body(answer).await;
    let new = scm.latest_pair(&pair.user).expect("a pair");
    assert_eq!(body["access_token"], new.access_token);
    new
}

async fn json_body(answer: Response) -> Value {
    serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON")
}

/// Waits until the SCM has seen that the client of the last request has left.
async fn abandoned(scm: &SimulatedScm) {
    eventually("the request to be abandoned", async || last_event(scm).outcome == RefreshOutcome::Abandoned)
        .await;
}

async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    wait::eventually(what, PATIENCE, async || condition().await.then_some(())).await;
}

fn last_event(scm: &SimulatedScm) -> RefreshEvent {
    scm.log().pop().expect("an event")
}
