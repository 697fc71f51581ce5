//! Recorded exchanges: read from a fixture, sent, compared.

use std::collections::BTreeSet;
use std::fs;

use base64::Engine;
use serde_json::Value;

use super::{fixture, Client, Response, Server};

/// Cases that a decision changes, each with its reason; they have tests of their own below.
pub const DECIDED: &[(&str, &str)] = &[
    ("state_materializing", "decision 20: a view that is being materialized is served"),
    ("content_type_text_plain", "decision 7: JSON is parsed whatever its type"),
    ("content_type_form", "decision 7"),
    ("content_type_absent", "decision 7"),
    ("content_type_json5", "decision 7"),
];

/// Paths that later work brings.
const LATER: &[&str] = &["/chat", "/docs", "/redoc", "/openapi.json", "/static"];

pub fn is_later(path: &str) -> bool {
    LATER.iter().any(|later| path == *later || path.starts_with(&format!("{later}/")))
}

/// The body of a request as it was recorded: the order of its keys matters.
#[derive(serde::Deserialize)]
struct Recorded {
    request: RecordedRequest,
}

#[derive(serde::Deserialize)]
struct RecordedRequest {
    body: Option<Box<serde_json::value::RawValue>>,
}

pub fn cases(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(fixture(file)).unwrap();
    let case = |line: &str| {
        let mut case: Value = serde_json::from_str(line).unwrap();
        let recorded: Recorded = serde_json::from_str(line).unwrap();
        if let Some(body) = recorded.request.body {
            case["request"]["body_text"] = Value::from(body.get());
        } else if case["request"].get("body").is_some() {
            case["request"]["body_text"] = Value::from("null");
        }
        case
    };
    text.lines().map(case).collect()
}

pub fn send(client: &mut Client, request: &Value) -> Response {
    let method = request["method"].as_str().unwrap();
    let headers: Vec<(&str, &str)> = request["headers"]
        .as_object()
        .map(|headers| headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect())
        .unwrap_or_default();
    let body = if let Some(text) = request.get("body_text") {
        text.as_str().unwrap().as_bytes().to_vec()
    } else if let Some(encoded) = request.get("body_b64") {
        base64::engine::general_purpose::STANDARD.decode(encoded.as_str().unwrap()).unwrap()
    } else {
        Vec::new()
    };
    client.request(method, request["path"].as_str().unwrap(), &headers, &body)
}

/// Puts the columns of each range that may come in any order into one order.
pub fn in_order(body: &Value, unordered: &Value) -> Value {
    let mut body = body.clone();
    for range in unordered.as_array().into_iter().flatten() {
        let (from, to) = (range[0].as_u64().unwrap() as usize, range[1].as_u64().unwrap() as usize);
        let names = body["metadata"]["feature_names"].as_array().unwrap()[from..to].to_vec();
        let results = body["results"].as_array().unwrap()[from..to].to_vec();
        let mut pairs: Vec<(Value, Value)> = names.into_iter().zip(results).collect();
        pairs.sort_by_key(|(name, result)| (name.to_string(), result.to_string()));
        for (offset, (name, result)) in pairs.into_iter().enumerate() {
            body["metadata"]["feature_names"][from + offset] = name;
            body["results"][from + offset] = result;
        }
    }
    body
}

pub fn difference(case: &Value, got: &Response, base: &str) -> Option<String> {
    let expected = &case["response"];
    if got.status != expected["status"].as_u64().unwrap() as u16 {
        return Some(format!("status {} instead of {}, body {}", got.status, expected["status"], got.text()));
    }
    let matched = case.get("match").and_then(Value::as_str).unwrap_or("all");
    if matched == "status" {
        return None;
    }
    for (name, value) in expected["headers"].as_object().into_iter().flatten() {
        let found = got.header(name);
        let same = match (name.as_str(), value.as_str()) {
            ("allow", Some(value)) => {
                let set = |text: &str| text.split(", ").map(str::to_owned).collect::<BTreeSet<_>>();
                found.is_some_and(|found| set(found) == set(value))
            }
            (_, Some(value)) => found == Some(value.replace("{base}", base).as_str()),
            (_, None) => found.is_none(),
        };
        if !same {
            return Some(format!("header {name}: {found:?} instead of {value}"));
        }
    }
    if matched == "headers" {
        return None;
    }
    if let Some(text) = expected.get("body_text") {
        return (got.text() != text.as_str().unwrap()).then(|| format!("body {:?}", got.text()));
    }
    let wanted = expected.get("body")?;
    let Ok(body) = serde_json::from_slice::<Value>(&got.body) else {
        return Some(format!("not JSON: {}", got.text()));
    };
    let unordered = case.get("unordered").unwrap_or(&Value::Null);
    if in_order(&body, unordered) != in_order(wanted, unordered) {
        return Some(format!("\n     got {body}\n  wanted {wanted}"));
    }
    None
}

pub fn replay(server: &Server, cases: &[Value]) -> usize {
    let base = "http://testhost";
    let mut client = server.client();
    let mut failures = Vec::new();
    let mut replayed = 0;
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let path = case["request"]["path"].as_str().unwrap();
        if DECIDED.iter().any(|(decided, _)| *decided == name) || is_later(path) {
            continue;
        }
        replayed += 1;
        let got = send(&mut client, &case["request"]);
        if let Some(difference) = difference(case, &got, base) {
            failures.push(format!("{name}: {difference}"));
        }
    }
    assert!(failures.is_empty(), "{} of {replayed} differ:\n{}", failures.len(), failures.join("\n"));
    replayed
}
