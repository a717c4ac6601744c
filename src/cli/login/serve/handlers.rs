//! What the page answers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, Form, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, ORIGIN, REFERRER_POLICY, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use tokenkeeper::domain::clock::{Clock, SystemClock};
use tokenkeeper::domain::provider::Provider;
use tokenkeeper::domain::text::UserId;
use tokenkeeper::oauth::TokenClient;
use tokenkeeper::oauth::login::{Callback, LoginError, Logins, PendingLogin};
use tokenkeeper::store::{ListedIdentity, ListingFilter, Store, StoreError};

use super::page::{Connection, Row, departure, overview, trouble};
use super::pending::{Crowded, PendingLogins};
use super::session::Sessions;
use super::site::{CALLBACK, Site};
use super::who::Who;
use crate::cli::Failure;
use crate::cli::login::deposit::Deposit;
use crate::cli::login::web::{Peer, is_for};

/// Bytes of a form.
const LONGEST_FORM: usize = 4 * 1024;

/// Hosts of one user that are shown.
const MOST_IDENTITIES: u64 = 1_000;

const STYLE: &str = include_str!("style.css");

pub(super) struct Page {
    pub(super) client: TokenClient,
    pub(super) store: Store,
    pub(super) deposit: Deposit,
    pub(super) who: Who,
    pub(super) pending: PendingLogins,
    pub(super) sessions: Sessions,
    pub(super) site: Site,
}

/// Why a request gets another page than it wants.
enum Trouble {
    /// The browser brings something that this page did not give it.
    Forged(&'static str),
    Told(StatusCode, String),
    Store(StoreError),
}

pub(super) fn router(page: &Arc<Page>) -> Router {
    Router::new()
        .route("/", get(show))
        .route("/connect", post(connect))
        .route(CALLBACK, get(callback))
        .layer(from_fn_with_state(Arc::clone(page), admit))
        .route("/style.css", get(style))
        .layer(DefaultBodyLimit::max(LONGEST_FORM))
        .with_state(Arc::clone(page))
}

/// Lets a request through with its user: it means this host, and somebody says who sits there.
async fn admit(
    State(page): State<Arc<Page>>,
    Extension(Peer(peer)): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    if !is_for(request.headers(), page.site.authorities()) {
        return (StatusCode::MISDIRECTED_REQUEST, "another host is meant\n").into_response();
    }
    match page.who.of(peer.ip(), request.headers()) {
        Ok(user) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Err(nobody) => Trouble::Told(StatusCode::FORBIDDEN, nobody.to_string()).into_response(),
    }
}

async fn show(
    State(page): State<Arc<Page>>,
    Extension(user): Extension<UserId>,
    headers: HeaderMap,
) -> Result<Response, Trouble> {
    let (session, cookie) = match page.sessions.of(&headers) {
        Some(session) => (session, None),
        None => page.sessions.begin(),
    };
    let (mut providers, identities) = (page.store.usable_providers().await?, page.identities(&user).await?);
    providers.sort_by(|one, other| one.host.cmp(&other.host));
    let now = SystemClock.now();
    let rows: Vec<Row<'_>> = providers
        .iter()
        .map(|provider| {
            let identity = identities.iter().find(|identity| identity.host == provider.host);
            Row {
                host: &provider.host,
                kind: provider.kind.name(),
                connection: identity
                    .map_or(Connection::Never, |identity| Connection::of(identity.token.as_ref(), now)),
                obstacle: page.site.obstacle(provider),
            }
        })
        .collect();
    let html = overview(user.as_str(), &rows, &page.sessions.form_token(&session, &user), now);
    let mut response = Html(html).into_response();
    // Its URL holds nothing; with `no-referrer` a browser would send the form without its origin.
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    if let Some(cookie) = cookie {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    Ok(response)
}

#[derive(Deserialize)]
struct Connect {
    form_token: String,
    host: String,
}

async fn connect(
    State(page): State<Arc<Page>>,
    Extension(user): Extension<UserId>,
    headers: HeaderMap,
    Form(form): Form<Connect>,
) -> Result<Response, Trouble> {
    page.require_own_form(&headers)?;
    let session =
        page.sessions.of(&headers).ok_or(Trouble::Forged("the browser kept no cookie of this page"))?;
    if !page.sessions.is_form_token(&session, &user, &form.form_token) {
        return Err(Trouble::Forged(
            "the form is not of this session; it may be older than the page's program",
        ));
    }
    let provider = page.provider(&form.host).await?;
    let logins = Logins::at(&page.client, &provider);
    let login = logins.begin(page.site.redirect_uri(), &provider.login_scopes())?;
    let away = departure(&provider.host, login.url());
    page.pending.begin(session, &user, &provider.host, login).map_err(|Crowded| {
        Trouble::Told(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many logins are under way; try again soon".to_owned(),
        )
    })?;
    tracing::info!(user_id = user.as_str(), host = provider.host, "a login begins");
    Ok(Html(away).into_response())
}

async fn callback(
    State(page): State<Arc<Page>>,
    Extension(user): Extension<UserId>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Trouble> {
    let callback = Callback::read(uri.query().unwrap_or_default());
    let callback = callback.map_err(|_| Trouble::Forged("this is no answer of a source-code host"))?;
    let begun = page.sessions.of(&headers);
    let begun = begun.and_then(|session| page.pending.take(&session, &user, &callback.state));
    let (host, login) = begun.ok_or(Trouble::Forged(
        "this is no login that was begun here, in this browser; it may be over already",
    ))?;
    // The code is used from here on: a browser that leaves must not leave the pair behind.
    let finish = tokio::spawn(finish(Arc::clone(&page), user, host, login, callback));
    finish
        .await
        .map_err(|_| Trouble::Told(StatusCode::INTERNAL_SERVER_ERROR, "it ended by a bug".to_owned()))??;
    Ok((StatusCode::SEE_OTHER, [(LOCATION, "/")]).into_response())
}

async fn finish(
    page: Arc<Page>,
    user: UserId,
    host: String,
    login: PendingLogin,
    callback: Callback,
) -> Result<(), Trouble> {
    let provider = page.provider(&host).await?;
    let told = |error: &Trouble| {
        if let Trouble::Told(_, why) = error {
            tracing::warn!(user_id = user.as_str(), host, why, "a login failed");
        }
    };
    let pair = async {
        let code = callback.code(&provider)?;
        Ok::<_, Trouble>(Logins::at(&page.client, &provider).exchange(login, &code).await?)
    };
    let pair = pair.await.inspect_err(told)?;
    let kept = page.deposit.keep(&user, &provider, &pair).await;
    kept.map_err(Trouble::from).inspect_err(told)?;
    tracing::info!(user_id = user.as_str(), host, "a login was stored");
    Ok(())
}

async fn style() -> Response {
    let headers = [(CONTENT_TYPE, "text/css; charset=utf-8"), (CACHE_CONTROL, "max-age=3600")];
    (headers, STYLE).into_response()
}

impl Page {
    async fn identities(&self, user: &UserId) -> Result<Vec<ListedIdentity>, StoreError> {
        let filter = ListingFilter { user_id: Some(user.to_string()), host: None };
        self.deposit.listing().page(&filter, 0, MOST_IDENTITIES).await
    }

    async fn provider(&self, host: &str) -> Result<Provider, Trouble> {
        let unknown = || Trouble::Told(StatusCode::NOT_FOUND, "there is no such host".to_owned());
        let provider = self.store.provider(host).await?.ok_or_else(unknown)?;
        match self.site.obstacle(&provider) {
            None => Ok(provider),
            Some(why) => Err(Trouble::Told(StatusCode::CONFLICT, why)),
        }
    }

    /// The form was sent by a page of this site. A browser says so by itself, whatever a page of another site does.
    fn require_own_form(&self, headers: &HeaderMap) -> Result<(), Trouble> {
        let is = |name: &str, expected: &str| headers.get(name).is_none_or(|value| value == expected);
        let origin = headers.get(ORIGIN);
        if origin.is_some_and(|origin| *origin == *self.site.origin()) && is("sec-fetch-site", "same-origin")
        {
            return Ok(());
        }
        Err(Trouble::Forged("the form was not sent by this page"))
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<LoginError> for Trouble {
    fn from(error: LoginError) -> Self {
        let status = match &error {
            LoginError::Refused { code, .. } if code == "access_denied" => StatusCode::FORBIDDEN,
            LoginError::Refused { .. } | LoginError::Unavailable { .. } => StatusCode::BAD_GATEWAY,
            LoginError::NoEndpoint { .. } => StatusCode::CONFLICT,
        };
        Self::Told(status, error.to_string())
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Told(StatusCode::BAD_GATEWAY, failure.told())
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Forged(why) => (StatusCode::BAD_REQUEST, why.to_owned()),
            Self::Told(status, text) => (status, text),
            // What it says is for operators.
            Self::Store(error) => {
                tracing::error!(%error, "the page cannot use the database");
                (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the database does not answer as it should; try again".to_owned(),
                )
            }
        };
        (status, Html(trouble(&text))).into_response()
    }
}
