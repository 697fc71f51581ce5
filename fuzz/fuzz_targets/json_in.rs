//! Any body is a request or a refusal; what the fast reader accepts, the exact one accepts.
#![no_main]

use feast_prefork::api::json_in::{read_exact, read_fast, Buffers};
use feast_prefork::api::Answer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut answer = Answer::default();
    let exact = read_exact(input, None, false, &mut answer);
    let fast = read_fast(input, &mut Buffers::default());
    if let Some(fast) = fast {
        // The fast reader leaves the features to be parsed with the plan.
        if let (Some(exact), Some(features)) = (&exact, fast.features.parse()) {
            assert_eq!(fast.full_names, exact.full_names);
            assert_eq!(fast.service, exact.service);
            assert_eq!(Some(features), exact.features.parse());
            assert_eq!(fast.entities.names, exact.entities.names);
            for index in 0..fast.entities.names.len() {
                assert_eq!(fast.entities.column(index), exact.entities.column(index));
            }
        }
    }
});
