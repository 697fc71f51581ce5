//! The parser sees the same bytes whole and in pieces; both must agree, and nothing may panic.
#![no_main]

use feast_prefork::http::{body, Framing, Limits, Parsed, Parser};
use libfuzzer_sys::fuzz_target;

fn run(input: &[u8], step: usize) -> Option<Result<(usize, Vec<u8>), feast_prefork::http::HttpError>> {
    let limits = Limits { body: 1 << 20, ..Limits::default() };
    let mut parser = Parser::new();
    let mut seen = 0;
    loop {
        seen = (seen + step).min(input.len());
        loop {
            match parser.advance(&input[..seen], &limits) {
                Ok(Parsed::Need) => break,
                Ok(Parsed::NeedContinue) => {}
                Ok(Parsed::Request { end }) => {
                    let head = parser.head().expect("a request has a head");
                    let mut data = Vec::new();
                    match head.framing {
                        Framing::Chunked => body::collect(input, head.end, &mut data),
                        Framing::Length(_) => data.extend_from_slice(&input[head.end..end]),
                    }
                    return Some(Ok((end, data)));
                }
                Err(error) => return Some(Err(error)),
            }
        }
        if seen == input.len() {
            return None;
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let whole = run(input, input.len().max(1));
    assert_eq!(run(input, 1), whole);
    assert_eq!(run(input, 7), whole);
});
