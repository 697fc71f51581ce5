//! Recorded answers of the reference, replayed against the shipped binary.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;

use common::replay::{cases, difference, replay, send, DECIDED};
use common::{Repo, Server};
use serde_json::Value;

#[test]
fn kitchen_sink() {
    let server = Server::start(Repo::copy_of("kitchen_sink"), &[]);
    assert!(replay(&server, &cases("kitchen_sink/cases.jsonl")) > 295);
}

#[test]
fn versioned() {
    let server = Server::start(Repo::copy_of("kitchen_sink/versioned"), &[]);
    assert_eq!(replay(&server, &cases("kitchen_sink/versioned/cases.jsonl")), 23);
}

#[test]
fn storage_on_sqlite() {
    let repo = Repo::copy_of("storage");
    let yaml = "project: shop\nregistry: registry.db\nprovider: local\n\
                online_store: {type: sqlite, path: online_store.db}\n";
    fs::write(repo.path().join("feature_store.yaml"), yaml).unwrap();
    let server = Server::start(repo, &[]);
    assert_eq!(replay(&server, &cases("storage/cases_sqlite.jsonl")), 11);
}

/// Views computed on demand answer 501 until they are built; what is stored of them is read.
#[test]
fn on_demand_views() {
    let server = Server::start(Repo::copy_of("kitchen_sink"), &[]);
    let mut client = server.client();
    let mut computed = 0;
    let mut stored = Vec::new();
    for case in cases("kitchen_sink/cases_odfv.jsonl") {
        if case["tags"].as_array().unwrap().iter().any(|tag| tag == "stored") {
            stored.push(case);
            continue;
        }
        let got = send(&mut client, &case["request"]);
        if got.status == 501 {
            computed += 1;
            assert!(got.text().contains("computed on demand"), "{}", got.text());
        } else {
            assert_eq!(difference(&case, &got, ""), None, "{}", case["name"]);
        }
    }
    assert!(computed >= 9, "{computed}");
    assert_eq!(replay(&server, &stored), 4);
}

fn find(name: &str) -> Value {
    cases("kitchen_sink/cases.jsonl").into_iter().find(|case| case["name"] == name).unwrap()
}

#[test]
fn decided_cases_and_their_switches() {
    let lenient = Server::start(Repo::copy_of("kitchen_sink"), &[]);
    let strict =
        Server::start(Repo::copy_of("kitchen_sink"), &["--strict-content-type", "--strict-lifecycle"]);
    let (mut lenient, mut strict) = (lenient.client(), strict.client());
    for (name, _) in DECIDED {
        let case = find(name);
        let got = send(&mut lenient, &case["request"]);
        assert_eq!(got.status, 200, "{name}: {}", got.text());
        let got = send(&mut strict, &case["request"]);
        assert_eq!(difference(&case, &got, ""), None, "{name}");
    }
    let plain = [("content-type", "text/plain")];
    let got = lenient.request("POST", "/get-online-features", &plain, b"no json");
    assert_eq!(got.status, 422);
    assert!(got.text().contains("model_attributes_type"), "{}", got.text());
}
