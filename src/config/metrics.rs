//! `feature_server.metrics`: what is counted.

use super::yaml::Yaml;
use crate::metrics::meters::Categories;

/// Reads a block whose keys and types have been checked; missing keys keep Feast's defaults.
pub(super) fn categories(block: Option<&Yaml>) -> Categories {
    let defaults = Categories::default();
    let Some(block) = block else { return defaults };
    let flag = |key: &str, default: bool| match block.get(key) {
        Some(Yaml::Bool(on)) => *on,
        _ => default,
    };
    let bins = match block.get("feature_count_bins") {
        Some(Yaml::List(items)) => {
            let number = |item: &Yaml| if let Yaml::Int(n) = item { u64::try_from(*n).ok() } else { None };
            items.iter().filter_map(number).collect()
        }
        _ => defaults.bins,
    };
    Categories {
        resource: flag("resource", true),
        request: flag("request", true),
        online_features: flag("online_features", true),
        push: flag("push", true),
        materialization: flag("materialization", true),
        freshness: flag("freshness", true),
        offline_features: flag("offline_features", true),
        audit: flag("audit_logging", false),
        bins,
    }
}
