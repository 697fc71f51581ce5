//! `apply`, `plan` and `teardown`: definitions into the registry, tables into the store, and both away again.

use std::path::Path;
use std::process::{Command, Stdio};

use arrow_schema::DataType;
use rusqlite::Connection;

use super::commands::say;
use super::site::open;
use crate::config::store::{Location, OnlineStoreConfig};
use crate::define::apply::{plan, without, Action, Difference, Plan};
use crate::define::{self, Definitions, Field};
use crate::exit;
use crate::jobs::{engine, Site};
use crate::master::{MissingRegistry, Prepared, StartError};
use crate::offline::files;
use crate::online::redis::write::RedisWriter;
use crate::online::sqlite_write::create_table;
use crate::registry::RegistryError;

fn failed(text: impl Into<String>) -> StartError {
    StartError::new(exit::CONFIG, text.into())
}

/// Makes registry and store what the definitions say; only shows it when `dry`.
pub(super) fn apply(location: &Location, dry: bool) -> Result<i32, StartError> {
    let (prepared, site) = open(location, MissingRegistry::Make)?;
    let done = apply_to(&prepared, &site, dry);
    // Somebody who only looks leaves nothing behind.
    if dry && prepared.stamp.is_some() && prepared.snapshot.views().is_empty() {
        let fresh = std::fs::metadata(prepared.registry.path()).is_ok_and(|found| found.len() < 80);
        if fresh && prepared.snapshot.entities.is_empty() {
            let _ = std::fs::remove_file(prepared.registry.path());
            let _ = std::fs::remove_file(prepared.registry.lock_path());
        }
    }
    done
}

/// As [`apply`], with the repository open.
fn apply_to(prepared: &Prepared, site: &Site, dry: bool) -> Result<i32, StartError> {
    let repo = &prepared.store.repo_path;
    let Some(file) = define::file_of(repo) else { return by_feast(repo, dry) };
    let plan = carry_out(&file, prepared, site, dry)?;
    let project = &prepared.store.project;
    if plan.differences.iter().any(|d| d.kind == "project") {
        say(&format!(
            "No project found in the repository. Using project name {project} defined in feature_store.yaml"
        ));
    }
    say(&format!("{} changes for project {project}", if dry { "Planned" } else { "Applying" }));
    announce(&plan.differences);
    say("");
    deploy(&plan, prepared, dry, &mut |line| say(line))?;
    say("");
    Ok(exit::OK)
}

/// Applies definitions that are there without a word.
pub(super) fn make(prepared: &Prepared, site: &Site) -> Result<(), StartError> {
    let file = prepared.store.repo_path.join(define::FILE);
    let plan = carry_out(&file, prepared, site, false)?;
    deploy(&plan, prepared, false, &mut |_| {})
}

/// Compares the definitions with the registry and, unless `dry`, writes it.
fn carry_out(file: &Path, prepared: &Prepared, site: &Site, dry: bool) -> Result<Plan, StartError> {
    let repo = &prepared.store.repo_path;
    if prepared.store.registry_rules.versioning {
        return Err(failed(format!(
            "{}: versions of feature views are kept by Feast's SDK only; apply with `feast apply`, or switch \
             registry.enable_online_feature_view_versioning off",
            prepared.store.source
        )));
    }
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| failed(format!("{shown}: {error}")))?;
    let mut definitions = define::read(&text).map_err(|problem| failed(format!("{shown}: {problem}")))?;
    infer_schemas(&mut definitions, repo)
        .and_then(|()| define::check(&definitions))
        .map_err(|problem| failed(format!("{shown}: {problem}")))?;
    let project = &prepared.store.project;
    let path = match &prepared.store.online_store {
        OnlineStoreConfig::Sqlite { path } => {
            Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string())
        }
        OnlineStoreConfig::Redis(_) => None,
    };
    let mut made: Option<Plan> = None;
    let edited: Result<(), RegistryError> = site.registry.update(|bytes, id, now| {
        let plan = plan(&definitions, bytes, project, path.as_deref(), id, now)?;
        let registry = (plan.changed && !dry).then(|| plan.registry.clone());
        made = Some(plan);
        Ok(registry)
    });
    edited.map_err(|error| failed(error.to_string()))?;
    made.ok_or_else(|| failed("nothing was compared"))
}

fn announce(differences: &[Difference]) {
    if differences.is_empty() {
        say("No changes to registry");
    }
    for Difference { action, kind, name } in differences {
        say(&format!("{action:?} {kind} {name}"));
    }
}

/// Makes tables and removes those that are needed no more.
fn deploy(plan: &Plan, prepared: &Prepared, dry: bool, say: &mut dyn FnMut(&str)) -> Result<(), StartError> {
    let OnlineStoreConfig::Sqlite { path } = &prepared.store.online_store else {
        let mut changed = false;
        for Difference { action, kind, name } in &plan.differences {
            let text = match (*kind, action) {
                ("feature view", Action::Deleted) => format!("Removing infrastructure for {name}"),
                ("feature view", _) => format!("Deploying infrastructure for {name}"),
                _ => continue,
            };
            changed = true;
            say(&text);
        }
        if !changed {
            say("No changes to infrastructure");
        }
        return Ok(());
    };
    let shown = path.display();
    let wrong = |error: rusqlite::Error| failed(format!("{shown}: {error}"));
    if let Some(folder) = path.parent().filter(|folder| !folder.exists() && !dry) {
        std::fs::create_dir_all(folder).map_err(|error| failed(format!("{}: {error}", folder.display())))?;
    }
    let missing_file = dry && !path.exists();
    let connection =
        if missing_file { Connection::open_in_memory() } else { Connection::open(path) }.map_err(wrong)?;
    connection.busy_timeout(crate::jobs::PATIENCE).map_err(wrong)?;
    let exists = |table: &str| {
        connection
            .query_row("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1", [table], |_| Ok(()))
            .is_ok()
    };
    let mut changed = false;
    for table in plan.tables.iter().filter(|table| !exists(table)) {
        changed = true;
        if !dry {
            create_table(&connection, table).map_err(wrong)?;
        }
        say(&format!("Created sqlite table {table}"));
    }
    for table in plan.dropped.iter().filter(|table| exists(table)) {
        changed = true;
        if !dry {
            drop_table(&connection, table).map_err(wrong)?;
        }
        say(&format!("Deleted sqlite table {table}"));
    }
    if !changed {
        say("No changes to infrastructure");
    }
    Ok(())
}

fn drop_table(connection: &Connection, table: &str) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("DROP TABLE IF EXISTS \"{}\"", table.replace('"', "\"\"")))
}

/// A repository whose definitions are Python: Feast's own command applies them.
fn by_feast(repo: &Path, dry: bool) -> Result<i32, StartError> {
    let python = std::fs::read_dir(repo).is_ok_and(|entries| {
        entries
            .filter_map(Result::ok)
            .any(|entry| entry.path().extension().is_some_and(|extension| extension == "py"))
    });
    if !python {
        return Err(failed(format!(
            "{}: nothing to apply; write {} (see docs/definitions.md), or begin with `feast-prefork init`",
            repo.display(),
            define::FILE
        )));
    }
    let program = engine::feast_command();
    let word = if dry { "plan" } else { "apply" };
    let status =
        Command::new(&program).arg("--chdir").arg(repo).arg(word).stdin(Stdio::null()).status().map_err(|error| {
            failed(format!(
                "{}: definitions in Python are applied by Feast's SDK, and `{program}` cannot be run: {error}; \
                 install it with `pip install feast`, name it in FEAST_PREFORK_FEAST, or declare the features in {}",
                repo.display(),
                define::FILE
            ))
        })?;
    Ok(status.code().unwrap_or(exit::CONFIG))
}

/// Views without a schema have the columns of their source.
fn infer_schemas(definitions: &mut Definitions, repo: &Path) -> Result<(), String> {
    let sources = definitions.sources.clone();
    let entities = definitions.entities.clone();
    for view in definitions.views.iter_mut().filter(|view| view.schema.is_empty()) {
        let find = |name: &str| sources.iter().find(|source| source.name == name);
        let source = find(&view.source);
        let Some(file) = source.and_then(|source| source.batch.as_deref().map_or(Some(source), find)) else {
            continue;
        };
        let place = files::resolve(&file.path, repo)?;
        let at = |problem: String| format!("feature view {} has no schema, and {problem}", view.name);
        let parts = files::parts(&place).map_err(|_| at(format!("{} cannot be read", file.path)))?;
        let part = parts.first().ok_or_else(|| at(format!("{} is empty", file.path)))?;
        for field in crate::offline::read::schema_of(&part.path)?.fields() {
            let mapped = file.field_mapping.iter().find(|(from, _)| from == field.name());
            let name = mapped.map_or(field.name(), |(_, to)| to);
            if *field.name() == file.timestamp_field || *field.name() == file.created_field {
                continue;
            }
            let value_type = type_of(field.data_type())
                .ok_or_else(|| at(format!("column {name} of type {} has no type here", field.data_type())))?;
            view.schema.push(Field { name: name.clone(), value_type, ..Field::default() });
        }
        let is_key = |name: &str| {
            view.entities
                .iter()
                .any(|e| entities.iter().any(|known| known.name == *e && known.join_key == name))
        };
        if view.schema.iter().all(|field| is_key(&field.name)) {
            return Err(format!("feature view {} has no features", view.name));
        }
    }
    Ok(())
}

/// The `ValueType` of a column.
fn type_of(data_type: &DataType) -> Option<u32> {
    Some(match data_type {
        DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_) => 1,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => 2,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => 3,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => 4,
        DataType::Float64 => 5,
        DataType::Float16 | DataType::Float32 => 6,
        DataType::Boolean => 7,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => 8,
        DataType::Struct(_) => 20,
        DataType::Decimal128(..) => 44,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            match type_of(item.data_type())? {
                number @ 1..=8 => number + 10,
                20 => 35,
                11..=18 => 42,
                _ => return None,
            }
        }
        _ => return None,
    })
}

/// Removes a project's values and definitions.
pub(super) fn teardown(location: &Location) -> Result<i32, StartError> {
    let (prepared, site) = open(location, MissingRegistry::Refuse)?;
    let project = &prepared.store.project;
    let mut tables: Vec<String> = Vec::new();
    let edited: Result<(), RegistryError> = site.registry.update(|bytes, id, now| {
        let (rest, of_views) = without(bytes, project, id, now)?;
        tables = of_views;
        Ok(Some(rest))
    });
    edited.map_err(|error| failed(error.to_string()))?;
    match &prepared.store.online_store {
        OnlineStoreConfig::Sqlite { path } if path.exists() => {
            let wrong = |error: rusqlite::Error| failed(format!("{}: {error}", path.display()));
            let connection = Connection::open(path).map_err(wrong)?;
            connection.busy_timeout(crate::jobs::PATIENCE).map_err(wrong)?;
            for table in &tables {
                drop_table(&connection, table).map_err(wrong)?;
            }
            let left: i64 = connection
                .query_row("SELECT count(*) FROM sqlite_master WHERE type = 'table'", [], |row| row.get(0))
                .map_err(wrong)?;
            drop(connection);
            if left == 0 {
                for end in ["", "-wal", "-shm"] {
                    let mut name = path.clone().into_os_string();
                    name.push(end);
                    let _ = std::fs::remove_file(name);
                }
            }
        }
        OnlineStoreConfig::Sqlite { .. } => {}
        OnlineStoreConfig::Redis(config) => {
            RedisWriter::new(config, project).remove_project().map_err(failed)?;
        }
    }
    Ok(exit::OK)
}
