//! A request shape compiled once: which keys to build, which tables to read, which columns to print.

use std::cell::OnceCell;
use std::collections::HashMap;

use super::entity_key::KeyLayout;
use super::resolve::{self, Block, PlanError};
use super::types::KeyType;
use crate::registry::snapshot::{Snapshot, DUMMY_ENTITY, DUMMY_JOIN_KEY};
use crate::text::{json, pyfmt, pyrepr};

/// What a request asks for, before its values.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'r> {
    /// Service to serve; wins over `features`.
    pub service: Option<&'r str>,
    /// References.
    pub features: &'r [String],
    /// Prefix results with their view.
    pub full_names: bool,
    /// List the views and their versions in the answer.
    pub version_metadata: bool,
    /// Keys of `entities`, in request order.
    pub entity_names: &'r [&'r str],
}

/// One key of the request's `entities`.
#[derive(Debug)]
pub struct Input {
    /// Type its values are converted to.
    pub declared: KeyType,
}

/// An entity column of the answer.
#[derive(Debug)]
pub struct Echo {
    /// Which input's values it shows.
    pub input: usize,
}

/// Where one part of a key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// The values of this input.
    Input(usize),
    /// The empty string, for views without entities.
    Dummy,
}

/// How the keys of one or more views are built from the inputs.
#[derive(Debug)]
pub struct KeySet {
    /// Byte layout.
    pub layout: KeyLayout,
    /// Parts in layout order.
    pub sources: Vec<KeySource>,
}

/// One view to read.
#[derive(Debug)]
pub struct ViewRead {
    /// The view's own name, without alias or version.
    pub name: String,
    /// Name it is stored under: its own, with `_v<N>` for versions above 0.
    pub stored_name: String,
    /// Name of the SQLite table.
    pub table: String,
    /// Index into [`Plan::key_sets`]; `None` when the request has no key of this view at all.
    pub key_set: Option<usize>,
    /// Features to fetch.
    pub features: Vec<String>,
    by_name: HashMap<String, u32, foldhash::fast::RandomState>,
    /// Keys found in the request, by their original names.
    found: Vec<String>,
    /// Time to live in nanoseconds; 0 = none.
    pub ttl_nanos: i128,
    /// What a store works out for this view once.
    pub prepared: OnceCell<Box<[u8]>>,
}

impl ViewRead {
    /// Index of a feature among the requested ones.
    #[inline]
    pub fn feature(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).map(|&index| index as usize)
    }
}

/// How a service with pre-computed vectors is answered.
#[derive(Debug)]
pub struct Precomputed {
    /// Service name, for the error.
    pub service: String,
    /// The pseudo view that holds the vectors, with the first view's keys.
    pub read: ViewRead,
    /// Per feature column: its name, the view it shows in the vector's time list, that view's TTL.
    pub columns: Vec<PrecomputedColumn>,
}

/// One column of a pre-computed answer.
#[derive(Debug)]
pub struct PrecomputedColumn {
    /// Name expected in the vector.
    pub name: String,
    /// View whose time is compared with the TTL.
    pub view: String,
    /// TTL in nanoseconds; 0 = none.
    pub ttl_nanos: i128,
}

/// A compiled request shape. Holds no values and no user.
#[derive(Debug)]
pub struct Plan {
    /// Snapshot it was made from.
    pub generation: u64,
    /// Per key of `entities`.
    pub inputs: Vec<Input>,
    /// Entity columns of the answer.
    pub echoes: Vec<Echo>,
    /// Distinct ways to build keys.
    pub key_sets: Vec<KeySet>,
    /// Views in block order.
    pub views: Vec<ViewRead>,
    /// Set when vectors are served instead of the views.
    pub precomputed: Option<Precomputed>,
    /// Everything behind the list of results, up to the end of the body.
    pub tail: Vec<u8>,
    /// Features and views asked for, as metrics count them.
    pub sizes: (u64, u64),
    /// All join keys of the project and mapped keys of the request, sorted (for an error text).
    all_keys: Vec<String>,
    /// Recognised keys of the request (for the same text).
    provided: Vec<String>,
}

impl Plan {
    /// Compiles `shape` against `snapshot`. `key_version` is `entity_key_serialization_version`.
    pub fn compile(shape: &Shape<'_>, snapshot: &Snapshot, key_version: i64) -> Result<Self, PlanError> {
        let mut precompute = false;
        let blocks = match shape.service {
            Some(name) => {
                let service =
                    snapshot.service(name).ok_or_else(|| PlanError::ServiceNotFound(name.to_owned()))?;
                precompute = service.precompute_online && !service.projections.is_empty();
                resolve::service(snapshot, service, shape.full_names)?
            }
            None => resolve::references(snapshot, shape.features, shape.full_names)?,
        };
        let recognised = Recognised::find(shape, snapshot, &blocks);
        let mut plan = Self {
            generation: snapshot.generation,
            inputs: inputs(shape, &blocks),
            echoes: recognised.keys.iter().map(|&(_, input)| Echo { input }).collect(),
            key_sets: Vec::new(),
            views: Vec::new(),
            precomputed: None,
            tail: tail(shape, &recognised, &blocks, precompute),
            sizes: sizes(shape, snapshot).unwrap_or_default(),
            all_keys: all_keys(snapshot, &blocks),
            provided: recognised.provided.clone(),
        };
        let mut entity_less = false;
        for block in &blocks {
            if block.features.is_empty() {
                continue;
            }
            let join_keys = block.join_keys(snapshot)?;
            entity_less |= join_keys == [DUMMY_JOIN_KEY];
            let stored_name = stored_name(&block.view.name, block.read_version);
            let (key_set, found) = plan.key_set(&recognised, block, &join_keys, key_version);
            plan.views.push(view_read(block, &snapshot.project, stored_name, key_set, found));
        }
        if entity_less && !plan.provided.iter().any(|key| key == DUMMY_JOIN_KEY) {
            plan.provided.push(DUMMY_JOIN_KEY.to_owned());
        }
        if precompute {
            plan.precomputed = shape.service.map(|name| precomputed(name, shape, snapshot, &blocks, &plan));
        }
        Ok(plan)
    }

    fn key_set(
        &mut self,
        recognised: &Recognised,
        block: &Block<'_>,
        join_keys: &[String],
        version: i64,
    ) -> (Option<usize>, Vec<String>) {
        // Later keys of the request replace earlier ones that mean the same join key.
        let mut found: Vec<(&str, KeySource)> = Vec::new();
        for (name, input) in &recognised.keys {
            let original = block
                .join_key_map
                .iter()
                .find(|(_, mapped)| mapped == name)
                .map_or(name.as_str(), |(original, _)| original.as_str());
            if join_keys.iter().any(|key| key == original) {
                match found.iter_mut().find(|(key, _)| *key == original) {
                    Some(known) => known.1 = KeySource::Input(*input),
                    None => found.push((original, KeySource::Input(*input))),
                }
            }
        }
        if join_keys == [DUMMY_JOIN_KEY] {
            found = vec![(DUMMY_JOIN_KEY, KeySource::Dummy)];
        }
        let names = found.iter().map(|(name, _)| (*name).to_owned()).collect();
        if found.is_empty() {
            return (None, names);
        }
        found.sort_unstable_by_key(|&(name, _)| name);
        let sorted: Vec<&str> = found.iter().map(|&(name, _)| name).collect();
        let sources: Vec<KeySource> = found.iter().map(|&(_, source)| source).collect();
        let layout = KeyLayout::new(&sorted, version);
        let mut probe = Vec::new();
        layout.begin(&mut probe);
        // Views with the same keys share one set, so that keys are built once a request.
        let known = self.key_sets.iter().position(|set| {
            let mut head = Vec::new();
            set.layout.begin(&mut head);
            head == probe && set.sources == sources
        });
        let place = known.unwrap_or_else(|| {
            self.key_sets.push(KeySet { layout, sources });
            self.key_sets.len() - 1
        });
        (Some(place), names)
    }

    /// The reference's text when a view finds none of its keys in the request. `rows` is the row count.
    pub fn missing_keys(&self, view: &ViewRead, rows: usize) -> String {
        let absent: Vec<&str> = self
            .all_keys
            .iter()
            .map(String::as_str)
            .filter(|key| !view.found.iter().any(|f| f == key))
            .collect();
        let empty: Vec<&str> =
            if rows == 0 { self.all_keys.iter().map(String::as_str).collect() } else { absent.clone() };
        format!(
            "Missing join key values for keys: {}. No values provided for keys: {}. Provided join_key_values: {}",
            pyrepr::repr_list(absent),
            pyrepr::repr_list(empty),
            pyrepr::repr_list(self.provided.iter().map(String::as_str)),
        )
    }
}

/// Features and views that a request asks for, as metrics count them: all references, and the distinct views of
/// those that name one; of a service all features and all projections. `None`: there is no such service.
pub fn sizes(shape: &Shape<'_>, snapshot: &Snapshot) -> Option<(u64, u64)> {
    if let Some(name) = shape.service {
        let projections = &snapshot.service(name)?.projections;
        let features: usize = projections.iter().map(|projection| projection.features.len()).sum();
        return Some((features as u64, projections.len() as u64));
    }
    let mut views: Vec<&str> = shape.features.iter().filter_map(|name| resolve::view_of(name)).collect();
    views.sort_unstable();
    views.dedup();
    Some((shape.features.len() as u64, views.len() as u64))
}

/// Name that stores know a view by: its own, with `_v<N>` for versions above 0.
pub fn stored_name(view: &str, version: i32) -> String {
    if version > 0 {
        format!("{view}_v{version}")
    } else {
        view.to_owned()
    }
}

/// Name of the table of a view that is stored under this name.
pub fn table_name(project: &str, stored_name: &str) -> String {
    format!("{project}_{stored_name}")
}

fn view_read(
    block: &Block<'_>,
    project: &str,
    stored_name: String,
    key_set: Option<usize>,
    found: Vec<String>,
) -> ViewRead {
    let index = |(index, name): (usize, &String)| (name.clone(), index as u32);
    ViewRead {
        name: block.view.name.clone(),
        table: table_name(project, &stored_name),
        stored_name,
        key_set,
        features: block.features.clone(),
        by_name: block.features.iter().enumerate().map(index).collect(),
        found,
        ttl_nanos: block.view.ttl_nanos,
        prepared: OnceCell::new(),
    }
}

/// The keys of a request that mean something: join key (or mapped key) and the input with its values.
struct Recognised {
    keys: Vec<(String, usize)>,
    /// The same names, and the stand-in for "no entity" where the request names it.
    provided: Vec<String>,
}

impl Recognised {
    fn find(shape: &Shape<'_>, snapshot: &Snapshot, blocks: &[Block<'_>]) -> Self {
        let mut found = Self { keys: Vec::new(), provided: Vec::new() };
        let is_join_key = |name: &str| {
            snapshot.entities.iter().any(|entity| entity.join_key == name)
                || blocks.iter().any(|b| b.join_key_map.iter().any(|(_, mapped)| mapped == name))
        };
        for (input, &name) in shape.entity_names.iter().enumerate() {
            if name == DUMMY_JOIN_KEY || name == DUMMY_ENTITY {
                if !found.provided.iter().any(|known| known == DUMMY_JOIN_KEY) {
                    found.provided.push(DUMMY_JOIN_KEY.to_owned());
                }
                continue;
            }
            let key = if is_join_key(name) {
                name
            } else if let Some(key) = snapshot.join_key_of(name) {
                key
            } else {
                continue;
            };
            match found.keys.iter_mut().find(|(known, _)| known == key) {
                Some(known) => known.1 = input,
                None => {
                    found.provided.push(key.to_owned());
                    found.keys.push((key.to_owned(), input));
                }
            }
        }
        found
    }
}

/// The declared type of each key: that of the join key column of the requested views; a later view wins.
fn inputs(shape: &Shape<'_>, blocks: &[Block<'_>]) -> Vec<Input> {
    let mut declared: HashMap<&str, KeyType> = HashMap::new();
    for block in blocks {
        for column in &block.view.entity_columns {
            let mapped = block.join_key_map.iter().find(|(original, _)| *original == column.name);
            let name = mapped.map_or(column.name.as_str(), |(_, mapped)| mapped.as_str());
            declared.insert(name, KeyType::from_number(column.value_type));
        }
    }
    let of = |name: &&str| declared.get(name).copied().unwrap_or(KeyType::Inferred);
    shape.entity_names.iter().map(|name| Input { declared: of(name) }).collect()
}

fn all_keys(snapshot: &Snapshot, blocks: &[Block<'_>]) -> Vec<String> {
    let of_entities = snapshot.entities.iter().map(|entity| entity.join_key.clone());
    let mapped = blocks.iter().flat_map(|b| b.join_key_map.iter().map(|(_, mapped)| mapped.clone()));
    let mut keys: Vec<String> = of_entities.chain(mapped).filter(|key| key != DUMMY_JOIN_KEY).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

fn column_name(block: &Block<'_>, feature: &str, full_names: bool) -> String {
    if full_names {
        format!("{}__{feature}", block.shown_name())
    } else {
        feature.to_owned()
    }
}

/// Renders what follows the results: `],"metadata":{"feature_names":[...]...}}`.
fn tail(shape: &Shape<'_>, recognised: &Recognised, blocks: &[Block<'_>], precompute: bool) -> Vec<u8> {
    let mut out = b"]".to_vec();
    let mut names: Vec<String> = recognised.keys.iter().map(|(name, _)| name.clone()).collect();
    for block in blocks {
        names.extend(block.features.iter().map(|f| column_name(block, f, shape.full_names)));
    }
    if !names.is_empty() || !recognised.provided.is_empty() {
        out.extend_from_slice(b",\"metadata\":{\"feature_names\":[");
        for (index, name) in names.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            json::write_str(&mut out, name);
        }
        out.push(b']');
        if shape.version_metadata && !precompute {
            write_view_metadata(&mut out, blocks);
        }
        out.push(b'}');
    }
    out.push(b'}');
    out
}

fn write_view_metadata(out: &mut Vec<u8>, blocks: &[Block<'_>]) {
    let mut seen: Vec<&str> = Vec::new();
    for block in blocks.iter().filter(|block| !block.features.is_empty()) {
        if seen.contains(&block.name.as_str()) {
            continue;
        }
        out.extend_from_slice(if seen.is_empty() { b",\"feature_view_metadata\":[" } else { b"," });
        seen.push(&block.name);
        out.extend_from_slice(b"{\"name\":");
        json::write_str(out, &block.name);
        if block.reported_version != 0 {
            out.extend_from_slice(b",\"version\":");
            pyfmt::write_i64(out, i64::from(block.reported_version));
        }
        out.push(b'}');
    }
    if !seen.is_empty() {
        out.push(b']');
    }
}

fn precomputed(
    service: &str,
    shape: &Shape<'_>,
    snapshot: &Snapshot,
    blocks: &[Block<'_>],
    plan: &Plan,
) -> Precomputed {
    let vector = "vector".to_owned();
    let first = plan.views.first();
    let pseudo_view = format!("__precomputed__{service}");
    let mut columns = Vec::new();
    for block in blocks {
        for feature in &block.features {
            columns.push(PrecomputedColumn {
                name: column_name(block, feature, shape.full_names),
                view: block.name.clone(),
                ttl_nanos: block.view.ttl_nanos,
            });
        }
    }
    Precomputed {
        service: service.to_owned(),
        read: ViewRead {
            table: table_name(&snapshot.project, &pseudo_view),
            stored_name: pseudo_view.clone(),
            name: pseudo_view,
            key_set: first.and_then(|view| view.key_set),
            by_name: [(vector.clone(), 0)].into_iter().collect(),
            features: vec![vector],
            found: first.map(|view| view.found.clone()).unwrap_or_default(),
            ttl_nanos: 0,
            prepared: OnceCell::new(),
        },
        columns,
    }
}
