//! The demo repository: the driver statistics of Feast's documentation, made without Python.
//!
//! The registry holds the same messages that `feast apply` writes for these definitions, and the online store
//! the same rows that materializing them writes, so that Feast's SDK can open and use both.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::feature::cell::{self, Cell};
use crate::feature::encode;
use crate::feature::entity::EntityValue;
use crate::feature::entity_key::KeyLayout;
use crate::feature::plan::table_name;
use crate::feature::rows::Rows;
use crate::feature::zone::LocalZone;
use crate::config::settings::Journal;
use crate::online::sqlite_write::{create_table, SqliteWriter};
use crate::online::OnlineWriter;
use crate::registry::wire::{put_bytes, put_int, put_message, put_str};

/// Project of the demo.
const PROJECT: &str = "feast_quickstart";
/// Drivers that have data.
pub(super) const DRIVERS: [i64; 5] = [1001, 1002, 1003, 1004, 1005];

const YAML: &str = "project: feast_quickstart
registry: data/registry.db
provider: local
online_store:
    type: sqlite
    path: data/online_store.db
entity_key_serialization_version: 3
auth:
    type: no_auth
";

const FLOAT: i64 = 6;
const INT64: i64 = 4;
/// Features of both views: name, `ValueType` number, description.
const FEATURES: [(&str, i64, &str); 3] =
    [("conv_rate", FLOAT, ""), ("acc_rate", FLOAT, ""), ("avg_daily_trips", INT64, "Average daily trips")];
const VIEWS: [&str; 2] = ["driver_hourly_stats", "driver_hourly_stats_fresh"];

/// Makes the repository at `dir`, which must not exist. It appears whole or not at all.
pub(super) fn make(dir: &Path, version_id: &str, now: (i64, i32)) -> io::Result<()> {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let building = dir.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::create_dir_all(building.join("data"))?;
    let made = fill(&building, version_id, now).and_then(|()| fs::rename(&building, dir));
    if made.is_err() {
        let _ = fs::remove_dir_all(&building);
    }
    made
}

fn fill(dir: &Path, version_id: &str, now: (i64, i32)) -> io::Result<()> {
    fs::write(dir.join("feature_store.yaml"), YAML)?;
    fs::write(dir.join("data/registry.db"), registry(version_id, now))?;
    fill_store(&dir.join("data/online_store.db"), now.0).map_err(io::Error::other)
}

fn fill_store(path: &Path, now: i64) -> rusqlite::Result<()> {
    let connection = Connection::open(path)?;
    // The last full hour is when the rows happened.
    let event = (now - now.rem_euclid(3600)) * 1_000_000_000;
    let layout = KeyLayout::new(&["driver_id"], 3);
    let mut views = Vec::new();
    for view in VIEWS {
        let table = table_name(PROJECT, view);
        create_table(&connection, &table)?;
        let features = FEATURES.iter().map(|(name, _, _)| (*name).to_owned()).collect();
        let mut rows = Rows::new(view, view, &table, features);
        for (index, driver) in DRIVERS.into_iter().enumerate() {
            let step = index as f64;
            let cells = [
                Cell::Float(0.25 + step * 0.125),
                Cell::Float(0.9 - step * 0.1),
                Cell::Int(100 + 137 * index as i64),
            ];
            let pushed = rows.push(
                event,
                Some(event),
                |out| {
                    layout.begin(out);
                    layout.value(out, &EntityValue::Int64(driver)).map_err(|error| error.message())
                },
                |feature, out| {
                    encode::encode(FEATURES[feature].1 as u32, &cell::INT64, &cells[feature], out)
                },
            );
            pushed.map_err(|_| rusqlite::Error::InvalidQuery)?;
        }
        views.push(rows);
    }
    let mut writer = SqliteWriter::new(path, LocalZone::of_process(), Journal::Keep, Duration::from_secs(5));
    writer.write(&views).map_err(|_| rusqlite::Error::InvalidQuery)
}

fn put_time(out: &mut Vec<u8>, number: u32, (seconds, nanos): (i64, i32)) {
    put_message(out, number, |out| {
        put_int(out, 1, seconds);
        put_int(out, 2, i64::from(nanos));
    });
}

/// `created_timestamp` and `last_updated_timestamp` of a `meta` message.
fn put_meta(out: &mut Vec<u8>, number: u32, now: (i64, i32), first: u32) {
    put_message(out, number, |out| {
        put_time(out, first, now);
        put_time(out, first + 1, now);
    });
}

/// A serialized `feast.core.Registry` with one entity, two views over one file, and three services.
fn registry(version_id: &str, now: (i64, i32)) -> Vec<u8> {
    let mut out = Vec::new();
    put_message(&mut out, 1, |out| put_entity(out, "driver", INT64, "driver_id", now));
    put_message(&mut out, 1, |out| put_entity(out, "__dummy", 0, "__dummy_id", now));
    put_str(&mut out, 3, "1");
    put_str(&mut out, 4, version_id);
    put_time(&mut out, 5, now);
    for view in VIEWS {
        put_message(&mut out, 6, |out| put_view(out, view, view.ends_with("_fresh"), now));
    }
    let services = [
        ("driver_activity_v1", VIEWS[0], 1),
        ("driver_activity_v2", VIEWS[0], 3),
        ("driver_activity_v3", VIEWS[1], 3),
    ];
    for (name, view, features) in services {
        put_message(&mut out, 7, |out| put_service(out, name, view, features, now));
    }
    put_message(&mut out, 12, |out| put_file_source(out, Some(PROJECT), true, now));
    put_message(&mut out, 12, |out| put_push_source(out, Some(PROJECT), now));
    put_message(&mut out, 17, |out| {
        put_message(out, 1, |out| put_str(out, 1, PROJECT));
        put_meta(out, 2, now, 1);
    });
    out
}

fn put_entity(out: &mut Vec<u8>, name: &str, value_type: i64, join_key: &str, now: (i64, i32)) {
    put_message(out, 1, |out| {
        put_str(out, 1, name);
        put_int(out, 2, value_type);
        put_str(out, 4, join_key);
        put_str(out, 9, PROJECT);
    });
    put_meta(out, 2, now, 1);
}

fn put_feature(out: &mut Vec<u8>, number: u32, (name, value_type, description): (&str, i64, &str)) {
    put_message(out, number, |out| {
        put_str(out, 1, name);
        put_int(out, 2, value_type);
        put_str(out, 4, description);
    });
}

/// The file the views would be materialized from.
fn put_file_source(out: &mut Vec<u8>, project: Option<&str>, with_class: bool, now: (i64, i32)) {
    put_int(out, 1, 1);
    put_str(out, 3, "event_timestamp");
    put_str(out, 5, "created");
    put_message(out, 11, |out| put_str(out, 2, "data/driver_stats.parquet"));
    if with_class {
        put_str(out, 17, "feast.infra.offline_stores.file_source.FileSource");
    }
    put_str(out, 20, "driver_hourly_stats_source");
    put_str(out, 21, project.unwrap_or_default());
    put_meta(out, 50, now, 3);
}

fn put_push_source(out: &mut Vec<u8>, project: Option<&str>, now: (i64, i32)) {
    put_int(out, 1, 9);
    put_str(out, 3, "event_timestamp");
    put_str(out, 5, "created");
    put_str(out, 17, "feast.data_source.PushSource");
    put_str(out, 20, "driver_stats_push_source");
    put_str(out, 21, project.unwrap_or_default());
    put_bytes(out, 22, b"");
    put_message(out, 26, |out| put_file_source(out, None, false, now));
    put_meta(out, 50, now, 3);
}

fn put_view(out: &mut Vec<u8>, name: &str, pushed: bool, now: (i64, i32)) {
    put_message(out, 1, |out| {
        put_str(out, 1, name);
        put_str(out, 2, PROJECT);
        put_str(out, 3, "driver");
        FEATURES.into_iter().for_each(|feature| put_feature(out, 4, feature));
        put_message(out, 5, |out| {
            put_str(out, 1, "team");
            put_str(out, 2, "driver_performance");
        });
        put_message(out, 6, |out| put_int(out, 1, 86_400));
        put_message(out, 7, |out| put_file_source(out, None, true, now));
        put_int(out, 8, 1);
        if pushed {
            put_message(out, 9, |out| put_push_source(out, None, now));
        }
        put_feature(out, 12, ("driver_id", INT64, ""));
        put_str(out, 18, "latest");
    });
    put_meta(out, 2, now, 1);
}

fn put_service(out: &mut Vec<u8>, name: &str, view: &str, features: usize, now: (i64, i32)) {
    put_message(out, 1, |out| {
        put_str(out, 1, name);
        put_str(out, 2, PROJECT);
        put_message(out, 3, |out| {
            put_str(out, 1, view);
            FEATURES.into_iter().take(features).for_each(|feature| put_feature(out, 2, feature));
            put_str(out, 5, "created");
            put_str(out, 7, "created");
            put_message(out, 8, |out| put_file_source(out, None, false, now));
            put_str(out, 11, "featureView");
        });
    });
    put_meta(out, 2, now, 1);
}
