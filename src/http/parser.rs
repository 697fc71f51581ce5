//! One request at a time out of a growing buffer, at a cost linear in its bytes however they are cut.

use super::body::{is_token, Chunks};
use super::{head, Framing, Head, HttpError, Limits};

/// Longest method of the known ones, with room to spare.
const MAX_METHOD: usize = 20;

/// What the buffer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// Not enough yet.
    Need,
    /// Head complete, body not; the client waits for `100 Continue`. Reported once.
    NeedContinue,
    /// A whole request, which ends before `end`.
    Request {
        /// First byte behind the request.
        end: usize,
    },
}

/// Parses the request at the front of a buffer. Offsets count from the buffer's start; the buffer may only
/// grow at its end until the request is taken out, and then a new parser starts.
#[derive(Debug, Clone, Default)]
pub struct Parser {
    /// First byte of the request line: blank lines before it are skipped.
    start: usize,
    /// First byte not yet searched for a line end.
    scanned: usize,
    /// First byte of the line being read.
    line_start: usize,
    lines: usize,
    method_checked: bool,
    continue_reported: bool,
    head: Option<Head>,
    chunks: Option<Chunks>,
    /// Where the request ends, once that is known.
    end: Option<usize>,
}

impl Parser {
    /// A parser at the start of a request.
    pub fn new() -> Self {
        Self::default()
    }

    /// The head, once it is complete.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// True once the head is complete (the body deadline runs then, not the header deadline).
    pub fn in_body(&self) -> bool {
        self.head.is_some()
    }

    /// Looks at the buffer, which holds at least the bytes of the last call.
    pub fn advance(&mut self, buffer: &[u8], limits: &Limits) -> Result<Parsed, HttpError> {
        if self.head.is_none() {
            match self.find_head(buffer, limits)? {
                Some(end) => {
                    let head = head::parse(buffer, self.start, end, limits)?;
                    if head.framing == Framing::Chunked {
                        self.chunks = Some(Chunks::new(end));
                    }
                    self.head = Some(head);
                }
                None => return Ok(Parsed::Need),
            }
        }
        let Some(head) = &self.head else { return Ok(Parsed::Need) };
        if let Some(end) = self.end {
            return Ok(Parsed::Request { end });
        }
        self.end = match (&mut self.chunks, head.framing) {
            (Some(chunks), _) => chunks.advance(buffer, limits)?,
            (None, Framing::Length(length)) => {
                // On 64-bit targets a length that fits no buffer never completes; limits refuse it before.
                let end = head.end.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
                (buffer.len() >= end).then_some(end)
            }
            (None, Framing::Chunked) => None,
        };
        Ok(match self.end {
            Some(end) => Parsed::Request { end },
            None if head.expects_continue && !self.continue_reported && buffer.len() == head.end => {
                self.continue_reported = true;
                Parsed::NeedContinue
            }
            None => Parsed::Need,
        })
    }

    /// Finds the end of the head line by line: every line ends with CRLF and keeps its limit.
    fn find_head(&mut self, buffer: &[u8], limits: &Limits) -> Result<Option<usize>, HttpError> {
        if !self.method_checked {
            while buffer[self.start..].starts_with(b"\r\n") {
                self.start += 2;
                if limits.request_line != 0 && self.start > limits.request_line {
                    return Err(HttpError::UriTooLong);
                }
            }
            if matches!(&buffer[self.start..], [] | [b'\r']) {
                return Ok(None);
            }
            let known = &buffer[self.start..buffer.len().min(self.start + MAX_METHOD + 1)];
            let length = known.iter().position(|&byte| !is_token(byte));
            match length {
                Some(at @ 1..) if known[at] == b' ' => self.method_checked = true,
                Some(_) => return Err(HttpError::Invalid),
                None if known.len() > MAX_METHOD => return Err(HttpError::Invalid),
                None => return Ok(None),
            }
            self.line_start = self.start;
            self.scanned = self.start;
        }
        while let Some(found) = memchr::memchr(b'\n', &buffer[self.scanned..]) {
            let newline = self.scanned + found;
            let ended = newline > self.line_start && buffer[newline - 1] == b'\r';
            let length = newline - self.line_start - usize::from(ended);
            // The length first: cut into pieces, the line would have been too long before its end came.
            if length > 0 {
                self.check_line(length, limits)?;
            }
            if !ended {
                return Err(HttpError::Invalid);
            }
            self.scanned = newline + 1;
            if length == 0 {
                return Ok(Some(newline + 1));
            }
            self.lines += 1;
            self.line_start = newline + 1;
        }
        self.scanned = buffer.len();
        // The line's end is not here; a CR at the very end may belong to it.
        let partial = buffer.len() - self.line_start;
        let without_cr = partial - usize::from(partial > 0 && buffer.ends_with(b"\r"));
        self.check_line(without_cr, limits)?;
        Ok(None)
    }

    /// Checks the length of the line being read, of which `length` bytes are known.
    fn check_line(&self, length: usize, limits: &Limits) -> Result<(), HttpError> {
        if self.lines == 0 {
            if limits.request_line != 0 && length > limits.request_line {
                return Err(HttpError::UriTooLong);
            }
        } else if length + 2 > limits.field_size || (length > 0 && self.lines > limits.fields) {
            return Err(HttpError::FieldsTooLarge);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body;

    fn whole(input: &[u8]) -> Result<Option<(Head, usize)>, HttpError> {
        let mut parser = Parser::new();
        loop {
            match parser.advance(input, &Limits::default())? {
                Parsed::Need => return Ok(None),
                Parsed::NeedContinue => {}
                Parsed::Request { end } => return Ok(Some((parser.head().unwrap().clone(), end))),
            }
        }
    }

    /// Feeds `input` in pieces; the result must not depend on the cuts.
    fn in_pieces(input: &[u8], cuts: &[usize]) -> Result<Option<(Head, usize)>, HttpError> {
        let mut parser = Parser::new();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        cuts.push(input.len());
        cuts.sort_unstable();
        for cut in cuts {
            loop {
                match parser.advance(&input[..cut], &Limits::default())? {
                    Parsed::Need => break,
                    Parsed::NeedContinue => {}
                    Parsed::Request { end } => {
                        return Ok(Some((parser.head().unwrap().clone(), end)));
                    }
                }
            }
        }
        Ok(None)
    }

    const POST: &[u8] = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET";

    #[test]
    fn a_request_ends_where_its_body_ends() {
        let (head, end) = whole(POST).unwrap().unwrap();
        assert_eq!(&POST[end..], b"GET");
        assert_eq!(&POST[head.path.clone()], b"/a");
        assert_eq!(&POST[head.query.clone()], b"?b=c");
        assert!(head.keep_alive);
    }

    #[test]
    fn chunks_are_found_and_collected() {
        let input = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                      5;a=\"b\"\r\nhello\r\n006\r\n world\r\n0\r\nX-T: 1\r\n\r\nrest";
        let (head, end) = whole(input).unwrap().unwrap();
        assert_eq!(&input[end..], b"rest");
        let mut data = Vec::new();
        body::collect(input, head.end, &mut data);
        assert_eq!(data, b"hello world");
    }

    #[test]
    fn limits_have_their_own_answers() {
        let long_line = [b"GET /".as_slice(), &[b'a'; 5000]].concat();
        assert_eq!(whole(&long_line), Err(HttpError::UriTooLong));
        let long_field = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'a'; 9000]].concat();
        assert_eq!(whole(&long_field), Err(HttpError::FieldsTooLarge));
        let many = [b"GET / HTTP/1.1\r\n".as_slice(), &b"A: b\r\n".repeat(101), b"\r\n"].concat();
        assert_eq!(whole(&many), Err(HttpError::FieldsTooLarge));
        let hundred = [b"GET / HTTP/1.1\r\n".as_slice(), &b"A: b\r\n".repeat(100), b"\r\n"].concat();
        assert!(whole(&hundred).unwrap().is_some());
        let big = b"POST / HTTP/1.1\r\nContent-Length: 67108865\r\n\r\n";
        assert_eq!(whole(big), Err(HttpError::BodyTooLarge));
    }

    #[test]
    fn continue_is_asked_for_once_and_only_while_the_body_is_missing() {
        let head = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
        let mut parser = Parser::new();
        assert_eq!(parser.advance(head, &Limits::default()), Ok(Parsed::NeedContinue));
        assert_eq!(parser.advance(head, &Limits::default()), Ok(Parsed::Need));
        let with_body = [head.as_slice(), b"x"].concat();
        let end = with_body.len();
        assert_eq!(parser.advance(&with_body, &Limits::default()), Ok(Parsed::Request { end }));
        assert_eq!(whole(&with_body).unwrap().unwrap().1, end);
    }

    fn request_like() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
        use proptest::prelude::*;
        let line = prop_oneof![
            Just(b"GET / HTTP/1.1\r\n".to_vec()),
            Just(b"POST /x HTTP/1.0\r\n".to_vec()),
            Just(b"Host: a\r\n".to_vec()),
            Just(b"Content-Length: 5\r\n".to_vec()),
            Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
            Just(b"Connection: close\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"5\r\nhello\r\n".to_vec()),
            Just(b"0\r\n\r\n".to_vec()),
            Just(b"hello".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(line, 0..9).prop_map(|lines| lines.concat())
    }

    proptest::proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_cuts(
            input in request_like(),
            cuts in proptest::collection::vec(0_usize..200, 0..8),
        ) {
            let every: Vec<usize> = (0..=input.len()).collect();
            let expected = whole(&input);
            proptest::prop_assert_eq!(&in_pieces(&input, &cuts), &expected);
            proptest::prop_assert_eq!(&in_pieces(&input, &every), &expected);
        }

        #[test]
        fn any_bytes_are_read_without_panic(input: Vec<u8>) {
            if let Ok(Some((head, _))) = whole(&input) {
                body::collect(&input, head.end, &mut Vec::new());
            }
        }
    }
}
