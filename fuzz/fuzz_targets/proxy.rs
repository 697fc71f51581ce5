//! A balancer's word means the same however many bytes follow it, and is not there before it is whole.
#![no_main]

use feast_prefork::http::proxy::{find, Preamble, Versions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    for versions in [Versions::One, Versions::Two, Versions::Either] {
        let whole = find(input, versions);
        if let Ok(Preamble::Present { length, .. }) = whole {
            assert!(length <= input.len());
            assert_eq!(find(&input[..length], versions), whole);
            for end in 0..length {
                assert_eq!(find(&input[..end], versions), Ok(Preamble::Need));
            }
        }
    }
});
