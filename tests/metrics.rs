//! Multiprocess files written by the Python client, merged and printed as it does.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::{binary, fixture};
use feast_prefork::metrics::aggregate::{merge, Family};
use feast_prefork::metrics::expose::{render, Format};

#[test]
fn directories_render_as_python_renders_them() {
    let mut wrong = Vec::new();
    for case in ["basic", "edge", "escaping", "feast", "floats", "growth", "histograms", "many_dead"] {
        let dir = fixture("metrics").join(case);
        let merged = merge(&dir.join("db")).unwrap();
        for (format, file) in [(Format::Text, "expected.prom"), (Format::OpenMetrics, "expected.om")] {
            let got = render(&merged.families, format);
            let expected = fs::read_to_string(dir.join(file)).unwrap();
            for (number, (got, expected)) in got.lines().zip(expected.lines()).enumerate() {
                if got != expected {
                    wrong.push(format!("{case}/{file}:{}\n     got {got}\n  wanted {expected}", number + 1));
                    break;
                }
            }
            if got.len() != expected.len() {
                wrong.push(format!("{case}/{file}: {} bytes instead of {}", got.len(), expected.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_damaged_file_never_hides_a_good_one() {
    let mut seen = 0;
    for entry in fs::read_dir(fixture("metrics").join("corrupt")).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        seen += 1;
        let merged = merge(&path).unwrap();
        let good = merge_good(&path);
        for family in &good {
            let found = merged.families.iter().find(|f| f.name == family.name).unwrap();
            // What is whole in the bad file may count, too.
            for (sample, found) in family.samples.iter().zip(&found.samples) {
                assert_eq!(sample.name, found.name, "{}", path.display());
                assert!(found.value >= sample.value, "{}: {found:?}", path.display());
            }
        }
    }
    assert!(seen >= 9, "{seen}");
}

/// What the good neighbour alone says.
fn merge_good(dir: &std::path::Path) -> Vec<Family> {
    let alone = tempfile::tempdir().unwrap();
    fs::copy(dir.join("counter_2.db"), alone.path().join("counter_2.db")).unwrap();
    let families = merge(alone.path()).unwrap().families;
    assert!(!families.is_empty());
    families
}

#[test]
fn the_command_prints_a_directory() {
    let dir = fixture("metrics").join("basic/db");
    for (format, file) in [("text", "basic/expected.prom"), ("openmetrics", "basic/expected.om")] {
        let output = Command::new(binary())
            .args(["metrics", "render"])
            .arg(&dir)
            .args(["--format", format])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        let expected = fs::read_to_string(fixture("metrics").join(file)).unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
    let output = Command::new(binary()).args(["metrics", "render", "/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read /nonexistent"));
}
