//! Byte vectors recorded from the reference: entity keys, values, conversions.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use feast_prefork::feature::entity::{convert, EntityValue};
use feast_prefork::feature::entity_key::KeyLayout;
use feast_prefork::feature::types::KeyType;
use feast_prefork::feature::value;
use feast_prefork::text::pyjson;
use serde_json::Value;

fn lines(name: &str) -> Vec<(Value, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/storage").join(name);
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| (serde_json::from_str(line).unwrap(), line.to_owned())).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn entity_keys_have_the_recorded_bytes() {
    let mut checked = 0;
    for (case, _) in lines("entity_keys.jsonl") {
        let texts = |key: &str| -> Vec<String> {
            case[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
        };
        let (names, types) = (texts("join_keys"), texts("types"));
        let mut parts: Vec<(String, EntityValue<'_>)> = names
            .into_iter()
            .zip(types)
            .zip(case["values"].as_array().unwrap())
            .map(|((name, kind), value)| {
                let value = match kind.as_str() {
                    "STRING" => EntityValue::Str(value.as_str().unwrap().to_owned().into()),
                    "BYTES" => EntityValue::Bytes(unhex(value.as_str().unwrap())),
                    "INT32" => EntityValue::Int32(value.as_i64().unwrap() as i32),
                    "INT64" => EntityValue::Int64(value.as_i64().unwrap()),
                    "UNIX_TIMESTAMP" => EntityValue::Timestamp(value.as_i64().unwrap()),
                    other => panic!("type {other}"),
                };
                (name, value)
            })
            .collect();
        parts.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
        for (version, field) in [(3, "v3_hex"), (2, "v2_hex")] {
            let Some(expected) = case[field].as_str() else { continue };
            let layout = KeyLayout::new(&names, version);
            let mut key = Vec::new();
            layout.begin(&mut key);
            parts.iter().for_each(|(_, value)| layout.value(&mut key, value).unwrap());
            assert_eq!(key, unhex(expected), "{case}");
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}

#[test]
fn values_print_as_recorded() {
    let mut checked = 0;
    for (case, line) in lines("values.jsonl") {
        let bytes = unhex(case["proto_hex"].as_str().unwrap());
        let mut out = Vec::new();
        let printed = value::write(&mut out, &bytes);
        if let Some(expected) = case.get("json").and_then(Value::as_str) {
            printed.unwrap_or_else(|error| panic!("{error}: {line}"));
            let text = String::from_utf8(out).unwrap();
            // The order of a map's keys is not fixed in the reference.
            let same = text == expected
                || serde_json::from_str::<Value>(&text).unwrap()
                    == serde_json::from_str::<Value>(expected).unwrap()
                    && text.contains('{');
            assert!(same, "got {text}\nfor {line}");
        } else if let Some(body) = case.get("body").and_then(Value::as_str) {
            assert_eq!(printed.unwrap_err().to_string(), body.trim_matches('"'), "{line}");
        }
        checked += 1;
    }
    assert!(checked > 80, "{checked}");
}

/// The types an entity value can have; the others belong to writing.
fn key_type(name: &str) -> Option<KeyType> {
    Some(match name {
        "INT32" => KeyType::Int32,
        "INT64" => KeyType::Int64,
        "STRING" => KeyType::Str,
        "BYTES" => KeyType::Bytes,
        "DOUBLE" => KeyType::Double,
        "FLOAT" => KeyType::Float,
        "BOOL" => KeyType::Bool,
        "UNIX_TIMESTAMP" => KeyType::Timestamp,
        "UUID" => KeyType::Uuid,
        "TIME_UUID" => KeyType::TimeUuid,
        "DECIMAL" => KeyType::Decimal,
        "UNKNOWN" => KeyType::Inferred,
        _ => return None,
    })
}

/// The class lists of some messages have no fixed order.
fn classes(message: &str) -> Vec<String> {
    let mut parts: Vec<String> = message.split(['{', '}', ',']).map(|part| part.trim().to_owned()).collect();
    parts.sort();
    parts
}

fn json_of(hex: &str) -> String {
    let mut out = Vec::new();
    value::write(&mut out, &unhex(hex)).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn conversions_are_the_recorded_ones() {
    #[derive(serde::Deserialize)]
    struct Raw {
        input: Box<serde_json::value::RawValue>,
    }
    let mut checked = 0;
    for (case, line) in lines("conversions.jsonl") {
        let Some(kind) = key_type(case["value_type"].as_str().unwrap()) else { continue };
        let raw: Raw = serde_json::from_str(&line).unwrap();
        let input = pyjson::parse(raw.input.get().as_bytes()).unwrap().value;
        let mut out = Vec::new();
        let converted = convert(&[input], kind, &mut out);
        if let Some(message) = case.get("message").and_then(Value::as_str) {
            let got = converted.expect_err(&line);
            assert_eq!(classes(&got), classes(message), "{line}");
        } else {
            converted.unwrap_or_else(|error| panic!("{error}: {line}"));
            let mut text = Vec::new();
            out[0].write_json(&mut text);
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text, json_of(case["proto_hex"].as_str().unwrap()), "{line}");
        }
        checked += 1;
    }
    assert!(checked > 100, "{checked}");
}
