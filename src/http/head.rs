//! A request head: the facts a server needs, as ranges of the buffer it was read from.

use std::ops::Range;

use super::{HttpError, Limits};

/// Protocol version of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// How the end of the body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes; 0 when there is no body.
    Length(u64),
    /// Chunks up to an empty one.
    Chunked,
}

/// A parsed head. All ranges are offsets into the buffer that the parser was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The method, upper case.
    pub method: Range<usize>,
    /// The target without scheme, authority and query.
    pub path: Range<usize>,
    /// The query with its `?`; empty without one.
    pub query: Range<usize>,
    /// Protocol version.
    pub version: Version,
    /// The client allows another request on this connection.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// How the body is framed.
    pub framing: Framing,
    /// `Host`
    pub host: Option<Range<usize>>,
    /// `Content-Type`
    pub content_type: Option<Range<usize>>,
    /// `X-Forwarded-For`, the last one.
    pub forwarded_for: Option<Range<usize>>,
    /// `X-Forwarded-Proto`, the last one.
    pub forwarded_proto: Option<Range<usize>>,
    /// First byte of the head (blank lines may stand before it).
    pub start: usize,
    /// First byte behind the head.
    pub end: usize,
}

/// Methods the reference's parser knows; anything else is not HTTP to it. CONNECT is refused there, too.
const METHODS: &[&str] = &[
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];

/// Most header fields that are ever looked at; a limit above it is cut to it.
pub const MAX_FIELDS: usize = 256;

/// Parses the head at `buffer[start..end]`, which ends with an empty line and has only CRLF line ends.
pub fn parse(buffer: &[u8], start: usize, end: usize, limits: &Limits) -> Result<Head, HttpError> {
    let mut fields = [const { std::mem::MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(&buffer[start..end], &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == end - start => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HttpError::FieldsTooLarge),
        _ => return Err(HttpError::Invalid),
    }
    if request.headers.len() > limits.fields {
        return Err(HttpError::FieldsTooLarge);
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(HttpError::Invalid);
    };
    if !METHODS.contains(&method) {
        return Err(HttpError::Invalid);
    }
    let range = |part: &[u8]| {
        let from = part.as_ptr() as usize - buffer.as_ptr() as usize;
        from..from + part.len()
    };
    let (path, query) = split_target(method, target, range(target.as_bytes()).start)?;
    let version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let mut head = Head {
        method: range(method.as_bytes()),
        path,
        query,
        version,
        keep_alive: version == Version::Http11,
        expects_continue: false,
        framing: Framing::Length(0),
        host: None,
        content_type: None,
        forwarded_for: None,
        forwarded_proto: None,
        start,
        end,
    };
    let mut length: Option<u64> = None;
    let mut codings = Codings::default();
    for field in request.headers.iter() {
        let value = field.value;
        match field.name.len() {
            4 if field.name.eq_ignore_ascii_case("host")
                // Two hosts could be routed differently by a proxy before us.
                && head.host.replace(range(value)).is_some() =>
            {
                return Err(HttpError::Invalid);
            }
            6 if field.name.eq_ignore_ascii_case("expect") => {
                head.expects_continue =
                    version == Version::Http11 && value.eq_ignore_ascii_case(b"100-continue");
            }
            10 if field.name.eq_ignore_ascii_case("connection")
                && tokens(value).any(|token| token.eq_ignore_ascii_case(b"close")) =>
            {
                head.keep_alive = false;
            }
            12 if field.name.eq_ignore_ascii_case("content-type") => {
                head.content_type = Some(range(value));
            }
            14 if field.name.eq_ignore_ascii_case("content-length")
                && length.replace(content_length(value)?).is_some() =>
            {
                return Err(HttpError::Invalid);
            }
            15 if field.name.eq_ignore_ascii_case("x-forwarded-for") => {
                head.forwarded_for = Some(range(value));
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => codings.add(value)?,
            17 if field.name.eq_ignore_ascii_case("x-forwarded-proto") => {
                head.forwarded_proto = Some(range(value));
            }
            _ => {}
        }
    }
    head.framing = match (codings.finish()?, length) {
        (false, length) => Framing::Length(length.unwrap_or(0)),
        (true, None) if version == Version::Http11 => Framing::Chunked,
        // Both framings at once, or chunks from a version that has none: a smuggling attempt.
        (true, _) => return Err(HttpError::Invalid),
    };
    match head.framing {
        Framing::Length(length) if limits.body != 0 && length > limits.body => Err(HttpError::BodyTooLarge),
        _ => Ok(head),
    }
}

/// Splits a target that begins at `offset` of the buffer into path and query.
fn split_target(
    method: &str,
    target: &str,
    offset: usize,
) -> Result<(Range<usize>, Range<usize>), HttpError> {
    if !target.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
        return Err(HttpError::Invalid);
    }
    let (from, rest) = if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        (0, target)
    } else {
        let scheme = if starts_with_ignore_case(target, "http://") {
            7
        } else if starts_with_ignore_case(target, "https://") {
            8
        } else {
            return Err(HttpError::Invalid);
        };
        let authority = &target[scheme..];
        let end = authority.find(['/', '?', '#']).unwrap_or(authority.len());
        if end == 0 {
            return Err(HttpError::Invalid);
        }
        (scheme + end, &authority[end..])
    };
    // A fragment is not sent by clients that know what they do; it is cut off.
    let rest = &rest[..rest.find('#').unwrap_or(rest.len())];
    let path_len = rest.find('?').unwrap_or(rest.len());
    let start = offset + from;
    Ok((start..start + path_len, start + path_len..start + rest.len()))
}

fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

fn content_length(value: &[u8]) -> Result<u64, HttpError> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::Invalid);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(HttpError::Invalid)
}

/// The transfer codings of all `Transfer-Encoding` fields, in order.
#[derive(Debug, Default)]
struct Codings {
    any: bool,
    chunked: bool,
    unknown: bool,
}

impl Codings {
    fn add(&mut self, value: &[u8]) -> Result<(), HttpError> {
        for token in tokens(value) {
            // Nothing may stand behind `chunked`: the length would be ambiguous.
            if token.is_empty() || self.chunked {
                return Err(HttpError::Invalid);
            }
            self.any = true;
            if token.eq_ignore_ascii_case(b"chunked") {
                self.chunked = true;
            } else if !token.eq_ignore_ascii_case(b"identity") {
                self.unknown = true;
            }
        }
        Ok(())
    }

    /// True for a chunked body, false when there was no transfer coding at all.
    fn finish(&self) -> Result<bool, HttpError> {
        match (self.any, self.unknown, self.chunked) {
            (false, ..) => Ok(false),
            (true, true, _) => Err(HttpError::UnknownCoding),
            (true, false, chunked) => {
                if chunked {
                    Ok(true)
                } else {
                    Err(HttpError::Invalid)
                }
            }
        }
    }
}
