//! How do bytes become a request, and an answer bytes?
//!
//! Sans-I/O HTTP/1.1: the parser looks at a buffer and says what it holds; the caller owns sockets, buffers
//! and clocks. Strict where leniency is a security hole (RFC 9112 framing), lenient nowhere else. What must
//! not happen here: sockets, time, routes.

pub mod body;
pub mod date;
pub mod head;
pub mod parser;
pub mod proxy;
pub mod respond;

pub use head::{Framing, Head, Version};
pub use parser::{Parsed, Parser};

/// Bounds on what a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the request line without its end; 0 = unlimited.
    pub request_line: usize,
    /// Number of header fields.
    pub fields: usize,
    /// Bytes of one header line with its end.
    pub field_size: usize,
    /// Bytes of the body; 0 = unlimited.
    pub body: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { request_line: 4094, fields: 100, field_size: 8190, body: 64 << 20 }
    }
}

/// A request that is not served. Every one of these closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not HTTP, or HTTP that two parties could read differently.
    #[error("invalid HTTP request")]
    Invalid,
    /// 414
    #[error("request line too long")]
    UriTooLong,
    /// 431
    #[error("header fields too large")]
    FieldsTooLarge,
    /// 413
    #[error("request body too large")]
    BodyTooLarge,
    /// 501
    #[error("unknown transfer coding")]
    UnknownCoding,
    /// 408
    #[error("request not completed in time")]
    Timeout,
    /// 400
    #[error("a malformed PROXY line")]
    BadProxyLine,
    /// 403
    #[error("a PROXY line from a peer that is not trusted")]
    Untrusted,
}

impl HttpError {
    /// Status code and plain-text body. The text of 400 is the reference's.
    pub fn answer(self) -> (u16, &'static str) {
        match self {
            Self::Invalid => (400, "Invalid HTTP request received."),
            Self::UriTooLong => (414, "Request line too long."),
            Self::FieldsTooLarge => (431, "Request header fields too large."),
            Self::BodyTooLarge => (413, "Request body too large."),
            Self::UnknownCoding => (501, "Unknown transfer coding."),
            Self::Timeout => (408, "Request not completed in time."),
            Self::BadProxyLine => (400, "Invalid PROXY line."),
            Self::Untrusted => (403, "PROXY line from an address that may not send one."),
        }
    }
}
