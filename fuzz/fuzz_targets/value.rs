//! Any bytes are printed as JSON or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut out = Vec::new();
    if feast_prefork::feature::value::write(&mut out, input).is_ok() {
        let text = std::str::from_utf8(&out).expect("UTF-8");
        let mut parsed = feast_prefork::text::pyjson::parse(text.as_bytes()).expect("JSON").value;
        let mut again = Vec::new();
        assert!(parsed.write(&mut again), "{text}");
        parsed = feast_prefork::text::pyjson::Json::Null;
        let _ = parsed;
    }
});
