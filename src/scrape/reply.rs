//! Which text a client wants, and the answer that holds it.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use flate2::Compression;

use super::status::StatusPage;
use crate::api::routes::percent_decode;
use crate::http::date::DateCache;
use crate::http::{respond, Head};
use crate::ipc::scoreboard::Scoreboard;
use crate::metrics::aggregate::{restrict, Merger};
use crate::metrics::expose::{self, Format};
use crate::os::process;

/// The files, and what was said about them.
pub(super) struct Replier<'b> {
    directory: PathBuf,
    page: StatusPage<'b>,
    merger: Merger,
    /// Files whose damage was reported.
    reported: HashSet<PathBuf>,
    date: DateCache,
}

/// A format and the media type that announces it.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    format: Format,
    content_type: String,
}

impl<'b> Replier<'b> {
    pub(super) fn new(directory: &Path, board: &'b Scoreboard) -> Self {
        Self {
            page: StatusPage::new(board),
            directory: directory.to_owned(),
            merger: Merger::default(),
            reported: HashSet::new(),
            date: DateCache::default(),
        }
    }

    /// Appends the answer to a request whose bytes are `bytes`.
    pub(super) fn answer(&mut self, head: &Head, bytes: &[u8], out: &mut Vec<u8>) {
        let text = |range: &std::ops::Range<usize>| std::str::from_utf8(&bytes[range.clone()]).unwrap_or("");
        let method = text(&head.method);
        let fields = &bytes[head.start..head.end];
        match method {
            "GET" | "HEAD" => {}
            "OPTIONS" => return self.write(out, 200, "Allow: OPTIONS,GET\r\n", b"", head.keep_alive, true),
            _ => {
                let body = format!("# HTTP 405 Method Not Allowed: {method}; use OPTIONS or GET\n");
                let extra = "Allow: OPTIONS,GET\r\n";
                return self.write(out, 405, extra, body.as_bytes(), head.keep_alive, true);
            }
        }
        if text(&head.path) == "/favicon.ico" {
            return self.write(out, 200, "", b"", head.keep_alive, true);
        }
        let accept = joined(fields, "accept");
        if text(&head.path) == "/status" || text(&head.path) == "/" && accept.contains("text/html") {
            let merged = self.merger.merge(&self.directory);
            let page = self.page.render(merged.as_ref().map_or(&[], |merged| &merged.families));
            let extra = "Content-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\n";
            return self.write(out, 200, extra, page.as_bytes(), head.keep_alive, method == "GET");
        }
        let choice = choose(&accept);
        let Some(body) = self.render(&choice, &wanted_names(text(&head.query))) else {
            let body = b"A server error occurred.  Please contact the administrator.";
            return self.write(out, 500, "Content-Type: text/plain\r\n", body, head.keep_alive, true);
        };
        let gzip = joined(fields, "accept-encoding")
            .split(',')
            .any(|entry| entry.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("gzip"));
        let (body, encoding) = match gzip.then(|| compress(body.as_bytes())).flatten() {
            Some(packed) => (packed, "Content-Encoding: gzip\r\n"),
            None => (body.into_bytes(), ""),
        };
        let extra = format!("Content-Type: {}\r\n{encoding}", choice.content_type);
        self.write(out, 200, &extra, &body, head.keep_alive, method == "GET");
    }

    /// The text of the directory; `None` when it cannot be read.
    fn render(&mut self, choice: &Choice, names: &[String]) -> Option<String> {
        let mut merged = self
            .merger
            .merge(&self.directory)
            .map_err(|error| log::error!("cannot read {}: {error}", self.directory.display()))
            .ok()?;
        for path in merged.damaged {
            if !self.reported.contains(&path) {
                log::warn!("{}: damaged, read as far as it is whole", path.display());
                self.reported.insert(path);
            }
        }
        if !names.is_empty() {
            restrict(&mut merged.families, names);
        }
        Some(expose::render(&merged.families, choice.format))
    }

    fn write(&mut self, out: &mut Vec<u8>, status: u16, extra: &str, body: &[u8], keep: bool, whole: bool) {
        let date = self.date.at(process::wall_clock());
        write_head(out, status, date, extra, body.len(), keep);
        if whole {
            out.extend_from_slice(body);
        }
    }
}

fn write_head(out: &mut Vec<u8>, status: u16, date: &str, extra: &str, length: usize, keep: bool) {
    let reason = respond::reason(status);
    let close = if keep { "" } else { "Connection: close\r\n" };
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\nServer: feast-prefork\r\n{extra}\
             Content-Length: {length}\r\n{close}\r\n"
        )
        .as_bytes(),
    );
}

/// Appends the answer to something that is not a request.
pub(super) fn refuse(status: u16, text: &str, out: &mut Vec<u8>) {
    let mut date = DateCache::default();
    let date = date.at(process::wall_clock());
    write_head(out, status, date, "Content-Type: text/plain; charset=utf-8\r\n", text.len(), false);
    out.extend_from_slice(text.as_bytes());
}

fn compress(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

/// All values of a header field, joined with commas.
fn joined(head: &[u8], name: &str) -> String {
    let values: Vec<&str> = head
        .split(|&byte| byte == b'\n')
        .skip(1)
        .filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'))
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect();
    values.join(",")
}

/// The names of `?name[]=A&name[]=B`.
fn wanted_names(query: &str) -> Vec<String> {
    query
        .trim_start_matches('?')
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| percent_decode(key) == "name[]")
        .map(|(_, value)| percent_decode(value).into_owned())
        .collect()
}

/// The first entry of `accept` that this server can satisfy, by the rules of the Python client; without one
/// the oldest text format.
fn choose(accept: &str) -> Choice {
    for entry in accept.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let kind = parts.next().unwrap_or("");
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let parameter = |name: &str| {
            parameters.iter().find(|(known, _)| known.trim() == name).map(|(_, value)| value.trim())
        };
        let modern = parameter("version").map(is_modern);
        // Our names are legal in every scheme; only these two leave them as they are.
        let escaping = match parameter("escaping") {
            Some("allow-utf-8") => "allow-utf-8",
            _ => "underscores",
        };
        match (kind, modern) {
            ("text/plain", Some(true)) => {
                let content_type = format!("text/plain; version=1.0.0; charset=utf-8; escaping={escaping}");
                return Choice { format: Format::Text, content_type };
            }
            ("application/openmetrics-text", None) => {
                let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8".to_owned();
                return Choice { format: Format::OpenMetrics, content_type };
            }
            ("application/openmetrics-text", Some(true)) => {
                let version = parameter("version").unwrap_or("1.0.0");
                let content_type = format!(
                    "application/openmetrics-text; version={version}; charset=utf-8; escaping={escaping}"
                );
                return Choice { format: Format::OpenMetrics, content_type };
            }
            _ => {}
        }
    }
    Choice { format: Format::Text, content_type: "text/plain; version=0.0.4; charset=utf-8".to_owned() }
}

/// True for version 1.0.0 and later; anything but numbers and dots is no version.
fn is_modern(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    let major = parts.next();
    parts.all(|part| part.is_ok()) && matches!(major, Some(Ok(1..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_acceptable_entry_wins() {
        let text = "text/plain; version=0.0.4; charset=utf-8";
        let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        for (accept, expected) in [
            ("", text),
            ("*/*", text),
            ("text/plain;version=0.0.4", text),
            ("Application/OpenMetrics-Text;version=1.0.0", text),
            ("application/openmetrics-text;version=0.0.1,*/*", text),
            ("application/openmetrics-text;version=\"1.0.0\"", text),
            ("text/plain;version=2.0.0", "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
            ("application/openmetrics-text", open),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.1",
                "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
            ),
            (
                "application/openmetrics-text; version=1.5.0; escaping=dots",
                "application/openmetrics-text; version=1.5.0; charset=utf-8; escaping=underscores",
            ),
        ] {
            assert_eq!(choose(accept).content_type, expected, "{accept}");
        }
    }

    #[test]
    fn names_are_asked_for_in_the_query() {
        assert_eq!(wanted_names("?name[]=a_total&x=1&name%5B%5D=b"), ["a_total", "b"]);
        assert!(wanted_names("").is_empty());
    }
}
