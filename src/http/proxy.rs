//! The PROXY protocol: a balancer's word, in front of everything else, about who the client is.
//!
//! Source: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>. As with gunicorn a connection may also come without it.

use std::net::{IpAddr, SocketAddr};

/// Forms that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// A line of text.
    One,
    /// Bytes.
    Two,
    /// Either.
    Either,
}

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preamble {
    /// More bytes are needed to tell.
    Need,
    /// Nothing of the kind.
    Absent,
    /// The balancer's word.
    Present {
        /// Bytes that it takes.
        length: usize,
        /// The client; `None` = whoever made the connection.
        client: Option<SocketAddr>,
    },
}

/// A word that cannot be understood: the connection is not safe to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

const TEXT: &[u8] = b"PROXY ";
/// Longest line of version 1, with its end.
const LONGEST_LINE: usize = 107;
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const FIXED: usize = 16;
/// Longest block of version 2: addresses, and what a balancer adds to them.
const LONGEST_BLOCK: usize = 16 << 10;

/// Looks at the first bytes of a connection.
pub fn find(bytes: &[u8], versions: Versions) -> Result<Preamble, Malformed> {
    let begins = |mark: &[u8]| bytes.iter().zip(mark).all(|(found, wanted)| found == wanted);
    if versions != Versions::Two && begins(TEXT) {
        return if bytes.len() < TEXT.len() { Ok(Preamble::Need) } else { line(bytes) };
    }
    if versions != Versions::One && begins(SIGNATURE) {
        return if bytes.len() < SIGNATURE.len() { Ok(Preamble::Need) } else { block(bytes) };
    }
    Ok(Preamble::Absent)
}

fn line(bytes: &[u8]) -> Result<Preamble, Malformed> {
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() < LONGEST_LINE { Ok(Preamble::Need) } else { Err(Malformed) };
    };
    let text = std::str::from_utf8(&window[TEXT.len()..end]).map_err(|_| Malformed)?;
    let length = end + 2;
    let words: Vec<&str> = text.split(' ').collect();
    if words[0] == "UNKNOWN" {
        return Ok(Preamble::Present { length, client: None });
    }
    let [family, source, target, source_port, target_port] = words[..] else { return Err(Malformed) };
    let address = |text: &str| match (family, text.parse::<IpAddr>()) {
        ("TCP4", Ok(ip)) if ip.is_ipv4() => Ok(ip),
        ("TCP6", Ok(ip)) if ip.is_ipv6() => Ok(ip),
        _ => Err(Malformed),
    };
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(Malformed),
    };
    address(target)?;
    port(target_port)?;
    let client = SocketAddr::new(address(source)?, port(source_port)?);
    Ok(Preamble::Present { length, client: Some(client) })
}

fn block(bytes: &[u8]) -> Result<Preamble, Malformed> {
    let Some(&[command, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED) else {
        return Ok(Preamble::Need);
    };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_BLOCK {
        return Err(Malformed);
    }
    let Some(rest) = bytes.get(FIXED..length) else { return Ok(Preamble::Need) };
    let client = match (command, family) {
        // The balancer itself, to see whether somebody is there; or clients without an address.
        (0x20, _) | (0x21, 0x00 | 0x31) => None,
        (0x21, 0x11) => {
            let (ip, rest) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
            Some(SocketAddr::new(IpAddr::V4((*ip).into()), port_behind::<4>(rest)?))
        }
        (0x21, 0x21) => {
            let (ip, rest) = rest.split_first_chunk::<16>().ok_or(Malformed)?;
            Some(SocketAddr::new(IpAddr::V6((*ip).into()), port_behind::<16>(rest)?))
        }
        _ => return Err(Malformed),
    };
    Ok(Preamble::Present { length, client })
}

/// The client's port: it stands behind the server's address of `N` bytes, and the server's port follows.
fn port_behind<const N: usize>(bytes: &[u8]) -> Result<u16, Malformed> {
    match bytes.get(N..N + 4) {
        Some(&[high, low, _, _]) => Ok(u16::from_be_bytes([high, low])),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the facts: 10.0.0.5:40000 to 10.0.0.1:80.
    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x0a\x00\x00\x05\x0a\x00\x00\x01\x9c\x40\x00\x50";

    fn present(bytes: &[u8]) -> Option<SocketAddr> {
        match find(bytes, Versions::Either) {
            Ok(Preamble::Present { length, client }) => {
                assert_eq!(length, bytes.len());
                client
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_versions_name_the_client() {
        let client = Some("10.0.0.5:40000".parse().unwrap());
        assert_eq!(present(b"PROXY TCP4 10.0.0.5 10.0.0.1 40000 80\r\n"), client);
        assert_eq!(present(V2), client);
        let client = Some("[2001:db8::1]:7".parse().unwrap());
        assert_eq!(present(b"PROXY TCP6 2001:db8::1 ::1 7 80\r\n"), client);
        assert_eq!(present(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(present(b"PROXY UNKNOWN a b c d\r\n"), None);
        assert_eq!(present(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"), None);
    }

    #[test]
    fn a_word_may_come_in_pieces() {
        let text = b"PROXY TCP4 10.0.0.5 10.0.0.1 40000 80\r\n";
        for end in 0..text.len() {
            assert_eq!(find(&text[..end], Versions::Either), Ok(Preamble::Need), "{end}");
        }
        for end in 0..V2.len() {
            assert_eq!(find(&V2[..end], Versions::Two), Ok(Preamble::Need), "{end}");
        }
    }

    #[test]
    fn anything_else_is_a_request() {
        for bytes in [&b"POST / HTTP/1.1"[..], b"PUT", b"\x16\x03\x01", b"\r\nGET"] {
            assert_eq!(find(bytes, Versions::Either), Ok(Preamble::Absent));
        }
        assert_eq!(find(V2, Versions::One), Ok(Preamble::Absent));
        assert_eq!(find(b"PROXY TCP4", Versions::Two), Ok(Preamble::Absent));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "PROXY TCP4 10.0.0.5 10.0.0.1 40000\r\n",
            "PROXY TCP4 10.0.0.5 10.0.0.1 40000 80 1\r\n",
            "PROXY TCP4 ::1 10.0.0.1 40000 80\r\n",
            "PROXY TCP4 10.0.0.5 10.0.0.1 65536 80\r\n",
            "PROXY TCP4 10.0.0.5 10.0.0.1 +1 80\r\n",
            "PROXY UDP4 10.0.0.5 10.0.0.1 1 80\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(find(text.as_bytes(), Versions::One), Err(Malformed), "{text}");
        }
        assert_eq!(find(&[b"PROXY ".as_slice(), &[b'x'; 200]].concat(), Versions::One), Err(Malformed));
        let mut datagram = V2.to_vec();
        datagram[13] = 0x12;
        assert_eq!(find(&datagram, Versions::Two), Err(Malformed));
        let mut short = V2[..20].to_vec();
        short[15] = 4;
        assert_eq!(find(&short, Versions::Two), Err(Malformed));
        let mut long = V2.to_vec();
        long[14] = 0xff;
        assert_eq!(find(&long, Versions::Two), Err(Malformed));
    }
}
