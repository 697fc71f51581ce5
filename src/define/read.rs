//! Definitions from YAML. A mistake is named with its place: `feature_views[2].ttl`.

use super::{About, Definitions, Entity, Field, Permission, Projection, Service, Source, View};
use crate::config::yaml::{self, Yaml};

/// Names of Feast's types, and the numbers of their `ValueType`.
const TYPES: &[(&str, u32)] = &[
    ("bytes", 1),
    ("string", 2),
    ("int32", 3),
    ("int64", 4),
    ("float64", 5),
    ("double", 5),
    ("float32", 6),
    ("float", 6),
    ("bool", 7),
    ("unixtimestamp", 8),
    ("unix_timestamp", 8),
    ("map", 20),
    ("json", 32),
    ("struct", 34),
    ("uuid", 36),
    ("timeuuid", 37),
    ("time_uuid", 37),
    ("decimal", 44),
    ("scalarmap", 47),
    ("scalar_map", 47),
    ("zonedtimestamp", 48),
    ("zoned_timestamp", 48),
];
const OBJECT_TYPES: &[&str] = &[
    "FEATURE_VIEW",
    "ON_DEMAND_FEATURE_VIEW",
    "BATCH_FEATURE_VIEW",
    "STREAM_FEATURE_VIEW",
    "ENTITY",
    "FEATURE_SERVICE",
    "DATA_SOURCE",
    "VALIDATION_REFERENCE",
    "SAVED_DATASET",
    "PERMISSION",
    "PROJECT",
    "LABEL_VIEW",
];
const ACTIONS: &[&str] = &[
    "CREATE",
    "DESCRIBE",
    "UPDATE",
    "DELETE",
    "READ_ONLINE",
    "READ_OFFLINE",
    "WRITE_ONLINE",
    "WRITE_OFFLINE",
];

/// The number of a type as Feast's users write it: `Int64`, `INT64`, `Array(Float32)`, `FLOAT_LIST`.
pub(super) fn type_number(text: &str) -> Option<u32> {
    let lower: String = text.to_ascii_lowercase().split_whitespace().collect();
    if let Some((_, number)) = TYPES.iter().find(|(name, _)| *name == lower) {
        return Some(*number);
    }
    let inner = |prefix: &str| lower.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(')'));
    let (item, set) = match (inner("array("), inner("set(")) {
        (Some(item), _) => (item.to_owned(), false),
        (_, Some(item)) => (item.to_owned(), true),
        _ => match (lower.strip_suffix("_list"), lower.strip_suffix("_set")) {
            (Some(item), _) => (item.to_owned(), false),
            (_, Some(item)) => (item.to_owned(), true),
            _ => return None,
        },
    };
    match (type_number(&item)?, set) {
        (number @ 1..=8, false) => Some(number + 10),
        (number @ 1..=8, true) => Some(number + 21),
        (20, false) => Some(21),
        (32, false) => Some(33),
        (34, false) => Some(35),
        (36, false) => Some(38),
        (37, false) => Some(39),
        (36, true) => Some(40),
        (37, true) => Some(41),
        (44, false) => Some(45),
        (44, true) => Some(46),
        (11..=18 | 22..=29, false) => Some(42),
        (11..=18 | 22..=29, true) => Some(43),
        _ => None,
    }
}

/// Reads a whole file.
pub fn read(text: &str) -> Result<Definitions, String> {
    let tree = yaml::parse_modern(text).map_err(|problem| format!("not valid YAML: {problem}"))?;
    let top = Block { at: String::new(), tree: &tree };
    top.only(&["entities", "data_sources", "feature_views", "feature_services", "permissions"])?;
    let definitions = Definitions {
        entities: top.list("entities", entity)?,
        sources: top.list("data_sources", source)?,
        views: top.list("feature_views", view)?,
        services: top.list("feature_services", service)?,
        permissions: top.list("permissions", permission)?,
    };
    check(&definitions)?;
    Ok(definitions)
}

/// One object and where it stands.
struct Block<'y> {
    at: String,
    tree: &'y Yaml,
}

impl<'y> Block<'y> {
    fn error<T>(&self, key: &str, problem: &str) -> Result<T, String> {
        let dot = if self.at.is_empty() || key.is_empty() { "" } else { "." };
        Err(format!("{}{dot}{key}: {problem}", self.at))
    }

    fn only(&self, keys: &[&str]) -> Result<(), String> {
        let Yaml::Map(entries) = self.tree else {
            let place = if self.at.is_empty() { "the file" } else { &self.at };
            return Err(format!("{place}: expected keys and values, found {}", self.tree.kind()));
        };
        match entries.iter().find(|(key, _)| !keys.contains(&key.as_str())) {
            Some((key, _)) => self.error(key, &format!("unknown key; known are {}", keys.join(", "))),
            None => Ok(()),
        }
    }

    fn get(&self, key: &str) -> Option<&'y Yaml> {
        self.tree.get(key).filter(|value| **value != Yaml::Null)
    }

    fn list<T>(&self, key: &str, one: fn(&Block<'_>) -> Result<T, String>) -> Result<Vec<T>, String> {
        let items = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Yaml::List(items)) => items,
            Some(other) => return self.error(key, &format!("expected a list, found {}", other.kind())),
        };
        let dot = if self.at.is_empty() { "" } else { "." };
        items
            .iter()
            .enumerate()
            .map(|(index, tree)| one(&Block { at: format!("{}{dot}{key}[{index}]", self.at), tree }))
            .collect()
    }

    fn text(&self, key: &str) -> Result<String, String> {
        match self.get(key) {
            None => Ok(String::new()),
            Some(Yaml::Str(text)) => Ok(text.clone()),
            Some(other) => self.error(key, &format!("expected text, found {}", other.kind())),
        }
    }

    fn name(&self) -> Result<String, String> {
        let name = self.text("name")?;
        if name.is_empty() {
            return self.error("name", "required, but missing");
        }
        Ok(name)
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(default),
            Some(Yaml::Bool(value)) => Ok(*value),
            Some(Yaml::Str(text)) if ["yes", "on"].contains(&text.as_str()) => Ok(true),
            Some(Yaml::Str(text)) if ["no", "off"].contains(&text.as_str()) => Ok(false),
            Some(other) => self.error(key, &format!("expected true or false, found {}", other.kind())),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, String> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Yaml::Str(text)) => Ok(vec![text.clone()]),
            Some(Yaml::List(items)) => items
                .iter()
                .map(|item| match item {
                    Yaml::Str(text) => Ok(text.clone()),
                    other => self.error(key, &format!("expected texts, found {}", other.kind())),
                })
                .collect(),
            Some(other) => self.error(key, &format!("expected a list, found {}", other.kind())),
        }
    }

    fn pairs(&self, key: &str) -> Result<Vec<(String, String)>, String> {
        let entries = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Yaml::Map(entries)) => entries,
            Some(other) => {
                return self.error(key, &format!("expected keys and values, found {}", other.kind()))
            }
        };
        entries
            .iter()
            .map(|(name, value)| match value {
                Yaml::Str(text) => Ok((name.clone(), text.clone())),
                other => self.error(key, &format!("{name}: expected text, found {}", other.kind())),
            })
            .collect()
    }

    fn about(&self) -> Result<About, String> {
        let mut tags = self.pairs("tags")?;
        tags.sort();
        Ok(About { description: self.text("description")?, tags, owner: self.text("owner")? })
    }

    fn value_type(&self, key: &str) -> Result<Option<u32>, String> {
        let text = self.text(key)?;
        if text.is_empty() {
            return Ok(None);
        }
        match type_number(&text) {
            Some(number) => Ok(Some(number)),
            None => self
                .error(key, &format!("'{text}' is no type; use e.g. Int64, Float32, String, Array(Float32)")),
        }
    }

    fn numbers(&self, key: &str, names: &[&str]) -> Result<Vec<u32>, String> {
        let find = |text: String| {
            let wanted = text.to_ascii_uppercase();
            match names.iter().position(|name| *name == wanted) {
                Some(number) => Ok(number as u32),
                None => self.error(key, &format!("'{text}' is not one of {}", names.join(", "))),
            }
        };
        self.texts(key)?.into_iter().map(find).collect()
    }
}

fn entity(block: &Block<'_>) -> Result<Entity, String> {
    block.only(&["name", "join_keys", "join_key", "value_type", "description", "tags", "owner"])?;
    let name = block.name()?;
    let mut keys = block.texts("join_keys")?;
    keys.extend(Some(block.text("join_key")?).filter(|key| !key.is_empty()));
    if keys.len() > 1 {
        return block.error("join_keys", "an entity has one join key");
    }
    let join_key = keys.pop().unwrap_or_else(|| name.clone());
    let value_type = block.value_type("value_type")?.unwrap_or(0);
    Ok(Entity { name, join_key, value_type, about: block.about()? })
}

fn source(block: &Block<'_>) -> Result<Source, String> {
    block.only(&[
        "name",
        "type",
        "path",
        "batch_source",
        "timestamp_field",
        "created_timestamp_column",
        "field_mapping",
        "description",
        "tags",
        "owner",
    ])?;
    let mut source = Source {
        name: block.text("name")?,
        path: block.text("path")?,
        batch: Some(block.text("batch_source")?).filter(|name| !name.is_empty()),
        timestamp_field: block.text("timestamp_field")?,
        created_field: block.text("created_timestamp_column")?,
        field_mapping: block.pairs("field_mapping")?,
        about: block.about()?,
    };
    let kind = block.text("type")?;
    match kind.to_ascii_lowercase().as_str() {
        "" | "file" | "filesource" if source.batch.is_none() => {
            if source.path.is_empty() {
                return block.error("path", "required, but missing");
            }
            if source.timestamp_field.is_empty() {
                return block.error("timestamp_field", "required, but missing");
            }
            if source.name.is_empty() {
                source.name.clone_from(&source.path);
            }
        }
        "" | "push" | "pushsource" if source.batch.is_some() => {
            if !source.path.is_empty() || !source.timestamp_field.is_empty() {
                return block.error("", "a push source takes path and columns from its batch_source");
            }
            source.name = block.name()?;
        }
        "push" | "pushsource" => return block.error("batch_source", "required, but missing"),
        "file" | "filesource" => return block.error("batch_source", "a file source has none"),
        other => return block.error("type", &format!("'{other}' is not supported; use file or push")),
    }
    Ok(source)
}

fn field(block: &Block<'_>) -> Result<Field, String> {
    block.only(&["name", "dtype", "description", "tags"])?;
    match block.value_type("dtype")? {
        Some(value_type) => Ok(Field { name: block.name()?, value_type, about: block.about()? }),
        None => block.error("dtype", "required, but missing"),
    }
}

fn view(block: &Block<'_>) -> Result<View, String> {
    block.only(&[
        "name",
        "entities",
        "ttl",
        "schema",
        "source",
        "online",
        "offline",
        "description",
        "tags",
        "owner",
    ])?;
    let source = block.text("source")?;
    if source.is_empty() {
        return block.error("source", "required, but missing");
    }
    let name = block.name()?;
    if !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return block.error("name", "use letters, digits and underscores");
    }
    Ok(View {
        name,
        entities: block.texts("entities")?,
        schema: block.list("schema", field)?,
        source,
        ttl: ttl(block)?,
        online: block.flag("online", true)?,
        offline: block.flag("offline", false)?,
        about: block.about()?,
    })
}

/// Seconds, or a number with a unit.
fn ttl(block: &Block<'_>) -> Result<i64, String> {
    let wrong = || block.error("ttl", "use seconds, or a number with s, m, h, d or w, e.g. 1d");
    match block.get("ttl") {
        None => Ok(0),
        Some(Yaml::Int(seconds)) if *seconds >= 0 => Ok(*seconds),
        Some(Yaml::Str(text)) => {
            let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (number, unit) = text.split_at(split);
            let factor = match unit.trim() {
                "" | "s" => 1,
                "m" => 60,
                "h" => 3600,
                "d" => 86_400,
                "w" => 7 * 86_400,
                _ => return wrong(),
            };
            match number.parse::<i64>().ok().and_then(|number| number.checked_mul(factor)) {
                Some(seconds) => Ok(seconds),
                None => wrong(),
            }
        }
        Some(_) => wrong(),
    }
}

fn projection(block: &Block<'_>) -> Result<Projection, String> {
    if let Yaml::Str(view) = block.tree {
        // As in requests: `view` or `view:feature`.
        let (view, feature) = view.split_once(':').map_or((view.as_str(), None), |(v, f)| (v, Some(f)));
        return Ok(Projection {
            view: view.to_owned(),
            features: feature.map(str::to_owned).into_iter().collect(),
        });
    }
    block.only(&["view", "features"])?;
    let view = block.text("view")?;
    if view.is_empty() {
        return block.error("view", "required, but missing");
    }
    Ok(Projection { view, features: block.texts("features")? })
}

fn service(block: &Block<'_>) -> Result<Service, String> {
    block.only(&["name", "features", "description", "tags", "owner"])?;
    Ok(Service { name: block.name()?, features: block.list("features", projection)?, about: block.about()? })
}

fn permission(block: &Block<'_>) -> Result<Permission, String> {
    block.only(&["name", "types", "name_patterns", "actions", "roles", "tags"])?;
    Ok(Permission {
        name: block.name()?,
        types: block.numbers("types", OBJECT_TYPES)?,
        name_patterns: block.texts("name_patterns")?,
        actions: block.numbers("actions", ACTIONS)?,
        roles: block.texts("roles")?,
        about: About { tags: block.pairs("tags")?, ..About::default() },
    })
}

/// Names are unique, and everything that is named is there.
pub fn check(definitions: &Definitions) -> Result<(), String> {
    fn unique<'n>(kind: &str, names: impl Iterator<Item = &'n String>) -> Result<(), String> {
        let mut seen: Vec<String> = Vec::new();
        for name in names {
            let folded = name.to_lowercase();
            if seen.contains(&folded) {
                return Err(format!("{kind} {name}: the name is taken (letters' case does not count)"));
            }
            seen.push(folded);
        }
        Ok(())
    }
    unique("entity", definitions.entities.iter().map(|entity| &entity.name))?;
    unique("data source", definitions.sources.iter().map(|source| &source.name))?;
    unique("feature view", definitions.views.iter().map(|view| &view.name))?;
    unique("feature service", definitions.services.iter().map(|service| &service.name))?;
    unique("permission", definitions.permissions.iter().map(|permission| &permission.name))?;
    let known_source = |name: &str| definitions.sources.iter().find(|source| source.name == name);
    for source in &definitions.sources {
        if let Some(batch) = &source.batch {
            if known_source(batch).is_none_or(|batch| batch.batch.is_some()) {
                return Err(format!(
                    "data source {}: batch_source {batch} is no file source here",
                    source.name
                ));
            }
        }
    }
    for view in &definitions.views {
        if known_source(&view.source).is_none() {
            return Err(format!("feature view {}: source {} is not defined", view.name, view.source));
        }
        for entity in &view.entities {
            if !definitions.entities.iter().any(|known| known.name == *entity) {
                return Err(format!("feature view {}: entity {entity} is not defined", view.name));
            }
        }
        unique(&format!("feature view {}: column", view.name), view.schema.iter().map(|field| &field.name))?;
    }
    for service in &definitions.services {
        for part in &service.features {
            let Some(view) = definitions.views.iter().find(|view| view.name == part.view) else {
                return Err(format!(
                    "feature service {}: feature view {} is not defined",
                    service.name, part.view
                ));
            };
            for feature in &part.features {
                if !view.schema.is_empty() && !view.schema.iter().any(|field| field.name == *feature) {
                    return Err(format!(
                        "feature service {}: feature view {} has no feature {feature}",
                        service.name, part.view
                    ));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_all_their_names() {
        for (text, number) in [
            ("Int64", 4),
            ("INT64", 4),
            ("Array(Float32)", 16),
            ("FLOAT_LIST", 16),
            ("Set(String)", 23),
            ("UnixTimestamp", 8),
            ("Array(Map)", 21),
            ("Array(Array(Int64))", 42),
            ("Json", 32),
        ] {
            assert_eq!(type_number(text), Some(number), "{text}");
        }
        assert_eq!(type_number("Number"), None);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, problem) in [
            ("entitys: []", "entitys: unknown key"),
            ("entities: [{join_keys: [a]}]", "entities[0].name: required"),
            ("entities: [{name: a, value_type: Number}]", "entities[0].value_type: 'Number' is no type"),
            ("data_sources: [{name: s, path: p}]", "data_sources[0].timestamp_field: required"),
            ("feature_views: [{name: v, source: s}]", "feature view v: source s is not defined"),
            (
                "data_sources: [{name: s, path: p, timestamp_field: t}]\nfeature_views: [{name: v, source: s, ttl: 1y}]",
                "feature_views[0].ttl: use seconds",
            ),
            ("entities: [{name: a}, {name: A}]", "entity A: the name is taken"),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.starts_with(problem), "{found}");
        }
    }
}
