//! The pages, in plain HTML: readable without scripts, and without the style sheet.

use std::fmt::Write as _;

use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::store::{FailureKind, ListedToken};
use url::Url;

use super::super::web::escaped;
use crate::cli::relative::distance;

/// One host on the page.
pub(super) struct Row<'a> {
    pub(super) host: &'a str,
    pub(super) kind: &'a str,
    pub(super) connection: Connection,
    /// Why nobody can log in there on this page.
    pub(super) obstacle: Option<String>,
}

/// How a user stands at a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Connection {
    Never,
    /// Nothing that workers do helps: the user must log in again.
    Lost,
    Held {
        /// None: for ever.
        expires_at: Option<Timestamp>,
        renewal: Renewal,
        since: Timestamp,
    },
}

/// How long workers can refresh a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewal {
    Never,
    Until(Timestamp),
    /// Nobody says until when.
    Endless,
}

impl Connection {
    pub(super) fn of(token: Option<&ListedToken>, now: Timestamp) -> Self {
        let Some(token) = token else { return Self::Lost };
        let needs_login = [FailureKind::Refused, FailureKind::Interrupted].map(FailureKind::name);
        let is_refused = token.failure.as_ref().is_some_and(|failure| needs_login.contains(&&*failure.code));
        let is_dead = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let renewable = token.refreshable && !is_refused && !is_dead(token.refresh_token_expires_at);
        if !renewable && (is_refused || is_dead(token.expires_at) || token.reported_at.is_some()) {
            return Self::Lost;
        }
        Self::Held {
            expires_at: token.expires_at,
            renewal: match (renewable, token.refresh_token_expires_at) {
                (false, _) => Renewal::Never,
                (true, Some(until)) => Renewal::Until(until),
                (true, None) => Renewal::Endless,
            },
            since: token.updated_at,
        }
    }

    fn html(&self, now: Timestamp) -> String {
        let (class, text, more) = match self {
            Self::Never => ("small", "not connected".to_owned(), String::new()),
            Self::Lost => ("bad", "must be connected again".to_owned(), String::new()),
            Self::Held { expires_at, renewal, since } => {
                let (until, token) = match (expires_at, renewal) {
                    (None, _) => ("without an end".to_owned(), "the token never expires".to_owned()),
                    (Some(at), Renewal::Never) => {
                        (format!("until {}", shown(*at, now)), "the token cannot be renewed".to_owned())
                    }
                    (Some(at), Renewal::Until(until)) => {
                        (format!("until {} at least", shown(*until, now)), renewed_by(*at, now))
                    }
                    (Some(at), Renewal::Endless) => ("without an end".to_owned(), renewed_by(*at, now)),
                };
                let until = format!("connected {until}");
                ("good", until, format!("{token}; stored {}", distance(*since, now)))
            }
        };
        let more = if more.is_empty() {
            more
        } else {
            format!("<br><span class=\"small\">{}</span>", escaped(&more))
        };
        format!("<span class=\"{class}\">{}</span>{more}", escaped(&text))
    }
}

/// Which hosts a user has connected, with a button for each.
pub(super) fn overview(user: &str, rows: &[Row<'_>], form_token: &str, now: Timestamp) -> String {
    let mut body = format!("<h1>Source-code hosts of {}</h1>", escaped(user));
    if rows.is_empty() {
        body.push_str(
            "<p>There are no hosts yet. An operator adds them: <code>tokenkeeper provider apply</code>.</p>",
        );
    } else {
        body.push_str("<table><thead><tr><th>Host</th><th>State</th><th></th></tr></thead><tbody>");
        for row in rows {
            let _ = write!(
                body,
                "<tr><td>{}<br><span class=\"small\">{}</span></td><td>{}</td><td>{}</td></tr>",
                escaped(row.host),
                escaped(row.kind),
                row.connection.html(now),
                button(row, form_token)
            );
        }
        body.push_str("</tbody></table>");
    }
    whole("Source-code hosts", "", &body)
}

fn button(row: &Row<'_>, form_token: &str) -> String {
    if let Some(obstacle) = &row.obstacle {
        return format!("<span class=\"small\">not here: {}</span>", escaped(obstacle));
    }
    let verb = if row.connection == Connection::Never { "Connect" } else { "Reconnect" };
    let host = escaped(row.host);
    format!(
        "<form method=\"post\" action=\"/connect\"><input type=\"hidden\" name=\"form_token\" value=\"{}\">\
         <input type=\"hidden\" name=\"host\" value=\"{host}\">\
         <button aria-label=\"{verb} {host}\">{verb}</button></form>",
        escaped(form_token)
    )
}

/// Sends the browser on. Not by a redirect: browsers hold it, and every redirect after it, against `form-action`.
pub(super) fn departure(host: &str, to: &Url) -> String {
    let (host, to) = (escaped(host), escaped(to.as_str()));
    let head = format!("<meta http-equiv=\"refresh\" content=\"0;url={to}\">");
    let body = format!(
        "<h1>On to {host}</h1><p><a href=\"{to}\" id=\"on\">Log in at {host}</a>, if your browser does not go there by itself.</p>"
    );
    whole("On to the host", &head, &body)
}

/// What went wrong, and the way back.
pub(super) fn trouble(text: &str) -> String {
    let body =
        format!("<h1>Not connected</h1><p class=\"bad\">{}</p><p><a href=\"/\">Back</a></p>", escaped(text));
    whole("Not connected", "", &body)
}

fn renewed_by(at: Timestamp, now: Timestamp) -> String {
    if at <= now {
        return "the token is renewed when it is asked for".to_owned();
    }
    format!("the token is renewed by {}", shown(at, now))
}

fn shown(at: Timestamp, now: Timestamp) -> String {
    let date = at.to_string();
    // Minutes are enough for people.
    let date = date.get(..16).map_or_else(|| date.clone(), |date| date.replace('T', " ") + " UTC");
    format!("{date} ({})", distance(at, now))
}

fn whole(title: &str, head: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{title} - tokenkeeper</title>\
         <link rel=\"stylesheet\" href=\"/style.css\">{head}</head><body>{body}</body></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokenkeeper::store::ListedFailure;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_577_840_700_000);

    fn token(change: impl FnOnce(&mut ListedToken)) -> ListedToken {
        let hour = NOW.plus(Duration::from_hours(1));
        let mut token = ListedToken {
            generation: 1,
            username: None,
            scopes: Vec::new(),
            updated_at: NOW,
            expires_at: Some(hour),
            refreshable: true,
            refresh_token_expires_at: None,
            granted_lifetime_secs: None,
            reserved_until: None,
            lease: None,
            in_doubt: false,
            reported_at: None,
            failure: None,
        };
        change(&mut token);
        token
    }

    fn failed(kind: FailureKind) -> ListedFailure {
        ListedFailure { code: kind.name().to_owned(), message: String::new(), at: NOW }
    }

    #[test]
    fn a_user_must_log_in_again_where_no_worker_can_help() {
        let lost =
            |change: fn(&mut ListedToken)| Connection::of(Some(&token(change)), NOW) == Connection::Lost;
        assert!(!lost(|_| {}));
        assert!(!lost(|token| token.expires_at = Some(NOW)), "it is refreshed");
        assert!(!lost(|token| token.failure = Some(failed(FailureKind::Unavailable))));
        assert!(!lost(|token| token.reported_at = Some(NOW)), "it is refreshed");
        assert!(lost(|token| token.failure = Some(failed(FailureKind::Refused))));
        assert!(lost(|token| token.failure = Some(failed(FailureKind::Interrupted))));
        assert!(lost(|token| (token.expires_at, token.refreshable) = (Some(NOW), false)));
        assert!(lost(|token| (token.expires_at, token.refresh_token_expires_at) = (Some(NOW), Some(NOW))));
        assert!(lost(|token| (token.reported_at, token.refreshable) = (Some(NOW), false)));
        assert_eq!(Connection::of(None, NOW), Connection::Lost);
    }

    #[test]
    fn the_page_says_until_when() {
        let html = |change: fn(&mut ListedToken)| Connection::of(Some(&token(change)), NOW).html(NOW);
        assert!(html(|_| {}).contains("connected without an end"));
        assert!(html(|_| {}).contains("renewed by 2020-01-01 02:05 UTC (in 1h)"));
        assert!(
            html(|token| token.refreshable = false).contains("connected until 2020-01-01 02:05 UTC (in 1h)<")
        );
        let known = html(|token| token.refresh_token_expires_at = Some(NOW.plus(Duration::from_hours(48))));
        assert!(known.contains("connected until 2020-01-03 01:05 UTC (in 2d) at least"), "{known}");
        assert!(html(|token| token.expires_at = None).contains("never expires"));
    }

    #[test]
    fn names_from_outside_stay_text() {
        let evil = "\"><script>alert(1)</script>";
        let obstacle = Some(evil.to_owned());
        let rows = [
            Row { host: evil, kind: evil, connection: Connection::Never, obstacle: None },
            Row { host: evil, kind: evil, connection: Connection::Lost, obstacle },
        ];
        let to = Url::parse("https://git.example.org/authorize?a=1&b=\"><script>").unwrap();
        for page in [overview(evil, &rows, evil, NOW), trouble(evil), departure(evil, &to)] {
            assert!(!page.contains("<script") && !page.contains("\"><s"), "{page}");
        }
        assert!(departure("h", &to).contains("a=1&amp;b="));
    }
}
