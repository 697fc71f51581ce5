//! `init`: a repository to begin with, as Feast's own command makes one, but declared in YAML.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{
    Float32Builder, Int64Builder, TimestampMicrosecondBuilder, TimestampNanosecondBuilder,
};
use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::args::InitArgs;
use super::commands::say;
use super::site::usage;
use crate::exit;
use crate::master::StartError;
use crate::os::process::wall_clock;

/// Drivers of the example.
pub(super) const DRIVERS: [i64; 5] = [1001, 1002, 1003, 1004, 1005];
/// Days of hourly rows.
const DAYS: i64 = 15;

const DEFINITIONS: &str = "\
# What this repository defines: see docs/definitions.md. Apply it with `feast-prefork apply`.
entities:
  - name: driver
    join_keys: [driver_id]
    value_type: Int64

data_sources:
  - name: driver_hourly_stats_source
    path: data/driver_stats.parquet
    timestamp_field: event_timestamp
    created_timestamp_column: created
  - name: driver_stats_push_source
    type: push
    batch_source: driver_hourly_stats_source

feature_views:
  - name: driver_hourly_stats
    entities: [driver]
    ttl: 1d
    schema: &stats
      - {name: conv_rate, dtype: Float32}
      - {name: acc_rate, dtype: Float32}
      - {name: avg_daily_trips, dtype: Int64, description: Average daily trips}
    source: driver_hourly_stats_source
    tags: {team: driver_performance}
  # The same features, fed by pushes between materializations.
  - name: driver_hourly_stats_fresh
    entities: [driver]
    ttl: 1d
    schema: *stats
    source: driver_stats_push_source
    tags: {team: driver_performance}

feature_services:
  - name: driver_activity_v1
    features:
      - driver_hourly_stats:conv_rate
  - name: driver_activity_v2
    features:
      - driver_hourly_stats
  - name: driver_activity_v3
    features:
      - driver_hourly_stats_fresh
";

const MINIMAL: &str = "\
# What this repository defines: see docs/definitions.md. Apply it with `feast-prefork apply`.
entities: []
data_sources: []
feature_views: []
feature_services: []
";

fn yaml(project: &str) -> String {
    format!(
        "project: {project}\nregistry: data/registry.db\nprovider: local\nonline_store:\n    type: sqlite\n    \
         path: data/online_store.db\nentity_key_serialization_version: 3\nauth:\n    type: no_auth\n"
    )
}

/// Makes a repository in a new folder.
pub(super) fn init(args: &InitArgs) -> Result<i32, StartError> {
    let name = args.name.clone().unwrap_or_else(|| "my_project".to_owned());
    let fits =
        !name.starts_with(['_', '-']) && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    if name.is_empty() || !fits {
        return Err(usage(
            "Invalid value for PROJECT_DIRECTORY: Name should be alphanumeric values, underscores, and hyphens but \
             not start with an underscore or hyphen",
        ));
    }
    let dir = args.repo_path.clone().unwrap_or_else(|| PathBuf::from(&name));
    let shown = std::path::absolute(&dir).unwrap_or_else(|_| dir.clone());
    // Table names take no hyphens.
    let project = name.replace('-', "_");
    let repo = dir.join("feature_repo");
    let made = || -> io::Result<()> {
        if repo.join("feature_store.yaml").exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a repository already"));
        }
        write(&repo, &project, args.minimal)
    };
    made().map_err(|error| {
        let text = format!("cannot make {}: {error}; choose another name", shown.display());
        StartError::new(exit::CONFIG, text)
    })?;
    say(&format!("\nCreating a new Feast repository in {}.\n", shown.display()));
    let end = if args.minimal {
        format!("Define features in {}, then: feast-prefork -c {} apply", crate::define::FILE, repo.display())
    } else {
        format!(
            "Next:\n  cd {}\n  feast-prefork apply\n  feast-prefork materialize-incremental $(date -u +%Y-%m-%dT%H:%M:%S)\n  \
             feast-prefork serve",
            repo.display()
        )
    };
    say(&end);
    Ok(exit::OK)
}

/// Writes the files of a repository.
pub(super) fn write(repo: &Path, project: &str, minimal: bool) -> io::Result<()> {
    fs::create_dir_all(repo.join("data"))?;
    fs::write(repo.join("feature_store.yaml"), yaml(project))?;
    fs::write(repo.join(crate::define::FILE), if minimal { MINIMAL } else { DEFINITIONS })?;
    if minimal {
        return Ok(());
    }
    fs::write(repo.join("data/driver_stats.parquet"), statistics().map_err(io::Error::other)?)
}

/// Made-up statistics: a row per driver and hour, the last one at the last full hour.
fn statistics() -> Result<Vec<u8>, parquet::errors::ParquetError> {
    let nanoseconds = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
    let microseconds = DataType::Timestamp(TimeUnit::Microsecond, None);
    let schema = Arc::new(Schema::new(vec![
        Field::new("event_timestamp", nanoseconds, true),
        Field::new("driver_id", DataType::Int64, true),
        Field::new("conv_rate", DataType::Float32, true),
        Field::new("acc_rate", DataType::Float32, true),
        Field::new("avg_daily_trips", DataType::Int64, true),
        Field::new("created", microseconds, true),
    ]));
    let mut times = TimestampNanosecondBuilder::new().with_timezone("UTC");
    let mut ids = Int64Builder::new();
    let (mut conv, mut acc) = (Float32Builder::new(), Float32Builder::new());
    let mut trips = Int64Builder::new();
    let mut created = TimestampMicrosecondBuilder::new();
    let last = wall_clock().as_secs().cast_signed() / 3600 * 3600;
    for (index, driver) in DRIVERS.into_iter().enumerate() {
        for hour in (0..DAYS * 24).rev() {
            let at = last - hour * 3600;
            times.append_value(at * 1_000_000_000);
            ids.append_value(driver);
            // The newest row of a driver is the same in every example.
            let step = index as f32;
            let wave = ((hour % 24) as f32) / 200.0;
            conv.append_value(0.25 + step * 0.125 - wave);
            acc.append_value(0.9 - step * 0.1 - wave);
            trips.append_value(100 + 137 * index as i64 - hour % 24);
            created.append_value((at + 300) * 1_000_000);
        }
    }
    let batch = RecordBatch::try_new(
        schema.clone(),
        vec![
            Arc::new(times.finish()),
            Arc::new(ids.finish()),
            Arc::new(conv.finish()),
            Arc::new(acc.finish()),
            Arc::new(trips.finish()),
            Arc::new(created.finish()),
        ],
    )?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties))?;
    writer.write(&batch)?;
    writer.into_inner()
}
