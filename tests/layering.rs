//! Dependencies point one way: a module uses only modules of lower layers (and its own).
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The table of `src/lib.rs` and `docs/architecture.md`, lowest first.
const LAYERS: &[&[&str]] = &[
    &["text", "os", "exit"],
    &["net", "tls", "http", "registry", "logging", "config", "ipc", "metrics"],
    &["feature"],
    &["online", "offline"],
    &["api"],
    &["jobs", "define"],
    &["worker", "scrape"],
    &["master"],
    &["cli", "main", "lib"],
];
/// Edges inside one layer that are allowed: settings name what they configure.
const WITHIN: &[(&str, &str)] = &[
    ("config", "http"),
    ("config", "logging"),
    ("config", "metrics"),
    ("config", "registry"),
    ("config", "tls"),
    ("metrics", "logging"),
    ("tls", "net"),
];

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|modules| modules.contains(&module))
        .unwrap_or_else(|| panic!("module {module} has no layer: add it to the table"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    files
        .into_iter()
        .map(|path| {
            let first = path.strip_prefix(&src).unwrap().components().next().unwrap();
            let module = first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (module, path, text)
        })
        .collect()
}

/// The part of a file that is not its unit tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

#[test]
fn modules_use_lower_layers_only() {
    let mut wrong = Vec::new();
    for (module, path, text) in all() {
        for (number, line) in code(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                // Macros live at the root.
                if ["critical", "shared_words"].contains(&used.as_str()) || used == module {
                    continue;
                }
                let (from, to) = (layer(&module), layer(&used));
                if to > from || (to == from && !WITHIN.contains(&(module.as_str(), used.as_str()))) {
                    wrong.push(format!("{}:{}: {module} uses {used}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_lives_in_os() {
    for (module, path, text) in all() {
        let uses = code(&text).lines().any(|line| {
            let line = line.split("//").next().unwrap();
            line.contains("unsafe ") || line.contains("unsafe_code")
        });
        assert!(!uses || module == "os", "{} has unsafe code", path.display());
    }
}

#[test]
fn files_stay_small() {
    for (_, path, text) in all() {
        let lines = code(&text).lines().count();
        assert!(lines <= 700, "{} has {lines} lines without tests", path.display());
    }
}

#[test]
fn files_say_what_they_are_for() {
    for (_, path, text) in all() {
        assert!(text.starts_with("//! "), "{} does not begin with its question", path.display());
    }
}
