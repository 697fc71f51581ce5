//! Which route is meant, and what the reference answers when none is.

use std::borrow::Cow;

use super::write::WriteRoute;
use super::Answer;
use crate::text::json;

/// A route this server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `POST /get-online-features`
    OnlineFeatures,
    /// `GET /health`
    Health,
    /// One that writes.
    Write(WriteRoute),
    /// Known to the reference, not built here yet: its path.
    Later(&'static str),
}

/// What a method and a path lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// A route to run.
    Run(Route),
    /// 404
    NotFound,
    /// 405 with its `allow` header.
    MethodNotAllowed(&'static str),
    /// 307 to this path (percent-encoded, without the query).
    Redirect(String),
}

struct Entry {
    path: &'static str,
    /// Methods that are answered.
    methods: &'static [&'static str],
    /// What the `allow` header says.
    allow: &'static str,
    route: Route,
}

const POST: &[&str] = &["POST"];
const GET: &[&str] = &["GET"];
const PAGE: &[&str] = &["GET", "HEAD"];

macro_rules! later {
    ($path:literal, $methods:expr, $allow:literal) => {
        Entry { path: $path, methods: $methods, allow: $allow, route: Route::Later($path) }
    };
}

/// The reference's routes; a `{}` stands for one path segment.
const TABLE: &[Entry] = &[
    Entry { path: "/get-online-features", methods: POST, allow: "POST", route: Route::OnlineFeatures },
    Entry { path: "/health", methods: GET, allow: "GET", route: Route::Health },
    later!("/search", POST, "POST"),
    later!("/retrieve-online-documents", POST, "POST"),
    later!("/v1/vector_stores", GET, "GET"),
    later!("/v1/vector_stores/{}", GET, "GET"),
    later!("/v1/vector_stores/{}/search", POST, "POST"),
    Entry { path: "/push", methods: POST, allow: "POST", route: Route::Write(WriteRoute::Push) },
    Entry {
        path: "/write-to-online-store",
        methods: POST,
        allow: "POST",
        route: Route::Write(WriteRoute::WriteToOnlineStore),
    },
    Entry {
        path: "/materialize",
        methods: POST,
        allow: "POST",
        route: Route::Write(WriteRoute::Materialize),
    },
    Entry {
        path: "/materialize-incremental",
        methods: POST,
        allow: "POST",
        route: Route::Write(WriteRoute::MaterializeIncremental),
    },
    later!("/chat", &["GET", "POST"], "POST"),
    later!("/docs", PAGE, "GET, HEAD"),
    later!("/docs/oauth2-redirect", PAGE, "GET, HEAD"),
    later!("/redoc", PAGE, "GET, HEAD"),
    later!("/openapi.json", PAGE, "GET, HEAD"),
];

/// Finds the route of a request; `path` is as it came, without the query.
pub fn find(method: &str, path: &str) -> Match {
    let decoded = percent_decode(path);
    if let Some(entry) = lookup(&decoded) {
        return if entry.methods.contains(&method) {
            Match::Run(entry.route)
        } else {
            Match::MethodNotAllowed(entry.allow)
        };
    }
    // Trailing slashes too many.
    let shorter = decoded.trim_end_matches('/');
    if shorter.len() < decoded.len() && lookup(shorter).is_some() {
        Match::Redirect(percent_encode(shorter))
    } else {
        Match::NotFound
    }
}

fn lookup(path: &str) -> Option<&'static Entry> {
    TABLE
        .iter()
        .find(|entry| entry.path == path || (entry.path.contains("{}") && matches_pattern(entry.path, path)))
}

fn matches_pattern(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some("{}"), Some(segment)) if !segment.is_empty() => {}
            (Some(w), Some(g)) if w == g => {}
            _ => return false,
        }
    }
}

/// Decodes `%XX`; bytes that are not UTF-8 become U+FFFD, and a broken escape stays as it is.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    let hex = |byte: u8| char::from(byte).to_digit(16);
    while at < bytes.len() {
        match bytes[at..] {
            [b'%', a, b, ..] if hex(a).is_some() && hex(b).is_some() => {
                out.push((hex(a).unwrap_or(0) * 16 + hex(b).unwrap_or(0)) as u8);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// Encodes what a path in a `location` header may not hold.
fn percent_encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-~:/%#?=@[]!$&'()*+,;".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The `scheme://host` a redirect starts with: nothing when the client's `Host` is no host, because what a
/// client made up must not come back as a part of a URL. (The reference names its own address then.)
pub fn origin(scheme: &str, host: &str) -> String {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, "0"),
    };
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let valid = match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~%!$&'()*+,;=-".contains(&b))
        }
    };
    let numeric = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if valid && numeric {
        format!("{scheme}://{host}")
    } else {
        String::new()
    }
}

/// Writes the answer of everything that is not [`Match::Run`].
///
/// `origin` is that of a redirect, `query` the query with its `?` (or nothing).
pub fn refuse(found: &Match, origin: &str, query: &str, answer: &mut Answer) {
    match found {
        Match::Run(_) => {}
        Match::NotFound => detail(answer, 404, "Not Found"),
        Match::MethodNotAllowed(allow) => {
            detail(answer, 405, "Method Not Allowed");
            answer.allow = Some(allow);
        }
        Match::Redirect(path) => {
            answer.reset(307);
            let query = if query == "?" { "" } else { query };
            answer.location = Some(format!("{origin}{path}{query}"));
        }
    }
}

fn detail(answer: &mut Answer, status: u16, text: &str) {
    let body = answer.json(status);
    body.extend_from_slice(b"{\"detail\":");
    json::write_str(body, text);
    body.push(b'}');
}

/// The answer of a route that is not built yet.
pub fn later(path: &str, answer: &mut Answer) {
    json::write_str(answer.json(501), &format!("{path} is not supported by this server yet."));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_host_does_not_come_back() {
        for host in ["a", "a.b:80", "127.0.0.1:6566", "[::1]:1", "[::1]", "my_host:65535"] {
            assert_eq!(origin("http", host), format!("http://{host}"));
        }
        for host in ["", "a b", "user@a", "a/b", "a:", "a:x", "a:65536", "[::1", "::1", "[x]:1", "é", "a?"] {
            assert_eq!(origin("https", host), "", "{host}");
        }
    }

    #[test]
    fn paths_are_exact_but_for_escapes_and_one_slash() {
        let post = |path| find("POST", path);
        assert_eq!(post("/get-online-features"), Match::Run(Route::OnlineFeatures));
        assert_eq!(post("/get%2Donline%2dfeatures"), Match::Run(Route::OnlineFeatures));
        assert_eq!(post("/GET-online-features"), Match::NotFound);
        assert_eq!(post("//get-online-features"), Match::NotFound);
        assert_eq!(post("/get-online-features/"), Match::Redirect("/get-online-features".into()));
        assert_eq!(post("/get%2Donline%2Dfeatures//"), Match::Redirect("/get-online-features".into()));
        assert_eq!(post("/health"), Match::MethodNotAllowed("GET"));
        assert_eq!(find("HEAD", "/health"), Match::MethodNotAllowed("GET"));
        assert_eq!(find("GET", "/"), Match::NotFound);
        assert_eq!(find("PUT", "/chat"), Match::MethodNotAllowed("POST"));
        assert_eq!(
            post("/v1/vector_stores/a/search"),
            Match::Run(Route::Later("/v1/vector_stores/{}/search"))
        );
        assert_eq!(find("GET", "/v1/vector_stores/"), Match::Redirect("/v1/vector_stores".into()));
    }
}
