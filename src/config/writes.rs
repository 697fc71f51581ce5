//! The keys of `feature_store.yaml` that concern writing: batches of offline pushes, materialization, engines.

use std::time::Duration;

use super::yaml::Yaml;
use super::ConfigError;

/// How rows get into the stores.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Writes {
    /// `batch_engine`, unless it is the local one.
    pub batch_engine: Option<String>,
    /// Offline pushes are collected: rows of a batch, and how long one waits.
    pub push_batching: Option<(usize, Duration)>,
    /// `materialization.online_write_batch_size`
    pub write_batch: Option<usize>,
}

/// Reads blocks whose keys and types have been checked.
pub(super) fn of(tree: &Yaml, source: &str, warnings: &mut Vec<String>) -> Result<Writes, ConfigError> {
    let write_batch = match tree.get("materialization").and_then(|block| block.get("online_write_batch_size"))
    {
        Some(Yaml::Int(size)) => usize::try_from(*size).ok(),
        _ => None,
    };
    let push_batching = tree.get("feature_server").and_then(|block| push_batching(block, source, warnings));
    Ok(Writes { batch_engine: batch_engine(tree, source)?, push_batching, write_batch })
}

fn batch_engine(tree: &Yaml, source: &str) -> Result<Option<String>, ConfigError> {
    let wrong = |key: &str, other: &Yaml| {
        let problem = format!("expected a name, found {}", other.kind());
        ConfigError::new(format!("{source}: {key}"), problem, "name an engine, e.g. local or spark.engine")
    };
    let named = match tree.get("batch_engine") {
        None | Some(Yaml::Null) => return Ok(None),
        Some(Yaml::Str(name)) => name.clone(),
        Some(block @ Yaml::Map(_)) => match block.get("type") {
            Some(Yaml::Str(name)) => name.clone(),
            None => return Ok(None),
            Some(other) => return Err(wrong("batch_engine.type", other)),
        },
        Some(other) => return Err(wrong("batch_engine", other)),
    };
    Ok((named != "local").then_some(named))
}

/// All three settings are needed, as in the reference.
fn push_batching(block: &Yaml, source: &str, warnings: &mut Vec<String>) -> Option<(usize, Duration)> {
    let key = |name: &str| block.get(&format!("offline_push_batching_{name}"));
    if key("enabled") != Some(&Yaml::Bool(true)) {
        return None;
    }
    let number = |name: &str| match key(name) {
        Some(Yaml::Int(number)) => u64::try_from(*number).ok().filter(|number| *number > 0),
        _ => None,
    };
    let both = number("batch_size").zip(number("batch_interval_seconds"));
    if both.is_none() {
        warnings.push(format!(
            "{source}: offline push batching is enabled, but its size or interval is missing or not positive: \
             offline pushes are written one by one"
        ));
    }
    both.map(|(rows, seconds)| (rows as usize, Duration::from_secs(seconds)))
}
