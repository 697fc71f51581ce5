//! The access log: uvicorn's line by default, or gunicorn's format atoms when a format is given.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::Timestamp;

use super::logger::Target;

/// What one line can tell. All texts are as received; `head` is the raw request head.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'e> {
    /// Client address; empty on a Unix socket.
    pub address: &'e str,
    /// Client port; `None` on a Unix socket.
    pub port: Option<u16>,
    /// Method.
    pub method: &'e str,
    /// Path as it came, still percent-encoded.
    pub raw_path: &'e str,
    /// Path percent-decoded.
    pub path: &'e str,
    /// Query with its `?`, or nothing.
    pub query: &'e str,
    /// `1.0` or `1.1`.
    pub version: &'e str,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of the answer's body.
    pub length: usize,
    /// Time since the turn of the loop that took the request up, waiting included.
    pub took: Duration,
    /// Raw request head.
    pub head: &'e [u8],
    /// Raw response head.
    pub response_head: &'e [u8],
}

/// Writes lines into a buffer that the loop flushes once a turn.
#[derive(Debug)]
pub struct AccessLog {
    target: Target,
    file: Option<File>,
    format: Option<Vec<Piece>>,
    zone: TimeZone,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Atom(char),
    RequestHeader(String),
    ResponseHeader(String),
    Environ(String),
}

/// Bytes that are written at once, at the latest.
const FLUSH_AT: usize = 32 << 10;

impl AccessLog {
    /// A log to `target`; without a format, in uvicorn's layout.
    pub fn open(target: &Target, format: Option<&str>) -> io::Result<Self> {
        Ok(Self {
            file: target.open()?,
            target: target.clone(),
            format: format.map(parse_format),
            zone: TimeZone::system(),
            buffer: Vec::new(),
        })
    }

    /// False when lines go nowhere.
    pub fn is_on(&self) -> bool {
        self.target != Target::Off
    }

    /// Adds a line.
    pub fn add(&mut self, entry: &Entry<'_>) {
        match &self.format {
            None => write_default(&mut self.buffer, entry),
            Some(pieces) => write_format(&mut self.buffer, pieces, entry, &self.zone),
        }
        self.buffer.push(b'\n');
        if self.buffer.len() >= FLUSH_AT {
            self.flush();
        }
    }

    /// Writes out what was added.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let _ = match (&self.target, &mut self.file) {
            (Target::File(_), Some(file)) => file.write_all(&self.buffer),
            (Target::Stdout, _) => write_all_fd(&mut io::stdout().lock(), &self.buffer),
            (Target::Stderr, _) => io::stderr().lock().write_all(&self.buffer),
            _ => Ok(()),
        };
        self.buffer.clear();
    }

    /// Opens the file again, after it was moved away.
    pub fn reopen(&mut self) {
        self.flush();
        match self.target.open() {
            Ok(file) => self.file = file,
            Err(error) => log::error!("cannot reopen the access log: {error}"),
        }
    }
}

fn write_all_fd(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// `1.2.3.4:5678 - "GET /path?query HTTP/1.1" 200`
fn write_default(out: &mut Vec<u8>, entry: &Entry<'_>) {
    if let Some(port) = entry.port {
        out.extend_from_slice(entry.address.as_bytes());
        out.push(b':');
        out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    out.extend_from_slice(b" - \"");
    out.extend_from_slice(entry.method.as_bytes());
    out.push(b' ');
    quote_path(out, entry.path);
    out.extend_from_slice(entry.query.as_bytes());
    out.extend_from_slice(b" HTTP/");
    out.extend_from_slice(entry.version.as_bytes());
    out.extend_from_slice(b"\" ");
    out.extend_from_slice(itoa::Buffer::new().format(entry.status).as_bytes());
}

/// Percent-encodes everything but `/` and unreserved characters.
fn quote_path(out: &mut Vec<u8>, path: &str) {
    for &byte in path.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/_.-~".contains(&byte) {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}

fn parse_format(format: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    // What is no atom is text, in which gunicorn's %-formatting writes %% as one sign.
    let plain = |text: &str| text.replace("%%", "%");
    let mut rest = format;
    while let Some(at) = rest.find("%(") {
        text.push_str(&plain(&rest[..at]));
        let Some(end) = rest[at..].find(")s") else { break };
        let name = &rest[at + 2..at + end];
        rest = &rest[at + end + 2..];
        let named = name.strip_prefix('{').and_then(|name| name.split_once('}'));
        let piece = match named {
            Some((name, "i")) => Piece::RequestHeader(name.to_ascii_lowercase()),
            Some((name, "o")) => Piece::ResponseHeader(name.to_ascii_lowercase()),
            Some((name, "e")) => Piece::Environ(name.to_owned()),
            _ => Piece::Atom(name.chars().next().filter(|_| name.len() == 1).unwrap_or('-')),
        };
        pieces.push(Piece::Text(std::mem::take(&mut text)));
        pieces.push(piece);
    }
    text.push_str(&plain(rest));
    pieces.push(Piece::Text(text));
    pieces
}

fn write_format(out: &mut Vec<u8>, pieces: &[Piece], entry: &Entry<'_>, zone: &TimeZone) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
            other => {
                let value = atom(other, entry, zone);
                out.extend_from_slice(value.replace('"', "\\\"").as_bytes());
            }
        }
    }
}

fn atom(piece: &Piece, entry: &Entry<'_>, zone: &TimeZone) -> String {
    let or_dash = |text: Option<String>| text.filter(|t| !t.is_empty()).unwrap_or_else(|| "-".to_owned());
    let letter = match piece {
        Piece::RequestHeader(name) => return or_dash(header(entry.head, name)),
        Piece::ResponseHeader(name) => return or_dash(header(entry.response_head, name)),
        Piece::Environ(name) => return or_dash(std::env::var(name).ok()),
        Piece::Text(_) => return String::new(),
        Piece::Atom(letter) => *letter,
    };
    match letter {
        'h' => or_dash(Some(entry.address.to_owned())),
        'u' => or_dash(basic_user(entry.head)),
        't' => {
            let now = Timestamp::now().to_zoned(zone.clone());
            now.strftime("[%d/%b/%Y:%H:%M:%S %z]").to_string()
        }
        'r' => format!("{} {}{} HTTP/{}", entry.method, entry.raw_path, entry.query, entry.version),
        's' => entry.status.to_string(),
        'm' => entry.method.to_owned(),
        'U' => entry.path.to_owned(),
        'q' => entry.query.trim_start_matches('?').to_owned(),
        'H' => format!("HTTP/{}", entry.version),
        'b' | 'B' => entry.length.to_string(),
        'f' => or_dash(header(entry.head, "referer")),
        'a' => or_dash(header(entry.head, "user-agent")),
        'T' => entry.took.as_secs().to_string(),
        'M' => entry.took.as_millis().to_string(),
        'D' => entry.took.as_micros().to_string(),
        'L' => format!("{:.6}", entry.took.as_secs_f64()),
        'p' => format!("<{}>", std::process::id()),
        _ => "-".to_owned(),
    }
}

/// The value of a header in a raw head, by its lower-case name.
fn header(head: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    text.split("\r\n").skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// The user of HTTP Basic authentication.
fn basic_user(head: &[u8]) -> Option<String> {
    use base64::Engine;
    let value = header(head, "authorization")?;
    let (scheme, encoded) = value.split_once(' ')?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    scheme.eq_ignore_ascii_case("basic").then(|| text.split(':').next().unwrap_or("").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            address: "127.0.0.1",
            port: Some(38598),
            method: "GET",
            raw_path: "/no%20such%2Fpath/%C3%A9",
            path: "/no such/path/é",
            query: "?a=b%20c",
            version: "1.1",
            status: 404,
            length: 22,
            took: Duration::from_micros(498),
            head: b"GET / HTTP/1.1\r\nUser-Agent: agent \"q\"\r\nAuthorization: Basic Ym9iOng=\r\n\r\n",
            response_head: b"HTTP/1.1 404 Not Found\r\ncontent-length: 22\r\n\r\n",
        }
    }

    #[test]
    fn the_default_line_is_uvicorns() {
        let mut out = Vec::new();
        write_default(&mut out, &entry());
        let expected = "127.0.0.1:38598 - \"GET /no%20such/path/%C3%A9?a=b%20c HTTP/1.1\" 404";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        write_default(&mut out, &Entry { port: None, address: "", query: "", ..entry() });
        assert!(out.starts_with(b" - \"GET /no%20such"));
    }

    #[test]
    fn formats_are_gunicorns() {
        let format = "%(h)s %(l)s %(u)s \"%(r)s\" %(s)s %(b)s \"%(f)s\" \"%(a)s\" %(L)s %({content-length}o)s %(zz)s 100%";
        let mut out = Vec::new();
        write_format(&mut out, &parse_format(format), &entry(), &TimeZone::UTC);
        let expected = "127.0.0.1 - bob \"GET /no%20such%2Fpath/%C3%A9?a=b%20c HTTP/1.1\" 404 22 \"-\" \
                        \"agent \\\"q\\\"\" 0.000498 22 - 100%";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
