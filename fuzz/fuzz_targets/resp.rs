//! Replies of a store are the same whole and in pieces, and as the redis crate reads them; nothing may panic.
#![no_main]

use feast_prefork::online::redis::resp::{next, Token};
use libfuzzer_sys::fuzz_target;

/// The tokens of `input` when it comes `step` bytes at a time, and whether it was refused.
fn run(input: &[u8], step: usize) -> (Vec<String>, bool) {
    let (mut tokens, mut at, mut seen) = (Vec::new(), 0, 0);
    while seen < input.len() {
        seen = (seen + step).min(input.len());
        loop {
            match next(&input[at..seen]) {
                Ok(Some((token, length))) => {
                    tokens.push(format!("{token:?}"));
                    at += length;
                }
                Ok(None) => break,
                Err(_) => return (tokens, true),
            }
        }
    }
    (tokens, false)
}

fuzz_target!(|input: &[u8]| {
    let whole = run(input, input.len().max(1));
    assert_eq!(run(input, 1), whole);
    assert_eq!(run(input, 7), whole);
    if let Ok(Some((Token::Bulk(Some(bytes)), length))) = next(input) {
        let oracle = redis::parse_redis_value(&input[..length]).expect("one whole value");
        assert_eq!(oracle, redis::Value::BulkString(bytes.to_vec()));
    }
});
