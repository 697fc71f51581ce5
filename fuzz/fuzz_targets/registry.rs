//! Any bytes are a registry or an error, never a panic.
#![no_main]

use feast_prefork::registry::snapshot::SnapshotRules;
use feast_prefork::registry::Snapshot;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let rules = SnapshotRules { versioning: true, serve_while_materializing: true };
    if let Ok(snapshot) = Snapshot::decode(input, "kitchen_sink", rules, 1) {
        for view in snapshot.views() {
            let features: Vec<String> =
                view.features.iter().map(|field| format!("{}:{}", view.name, field.name)).collect();
            let shape = feast_prefork::feature::plan::Shape {
                service: None,
                features: &features,
                full_names: true,
                version_metadata: true,
                entity_names: &["driver_id", "x"],
            };
            let _ = feast_prefork::feature::plan::Plan::compile(&shape, &snapshot, 3);
        }
    }
});
