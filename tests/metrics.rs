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

/// Does what the recorded process did, with this server's writer.
#[test]
fn files_are_written_as_python_writes_them() {
    use feast_prefork::metrics::handles::Files;
    use feast_prefork::metrics::mapped::{key, FileKind};
    use feast_prefork::metrics::names::{Kind, Metric};
    use serde_json::Value;

    let case = fixture("metrics/writer");
    let ops: Value = serde_json::from_slice(&fs::read(case.join("ops.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut files = Files::new(dir.path(), ops["id"].as_str().unwrap());
    let mut clock = ops["start_clock"].as_f64().unwrap();
    let texts = |value: &Value| -> Vec<&'static str> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().map(|text| &*String::leak(text.as_str().unwrap().to_owned())).collect()
    };
    let text = |value: &Value| -> &'static str { String::leak(value.as_str().unwrap().to_owned()) };
    let mut metrics: Vec<(String, String, Metric<'static>)> = Vec::new();
    for op in ops["ops"].as_array().unwrap() {
        let kind = op["op"].as_str().unwrap();
        if kind == "clock" {
            clock = op["now"].as_f64().unwrap();
            continue;
        }
        let name = text(&op["name"]);
        if kind == "declare" {
            let what = op["type"].as_str().unwrap();
            let bounds: Vec<f64> = op["buckets"].as_array().map_or(Vec::new(), |list| {
                list.iter().map(|bound| bound.as_f64().unwrap_or(f64::INFINITY)).collect()
            });
            let metric = Metric {
                family: name.strip_suffix("_total").unwrap_or(name),
                kind: match what {
                    "gauge" => Kind::Gauge(text(&op["mode"])),
                    "histogram" => Kind::Histogram(Vec::leak(bounds)),
                    _ => Kind::Counter,
                },
                labels: Vec::leak(texts(&op["labelnames"])),
                help: text(&op["help"]),
            };
            metrics.push((name.to_owned(), what.to_owned(), metric));
        }
        let (_, what, metric) = metrics.iter().find(|(known, ..)| known == name).unwrap();
        if kind == "declare" && !metric.labels.is_empty() {
            continue;
        }
        let values: Vec<&str> =
            metric.labels.iter().map(|label| op["labels"][label].as_str().unwrap()).collect();
        let by = op["by"].as_f64().unwrap_or(1.0);
        let value = op["value"].as_f64().unwrap_or(0.0);
        match what.as_str() {
            "summary" => {
                let sample = |suffix: &str| key(name, &format!("{name}{suffix}"), &[], metric.help);
                let count = files.number(FileKind::Summary, &sample("_count")).unwrap();
                let sum = files.number(FileKind::Summary, &sample("_sum")).unwrap();
                if kind == "observe" {
                    files.add(count, 1.0);
                    files.add(sum, value);
                }
            }
            "histogram" => {
                let histogram = files.histogram(metric, &values).unwrap();
                if kind == "observe" {
                    files.observe(&histogram, value);
                }
            }
            _ => {
                let number = files.get(metric, &values).unwrap();
                let latest = matches!(metric.kind, Kind::Gauge("mostrecent"));
                match kind {
                    "inc" => files.add(number, by),
                    "set" => files.set_at(number, value, if latest { clock } else { 0.0 }),
                    _ => {}
                }
            }
        }
    }
    for entry in fs::read_dir(case.join("db")).unwrap() {
        let path = entry.unwrap().path();
        let got = fs::read(dir.path().join(path.file_name().unwrap())).unwrap();
        assert!(got == fs::read(&path).unwrap(), "{} differs", path.display());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), fs::read_dir(case.join("db")).unwrap().count());
}
