//! Definitions as the messages that `feast apply` writes for them.

use super::{About, Definitions, Entity, Field, Permission, Service, Source, View};
use crate::registry::edit::{put_time, Time};
use crate::registry::snapshot::{DUMMY_ENTITY, DUMMY_JOIN_KEY};
use crate::registry::wire::{put_bytes, put_int, put_message, put_str, put_varint};

/// One object: the number of its list in the registry, its kind in messages, its name, its spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) list: u32,
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// For a data source the whole message without its `meta`; otherwise the spec.
    pub(super) spec: Vec<u8>,
}

/// Lists of a registry that are declared.
pub(super) const ENTITIES: u32 = 1;
pub(super) const VIEWS: u32 = 6;
pub(super) const SERVICES: u32 = 7;
pub(super) const SOURCES: u32 = 12;
pub(super) const PERMISSIONS: u32 = 16;

const STRING: u32 = 2;

/// All objects, in the order in which they are announced.
pub(super) fn objects(definitions: &Definitions, project: &str, now: Time) -> Vec<Object> {
    let mut objects = Vec::new();
    for entity in &definitions.entities {
        objects.push(Object {
            list: ENTITIES,
            kind: "entity",
            name: entity.name.clone(),
            spec: entity_spec(entity, project),
        });
    }
    // What views without entities belong to.
    let dummy =
        Entity { name: DUMMY_ENTITY.to_owned(), join_key: DUMMY_JOIN_KEY.to_owned(), ..Entity::default() };
    objects.push(Object {
        list: ENTITIES,
        kind: "",
        name: dummy.name.clone(),
        spec: entity_spec(&dummy, project),
    });
    for source in &definitions.sources {
        let mut spec = Vec::new();
        put_source(&mut spec, source, definitions, Some(project), true, now, false);
        objects.push(Object { list: SOURCES, kind: "", name: source.name.clone(), spec });
    }
    for view in &definitions.views {
        objects.push(Object {
            list: VIEWS,
            kind: "feature view",
            name: view.name.clone(),
            spec: view_spec(view, definitions, project, now),
        });
    }
    for service in &definitions.services {
        objects.push(Object {
            list: SERVICES,
            kind: "feature service",
            name: service.name.clone(),
            spec: service_spec(service, definitions, project, now),
        });
    }
    for permission in &definitions.permissions {
        objects.push(Object {
            list: PERMISSIONS,
            kind: "permission",
            name: permission.name.clone(),
            spec: permission_spec(permission, project),
        });
    }
    objects
}

fn put_map(out: &mut Vec<u8>, number: u32, pairs: &[(String, String)]) {
    for (key, value) in pairs {
        put_message(out, number, |out| {
            put_str(out, 1, key);
            put_str(out, 2, value);
        });
    }
}

fn entity_spec(entity: &Entity, project: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_str(&mut out, 1, &entity.name);
    put_int(&mut out, 2, i64::from(entity.value_type));
    put_str(&mut out, 3, &entity.about.description);
    put_str(&mut out, 4, &entity.join_key);
    put_map(&mut out, 8, &entity.about.tags);
    put_str(&mut out, 9, project);
    put_str(&mut out, 10, &entity.about.owner);
    out
}

fn put_field(out: &mut Vec<u8>, number: u32, field: &Field) {
    put_message(out, number, |out| {
        put_str(out, 1, &field.name);
        put_int(out, 2, i64::from(field.value_type));
        put_map(out, 3, &field.about.tags);
        put_str(out, 4, &field.about.description);
    });
}

/// A `DataSource`. `project` stands in the list of sources only, `class` everywhere but inside push sources and
/// services; `meta` where the source is part of another message.
fn put_source(
    out: &mut Vec<u8>,
    source: &Source,
    definitions: &Definitions,
    project: Option<&str>,
    class: bool,
    now: Time,
    meta: bool,
) {
    let batch = source.batch.as_ref().and_then(|name| definitions.sources.iter().find(|s| s.name == *name));
    let columns = batch.unwrap_or(source);
    put_int(out, 1, if batch.is_some() { 9 } else { 1 });
    if batch.is_none() {
        put_map(out, 2, &source.field_mapping);
    }
    put_str(out, 3, &columns.timestamp_field);
    put_str(out, 5, &columns.created_field);
    if batch.is_none() {
        put_message(out, 11, |out| put_str(out, 2, &source.path));
    }
    if batch.is_some() {
        put_str(out, 17, "feast.data_source.PushSource");
    } else if class {
        put_str(out, 17, "feast.infra.offline_stores.file_source.FileSource");
    }
    put_str(out, 20, &source.name);
    put_str(out, 21, project.unwrap_or_default());
    if batch.is_some() {
        put_bytes(out, 22, b"");
    }
    put_about(out, &source.about, (23, 24, 25));
    if let Some(batch) = batch {
        put_message(out, 26, |out| put_source(out, batch, definitions, None, false, now, true));
    }
    if meta {
        put_message(out, 50, |out| {
            put_time(out, 3, now);
            put_time(out, 4, now);
        });
    }
}

fn put_about(out: &mut Vec<u8>, about: &About, (description, tags, owner): (u32, u32, u32)) {
    put_str(out, description, &about.description);
    put_map(out, tags, &about.tags);
    put_str(out, owner, &about.owner);
}

/// Join keys of a view with their types: from its schema, its entities, or text.
pub(super) fn entity_columns(view: &View, definitions: &Definitions) -> Vec<Field> {
    let typed =
        |name: &str, value_type: u32| Field { name: name.to_owned(), value_type, about: About::default() };
    if view.entities.is_empty() {
        return vec![typed(DUMMY_JOIN_KEY, STRING)];
    }
    view.entities
        .iter()
        .filter_map(|name| definitions.entities.iter().find(|entity| entity.name == *name))
        .map(|entity| {
            let declared = view.schema.iter().find(|field| field.name == entity.join_key);
            let value_type = declared.map_or(entity.value_type, |field| field.value_type);
            typed(&entity.join_key, if value_type == 0 { STRING } else { value_type })
        })
        .collect()
}

fn features<'v>(view: &'v View, definitions: &Definitions) -> Vec<&'v Field> {
    let keys = entity_columns(view, definitions);
    view.schema.iter().filter(|field| !keys.iter().any(|key| key.name == field.name)).collect()
}

fn sources_of<'d>(view: &View, definitions: &'d Definitions) -> (Option<&'d Source>, Option<&'d Source>) {
    let find = |name: &str| definitions.sources.iter().find(|source| source.name == name);
    let source = find(&view.source);
    match source.and_then(|source| source.batch.as_deref()) {
        Some(batch) => (find(batch), source),
        None => (source, None),
    }
}

fn view_spec(view: &View, definitions: &Definitions, project: &str, now: Time) -> Vec<u8> {
    let mut out = Vec::new();
    let (batch, stream) = sources_of(view, definitions);
    put_str(&mut out, 1, &view.name);
    put_str(&mut out, 2, project);
    match view.entities.as_slice() {
        [] => put_str(&mut out, 3, DUMMY_ENTITY),
        entities => entities.iter().for_each(|entity| put_str(&mut out, 3, entity)),
    }
    features(view, definitions).into_iter().for_each(|field| put_field(&mut out, 4, field));
    put_map(&mut out, 5, &view.about.tags);
    put_message(&mut out, 6, |out| put_int(out, 1, view.ttl));
    if let Some(batch) = batch {
        put_message(&mut out, 7, |out| put_source(out, batch, definitions, None, true, now, true));
    }
    put_int(&mut out, 8, i64::from(view.online));
    if let Some(stream) = stream {
        put_message(&mut out, 9, |out| put_source(out, stream, definitions, None, true, now, true));
    }
    put_str(&mut out, 10, &view.about.description);
    put_str(&mut out, 11, &view.about.owner);
    entity_columns(view, definitions).iter().for_each(|field| put_field(&mut out, 12, field));
    put_int(&mut out, 13, i64::from(view.offline));
    put_str(&mut out, 18, "latest");
    out
}

fn service_spec(service: &Service, definitions: &Definitions, project: &str, now: Time) -> Vec<u8> {
    let mut out = Vec::new();
    put_str(&mut out, 1, &service.name);
    put_str(&mut out, 2, project);
    for part in &service.features {
        let Some(view) = definitions.views.iter().find(|view| view.name == part.view) else { continue };
        let (batch, _) = sources_of(view, definitions);
        put_message(&mut out, 3, |out| {
            put_str(out, 1, &view.name);
            for field in features(view, definitions) {
                if part.features.is_empty() || part.features.contains(&field.name) {
                    put_field(out, 2, field);
                }
            }
            // The reference puts the created column into both members.
            let created = batch.map_or("", |batch| batch.created_field.as_str());
            put_str(out, 5, created);
            put_str(out, 7, created);
            if let Some(batch) = batch {
                put_message(out, 8, |out| put_source(out, batch, definitions, None, false, now, true));
            }
            put_str(out, 11, "featureView");
        });
    }
    put_map(&mut out, 4, &service.about.tags);
    put_str(&mut out, 5, &service.about.description);
    put_str(&mut out, 6, &service.about.owner);
    out
}

fn permission_spec(permission: &Permission, project: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let packed = |numbers: &[u32]| {
        let mut bytes = Vec::new();
        numbers.iter().for_each(|&number| put_varint(&mut bytes, u64::from(number)));
        bytes
    };
    put_str(&mut out, 1, &permission.name);
    put_str(&mut out, 2, project);
    if !permission.types.is_empty() {
        put_bytes(&mut out, 3, &packed(&permission.types));
    }
    permission.name_patterns.iter().for_each(|pattern| put_str(&mut out, 4, pattern));
    if !permission.actions.is_empty() {
        put_bytes(&mut out, 6, &packed(&permission.actions));
    }
    put_message(&mut out, 7, |out| {
        put_message(out, 3, |out| permission.roles.iter().for_each(|role| put_str(out, 1, role)));
    });
    put_map(&mut out, 8, &permission.about.tags);
    out
}
