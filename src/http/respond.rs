//! Response heads: lower-case names in the reference's order.

/// The parts of a head.
#[derive(Debug, Clone, Copy)]
pub struct ResponseHead<'r> {
    /// Status code.
    pub status: u16,
    /// `date`
    pub date: &'r str,
    /// `allow`
    pub allow: Option<&'r str>,
    /// `content-length`
    pub length: usize,
    /// `content-type`
    pub content_type: Option<&'r str>,
    /// `location`
    pub location: Option<&'r str>,
    /// `retry-after` in seconds.
    pub retry_after: Option<u32>,
    /// Announce that the connection ends.
    pub close: bool,
}

/// What a client that waits for permission to send its body gets.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Appends the head.
pub fn write(out: &mut Vec<u8>, head: &ResponseHead<'_>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(head.status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(head.status).as_bytes());
    out.extend_from_slice(b"\r\ndate: ");
    out.extend_from_slice(head.date.as_bytes());
    out.extend_from_slice(b"\r\nserver: uvicorn\r\n");
    let mut field = |name: &[u8], value: &str| {
        out.extend_from_slice(name);
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    };
    if let Some(allow) = head.allow {
        field(b"allow: ", allow);
    }
    // A plain-text error of the parser names its type first, everything else its length.
    let type_first = head.content_type.is_some_and(|text| text.starts_with("text/plain"));
    if let (true, Some(text)) = (type_first, head.content_type) {
        field(b"content-type: ", text);
    }
    field(b"content-length: ", itoa::Buffer::new().format(head.length));
    if let (false, Some(text)) = (type_first, head.content_type) {
        field(b"content-type: ", text);
    }
    if let Some(location) = head.location {
        field(b"location: ", location);
    }
    if let Some(seconds) = head.retry_after {
        field(b"retry-after: ", itoa::Buffer::new().format(seconds));
    }
    if head.close {
        field(b"connection: ", "close");
    }
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase of a status this server sends, as Python 3.11 words it.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Long",
        422 => "Unprocessable Entity",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stand_in_the_reference_order() {
        let mut out = Vec::new();
        let head = ResponseHead {
            status: 405,
            date: "Fri, 20 Nov 2026 15:41:48 GMT",
            allow: Some("POST"),
            length: 31,
            content_type: Some("application/json"),
            location: None,
            retry_after: None,
            close: true,
        };
        write(&mut out, &head);
        let expected = "HTTP/1.1 405 Method Not Allowed\r\ndate: Fri, 20 Nov 2026 15:41:48 GMT\r\n\
                        server: uvicorn\r\nallow: POST\r\ncontent-length: 31\r\n\
                        content-type: application/json\r\nconnection: close\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
