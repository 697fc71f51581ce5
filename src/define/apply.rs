//! Comparing definitions with a registry, and writing what differs. Other projects, and what no definition is
//! about (saved datasets, on-demand views, intervals, states), stay as they are.

use super::build::{self, Object, ENTITIES, PERMISSIONS, SERVICES, SOURCES, VIEWS};
use super::Definitions;
use crate::registry::edit::{put_time, stamped, Time};
use crate::registry::wire::{put_bytes, put_message, put_str, raw_fields, Payload, WireError};

/// Lists that no definition is about.
const ON_DEMAND: u32 = 8;
const INFRA: u32 = 10;
const STREAM: u32 = 14;
const LABELS: u32 = 19;
/// Not a list: the parts of a service.
const PROJECTION: u32 = 1000;

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Created,
    /// It is another one now.
    Updated,
    /// It is declared no more.
    Deleted,
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What happens.
    pub action: Action,
    /// To what kind of object.
    pub kind: &'static str,
    /// Of this name.
    pub name: String,
}

/// What applying definitions means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Differences in the order in which they are announced.
    pub differences: Vec<Difference>,
    /// The registry afterwards is another one; a changed data source is no difference that is announced.
    pub changed: bool,
    /// The registry afterwards.
    pub registry: Vec<u8>,
    /// Tables of the online store that are needed.
    pub tables: Vec<String>,
    /// Tables that are needed no more.
    pub dropped: Vec<String>,
}

/// Where a store keeps its tables, as the registry notes them: the absolute path of a SQLite file.
pub type Infra<'i> = Option<&'i str>;

/// An object as the registry has it.
struct Known<'r> {
    list: u32,
    name: &'r str,
    spec: Vec<u8>,
    raw: &'r [u8],
    meta: &'r [u8],
}

/// Compares `definitions` of `project` with `registry`.
pub fn plan(
    definitions: &Definitions,
    registry: &[u8],
    project: &str,
    infra: Infra<'_>,
    version_id: &str,
    now: Time,
) -> Result<Plan, WireError> {
    let mut kept: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut known: Vec<Known<'_>> = Vec::new();
    let mut has_project = false;
    for (number, raw, payload) in raw_fields(registry)? {
        match number {
            ENTITIES | VIEWS | SERVICES | SOURCES | PERMISSIONS => {
                match decode(number, raw, payload, project)? {
                    Some(found) => known.push(found),
                    None => kept.push((number, raw.to_vec())),
                }
            }
            17 => {
                has_project |= names(payload.bytes(), Place::Spec)?.0 == project;
                kept.push((number, raw.to_vec()));
            }
            _ => kept.push((number, raw.to_vec())),
        }
    }
    let mut differences = Vec::new();
    let mut changed = false;
    let mut note = |action, kind: &'static str, name: &str| {
        changed = true;
        if !kind.is_empty() {
            differences.push(Difference { action, kind, name: name.to_owned() });
        }
    };
    if !has_project {
        note(Action::Created, "project", project);
        let mut message = Vec::new();
        put_message(&mut message, 17, |out| {
            put_message(out, 1, |out| put_str(out, 1, project));
            put_meta(out, 2, now, now);
        });
        kept.push((17, message));
    }
    let objects = build::objects(definitions, project, now);
    for object in &objects {
        let earlier = known.iter().find(|known| known.list == object.list && known.name == object.name);
        let message = match earlier {
            Some(earlier) if earlier.spec == comparable(object)? => {
                kept.push((object.list, earlier.raw.to_vec()));
                continue;
            }
            Some(earlier) => {
                note(Action::Updated, object.kind, &object.name);
                updated(object, earlier, now)?
            }
            None => {
                note(Action::Created, object.kind, &object.name);
                created(object, now)
            }
        };
        kept.push((object.list, message));
    }
    for earlier in &known {
        let declared =
            objects.iter().any(|object| object.list == earlier.list && object.name == earlier.name);
        let kind = match earlier.list {
            ENTITIES => "entity",
            VIEWS => "feature view",
            SERVICES => "feature service",
            PERMISSIONS => "permission",
            _ => "",
        };
        if !declared {
            note(Action::Deleted, kind, earlier.name);
        }
    }
    let tables: Vec<String> =
        definitions.views.iter().map(|view| format!("{project}_{}", view.name)).collect();
    // By name, not by the project's prefix: another project's name may begin with this one's.
    let views = known.iter().filter(|known| known.list == VIEWS);
    let earlier: Vec<String> = views.map(|known| format!("{project}_{}", known.name)).collect();
    if let Some(path) = infra {
        let own = |table: &str| earlier.iter().chain(&tables).any(|known| known == table);
        put_infra(&mut kept, &tables, own, path)?;
    }
    if !kept.iter().any(|(number, _)| *number == 3) {
        let mut message = Vec::new();
        put_str(&mut message, 3, "1");
        kept.push((3, message));
    }
    // Stable: objects of one list keep their order.
    kept.sort_by_key(|(number, _)| *number);
    let dropped = earlier.into_iter().filter(|table| !tables.contains(table)).collect();
    Ok(Plan { differences, changed, registry: stamped(kept, version_id, now), tables, dropped })
}

/// A registry without the objects of `project`, and the tables that its views have in a SQL store.
pub fn without(
    registry: &[u8],
    project: &str,
    version_id: &str,
    now: Time,
) -> Result<(Vec<u8>, Vec<String>), WireError> {
    let mut kept = Vec::new();
    let mut tables = Vec::new();
    for (number, raw, payload) in raw_fields(registry)? {
        let (name, of) = match number {
            ENTITIES | VIEWS | SERVICES | PERMISSIONS | ON_DEMAND | 11 | STREAM | LABELS => {
                names(payload.bytes(), Place::Spec)?
            }
            SOURCES => names(payload.bytes(), Place::Source)?,
            13 => names(payload.bytes(), Place::Message)?,
            17 => {
                let (name, _) = names(payload.bytes(), Place::Spec)?;
                (name, name)
            }
            _ => ("", ""),
        };
        if of != project {
            kept.push((number, raw.to_vec()));
        } else if matches!(number, VIEWS | ON_DEMAND | STREAM | LABELS) {
            tables.push(format!("{project}_{name}"));
        }
    }
    for (number, raw) in &mut kept {
        if *number == INFRA {
            let [(_, _, infra)] = raw_fields(raw)?[..] else { continue };
            let rest = without_tables(infra.bytes(), |table| tables.iter().any(|known| known == table))?;
            *raw = rest;
        }
    }
    Ok((stamped(kept, version_id, now), tables))
}

fn created(object: &Object, now: Time) -> Vec<u8> {
    let mut out = Vec::new();
    put_message(&mut out, object.list, |out| match object.list {
        SOURCES => {
            out.extend_from_slice(&object.spec);
            put_message(out, 50, |out| {
                put_time(out, 3, now);
                put_time(out, 4, now);
            });
        }
        _ => {
            put_bytes(out, 1, &object.spec);
            put_meta(out, 2, now, now);
        }
    });
    out
}

fn put_meta(out: &mut Vec<u8>, number: u32, created: Time, updated: Time) {
    put_message(out, number, |out| {
        put_time(out, 1, created);
        put_time(out, 2, updated);
    });
}

/// The new spec with what was known besides: times, intervals, state.
fn updated(object: &Object, earlier: &Known<'_>, now: Time) -> Result<Vec<u8>, WireError> {
    let touched = if object.list == SOURCES { 4 } else { 2 };
    let mut meta: Vec<(u32, Vec<u8>)> = Vec::new();
    for (number, raw, _) in raw_fields(earlier.meta)? {
        if number != touched {
            meta.push((number, raw.to_vec()));
        }
    }
    let mut time = Vec::new();
    put_time(&mut time, touched, now);
    meta.push((touched, time));
    meta.sort_by_key(|(number, _)| *number);
    let meta: Vec<u8> = meta.into_iter().flat_map(|(_, bytes)| bytes).collect();
    let mut out = Vec::new();
    put_message(&mut out, object.list, |out| {
        if object.list == SOURCES {
            out.extend_from_slice(&object.spec);
            put_bytes(out, 50, &meta);
        } else {
            put_bytes(out, 1, &object.spec);
            put_bytes(out, 2, &meta);
        }
    });
    Ok(out)
}

/// The object in a message of list `number`, if it is one of `project`.
fn decode<'r>(
    number: u32,
    raw: &'r [u8],
    payload: Payload<'r>,
    project: &str,
) -> Result<Option<Known<'r>>, WireError> {
    let message = payload.bytes();
    if number == SOURCES {
        let (name, of) = names(message, Place::Source)?;
        if of != project {
            return Ok(None);
        }
        let fields = raw_fields(message)?;
        let meta = fields.iter().find(|(n, _, _)| *n == 50).map_or(&[][..], |(_, _, meta)| meta.bytes());
        let spec = normalized(message, number)?;
        return Ok(Some(Known { list: number, name, spec, raw, meta }));
    }
    let (name, of) = names(message, Place::Spec)?;
    if of != project {
        return Ok(None);
    }
    let fields = raw_fields(message)?;
    let part =
        |wanted: u32| fields.iter().find(|(n, _, _)| *n == wanted).map_or(&[][..], |(_, _, p)| p.bytes());
    let spec = normalized(part(1), number)?;
    Ok(Some(Known { list: number, name, spec, raw, meta: part(2) }))
}

fn comparable(object: &Object) -> Result<Vec<u8>, WireError> {
    normalized(&object.spec, object.list)
}

/// A message without the times of the sources inside it, and in one order: maps have none.
fn normalized(message: &[u8], list: u32) -> Result<Vec<u8>, WireError> {
    // Where data sources are, by list.
    let nested: &[u32] = match list {
        SOURCES => &[26],
        VIEWS => &[7, 9],
        SERVICES => &[3],
        PROJECTION => &[8, 9],
        _ => &[],
    };
    let mut fields: Vec<(u32, Vec<u8>)> = Vec::new();
    for (number, raw, payload) in raw_fields(message)? {
        if list == SOURCES && number == 50 {
            continue;
        }
        if nested.contains(&number) {
            // A service holds projections, which hold sources.
            let below = if list == SERVICES { PROJECTION } else { SOURCES };
            let inner = normalized(payload.bytes(), below)?;
            let mut out = Vec::new();
            put_bytes(&mut out, number, &inner);
            fields.push((number, out));
        } else {
            fields.push((number, raw.to_vec()));
        }
    }
    // Maps: tags and field mappings.
    let maps: &[u32] = match list {
        ENTITIES | PERMISSIONS => &[8],
        VIEWS => &[5],
        SERVICES | PROJECTION => &[4],
        _ => &[2, 24],
    };
    fields.sort_by(|a, b| {
        a.0.cmp(&b.0)
            .then_with(|| if maps.contains(&a.0) { a.1.cmp(&b.1) } else { std::cmp::Ordering::Equal })
    });
    Ok(fields.into_iter().flat_map(|(_, bytes)| bytes).collect())
}

/// Where an object has its name and project.
#[derive(Clone, Copy)]
enum Place {
    /// In the message that is its spec.
    Spec,
    /// In itself, in the fields of a data source.
    Source,
    /// In itself, in the fields of a validation reference.
    Message,
}

/// Name and project of an object.
fn names(message: &[u8], place: Place) -> Result<(&str, &str), WireError> {
    let fields = raw_fields(message)?;
    let text = |wanted: u32| {
        let found = fields.iter().find(|(number, _, _)| *number == wanted);
        found.map_or(Ok(""), |(_, _, payload)| payload.str())
    };
    match place {
        Place::Source => return Ok((text(20)?, text(21)?)),
        Place::Message => return Ok((text(1)?, text(3)?)),
        Place::Spec => {}
    }
    let Some((_, _, spec)) = fields.into_iter().find(|(number, _, _)| *number == 1) else {
        return Ok(("", ""));
    };
    let (mut name, mut project) = ("", "");
    for (number, _, payload) in raw_fields(spec.bytes())? {
        match number {
            1 => name = payload.str()?,
            // The spec of an entity has its project elsewhere.
            2 if matches!(payload, Payload::Bytes(_)) => project = payload.str()?,
            9 if project.is_empty() && matches!(payload, Payload::Bytes(_)) => {
                project = payload.str().unwrap_or_default();
            }
            _ => {}
        }
    }
    Ok((name, project))
}

fn table_name(object: &[u8]) -> Result<Option<&str>, WireError> {
    for (_, _, table) in raw_fields(object)?.into_iter().filter(|(number, _, _)| *number == 4) {
        for (number, _, payload) in raw_fields(table.bytes())? {
            if number == 2 {
                return payload.str().map(Some);
            }
        }
    }
    Ok(None)
}

/// An `Infra` field without some tables.
fn without_tables(infra: &[u8], gone: impl Fn(&str) -> bool) -> Result<Vec<u8>, WireError> {
    let mut inner = Vec::new();
    for (_, raw, object) in raw_fields(infra)? {
        if !table_name(object.bytes())?.is_some_and(&gone) {
            inner.extend_from_slice(raw);
        }
    }
    let mut out = Vec::new();
    put_bytes(&mut out, INFRA, &inner);
    Ok(out)
}

/// Notes tables in the `Infra` field in place of those that are `own`.
fn put_infra(
    kept: &mut Vec<(u32, Vec<u8>)>,
    tables: &[String],
    own: impl Fn(&str) -> bool,
    path: &str,
) -> Result<(), WireError> {
    let mut inner = Vec::new();
    if let Some(place) = kept.iter().position(|(number, _)| *number == INFRA) {
        let (_, field) = kept.remove(place);
        for (_, _, infra) in raw_fields(&field)? {
            let rest = without_tables(infra.bytes(), &own)?;
            raw_fields(&rest)?.iter().for_each(|(_, _, payload)| inner.extend_from_slice(payload.bytes()));
        }
    }
    let mut tables: Vec<&String> = tables.iter().collect();
    tables.sort();
    for table in tables {
        put_message(&mut inner, 1, |out| {
            put_str(out, 1, "feast.infra.online_stores.sqlite.SqliteTable");
            put_message(out, 4, |out| {
                put_str(out, 1, path);
                put_str(out, 2, table);
            });
        });
    }
    let mut out = Vec::new();
    put_bytes(&mut out, INFRA, &inner);
    kept.push((INFRA, out));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;
    use crate::registry::file::empty_registry;
    use crate::registry::model::Registry;

    const TEXT: &str = "
entities: [{name: driver, join_keys: [driver_id], value_type: INT64}]
data_sources:
  - {name: stats, path: data/stats.parquet, timestamp_field: event_timestamp, created_timestamp_column: created}
  - {name: pushed, type: push, batch_source: stats}
feature_views:
  - {name: a, entities: [driver], ttl: 1d, source: stats, schema: [{name: rate, dtype: Float32}], tags: {b: x, a: y}}
  - {name: b, source: pushed, schema: [{name: total, dtype: Int64}]}
feature_services: [{name: s, features: ['a:rate', b]}]
";

    fn run(text: &str, registry: &[u8]) -> Plan {
        plan(&read(text).unwrap(), registry, "p", Some("/x/online.db"), "id", (5, 0)).unwrap()
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let first = run(TEXT, &empty_registry("none", (1, 0)));
        let names: Vec<String> =
            first.differences.iter().map(|d| format!("{:?} {} {}", d.action, d.kind, d.name)).collect();
        assert_eq!(
            names,
            [
                "Created project p",
                "Created entity driver",
                "Created feature view a",
                "Created feature view b",
                "Created feature service s"
            ]
        );
        assert_eq!(first.tables, ["p_a", "p_b"]);
        let second = run(TEXT, &first.registry);
        assert_eq!(second.differences, []);
        let decoded = Registry::decode(&second.registry).unwrap();
        assert_eq!(decoded.views[1].entity_columns[0].name, "__dummy_id");
        assert_eq!(decoded.views[1].stream_source.as_ref().unwrap().name, "pushed");
        assert_eq!(decoded.views[0].batch_source.as_ref().unwrap().created_field, "created");
        assert_eq!(decoded.services[0].projections[0].features.len(), 1);
    }

    #[test]
    fn what_is_gone_is_deleted_and_other_projects_stay() {
        let first = run(TEXT, &empty_registry("none", (1, 0)));
        let other = plan(&read(TEXT).unwrap(), &first.registry, "q", Some("/x"), "id", (5, 0)).unwrap();
        let text = TEXT.replace("  - {name: b, source: pushed, schema: [{name: total, dtype: Int64}]}\n", "");
        let text = text.replace("['a:rate', b]", "[a]").replace("ttl: 1d", "ttl: 2d");
        let second = run(&text, &other.registry);
        let names: Vec<String> =
            second.differences.iter().map(|d| format!("{:?} {} {}", d.action, d.kind, d.name)).collect();
        assert_eq!(names, ["Updated feature view a", "Updated feature service s", "Deleted feature view b"]);
        assert_eq!(second.dropped, ["p_b"]);
        let decoded = Registry::decode(&second.registry).unwrap();
        assert_eq!(decoded.views.iter().filter(|view| view.project == "q").count(), 2);
        let (rest, tables) = without(&second.registry, "q", "id", (6, 0)).unwrap();
        assert_eq!(tables, ["q_a", "q_b"]);
        assert!(Registry::decode(&rest).unwrap().views.iter().all(|view| view.project == "p"));
    }
    #[test]
    fn a_project_whose_name_begins_with_anothers_keeps_its_tables() {
        let longer = plan(
            &read(TEXT).unwrap(),
            &empty_registry("none", (1, 0)),
            "p_x",
            Some("/x/online.db"),
            "id",
            (5, 0),
        )
        .unwrap();
        let both = run(TEXT, &longer.registry);
        let text = "entities: [{name: driver}]";
        let emptied = run(text, &both.registry);
        assert_eq!(emptied.dropped, ["p_a", "p_b"]);
        assert!(emptied.registry.windows(5).any(|bytes| bytes == b"p_x_a"));
        assert!(!emptied.registry.windows(4).any(|bytes| bytes == b"\x03p_a"));
        let (rest, tables) = without(&both.registry, "p", "id", (6, 0)).unwrap();
        assert_eq!(tables, ["p_a", "p_b"]);
        assert!(rest.windows(5).any(|bytes| bytes == b"p_x_a"));
    }

    #[test]
    fn a_changed_data_source_alone_is_written() {
        let first = run(TEXT, &empty_registry("none", (1, 0)));
        assert!(!run(TEXT, &first.registry).changed);
        let moved = "data_sources: [{name: s, path: a.parquet, timestamp_field: t}]";
        let first = run(moved, &first.registry);
        let second = run(&moved.replace("a.parquet", "b.parquet"), &first.registry);
        assert!(second.changed && second.differences.is_empty());
    }
}
