//! Definitions decoded from the registry: only what serving needs; everything else is skipped.
//!
//! Field numbers are those of Feast 0.67's `feast.core` messages.

use super::source::{source, Source};
use super::wire::{Fields, Payload, WireError};

/// `feast.core.FeatureSpecV2`: a name and the number of a `ValueType`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Field {
    /// Column name.
    pub name: String,
    /// `feast.types.ValueType.Enum` number.
    pub value_type: u32,
}

/// `feast.core.Entity`.
#[derive(Debug, Clone, Default)]
pub struct Entity {
    /// Entity name, the deprecated way to name a key in a request.
    pub name: String,
    /// Column that identifies it.
    pub join_key: String,
    /// Project it belongs to.
    pub project: String,
    /// `feast.types.ValueType.Enum` number.
    pub value_type: u32,
    /// What it is, for people.
    pub description: String,
}

/// `feast.core.FeatureViewState`, as far as serving cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// `STATE_UNSPECIFIED` or `AVAILABLE_ONLINE` (or a number this version does not know).
    #[default]
    Serving,
    /// `CREATED`: nothing was written yet.
    Created,
    /// `GENERATED`.
    Generated,
    /// `MATERIALIZING`: a job writes to the store right now.
    Materializing,
}

impl State {
    fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Created,
            2 => Self::Generated,
            3 => Self::Materializing,
            _ => Self::Serving,
        }
    }

    /// The name the reference prints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "AVAILABLE_ONLINE",
            Self::Created => "CREATED",
            Self::Generated => "GENERATED",
            Self::Materializing => "MATERIALIZING",
        }
    }
}

/// Which message a view was stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ViewKind {
    /// `FeatureView`
    #[default]
    Plain,
    /// `StreamFeatureView`
    Stream,
    /// `LabelView`
    Label,
    /// `OnDemandFeatureView`
    OnDemand {
        /// Its results are written to the online store and read like a plain view's.
        stored: bool,
    },
}

/// A feature view of any kind.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Stored as.
    pub kind: ViewKind,
    /// Name, unique in the project.
    pub name: String,
    /// Project it belongs to.
    pub project: String,
    /// Entity names.
    pub entities: Vec<String>,
    /// Features in stored order.
    pub features: Vec<Field>,
    /// Join key columns with their types.
    pub entity_columns: Vec<Field>,
    /// Time to live in nanoseconds; 0 = none.
    pub ttl_nanos: i128,
    /// Serving was switched off.
    pub disabled: bool,
    /// Life cycle.
    pub state: State,
    /// `meta.current_version_number`; 0 = the first.
    pub version: i32,
    /// End of the latest materialization, nanoseconds since the epoch.
    pub materialized_until: Option<i128>,
    /// `spec.online`: materialized into the online store.
    pub online: bool,
    /// `spec.offline`
    pub offline: bool,
    /// What it is materialized from, and what offline pushes append to.
    pub batch_source: Option<Source>,
    /// What feeds it between materializations.
    pub stream_source: Option<Source>,
}

/// `feast.core.FeatureViewProjection`: a view as a service uses it.
#[derive(Debug, Clone, Default)]
pub struct Projection {
    /// View it projects.
    pub view: String,
    /// Selected features in stored order.
    pub features: Vec<Field>,
    /// Name the view goes by in this service; empty = its own.
    pub alias: String,
    /// Original join key and the name it has in requests.
    pub join_key_map: Vec<(String, String)>,
    /// Pinned version.
    pub version: Option<i32>,
}

impl Projection {
    /// The alias, or else the view's name.
    pub fn name_to_use(&self) -> &str {
        if self.alias.is_empty() {
            &self.view
        } else {
            &self.alias
        }
    }
}

/// `feast.core.FeatureService`.
#[derive(Debug, Clone, Default)]
pub struct Service {
    /// Name, unique in the project.
    pub name: String,
    /// Project it belongs to.
    pub project: String,
    /// What it selects.
    pub projections: Vec<Projection>,
    /// Served from vectors written beforehand.
    pub precompute_online: bool,
}

/// A snapshot of a view taken at an earlier version.
#[derive(Debug, Clone, Default)]
pub struct VersionRecord {
    /// View name.
    pub view_name: String,
    /// Project.
    pub project: String,
    /// Version number, 0 = the first.
    pub number: i32,
    /// The definition at that version, if it could be decoded.
    pub view: Option<View>,
}

/// The decoded registry, all projects.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// All entities.
    pub entities: Vec<Entity>,
    /// All views, in the order the reference searches them: plain, stream, on-demand, label.
    pub views: Vec<View>,
    /// All services.
    pub services: Vec<Service>,
    /// All recorded versions.
    pub versions: Vec<VersionRecord>,
    /// All data sources.
    pub sources: Vec<Source>,
}

impl Registry {
    /// Decodes a serialized `feast.core.Registry`; empty bytes are an empty registry.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut registry = Self::default();
        let (mut stream, mut on_demand, mut label) = (Vec::new(), Vec::new(), Vec::new());
        for field in Fields::new(bytes) {
            let (number, payload) = field?;
            let message = payload.bytes();
            match number {
                1 => registry.entities.push(entity(message)?),
                6 => registry.views.push(view(message, &PLAIN)?),
                7 => registry.services.push(service(message)?),
                8 => on_demand.push(view(message, &ON_DEMAND)?),
                14 => stream.push(view(message, &STREAM)?),
                18 => versions(message, &mut registry.versions)?,
                19 => label.push(view(message, &LABEL)?),
                12 => registry.sources.push(source(message)?),
                // Named here so that a broken part is noticed, as the reference's full parse would.
                10 | 11 | 13 | 15 | 16 | 17 => check(message)?,
                _ => {}
            }
        }
        for part in [stream, on_demand, label] {
            registry.views.extend(part);
        }
        Ok(registry)
    }
}

fn check(message: &[u8]) -> Result<(), WireError> {
    Fields::new(message).try_for_each(|field| field.map(|_| ()))
}

pub(super) fn text(payload: Payload<'_>) -> Result<String, WireError> {
    payload.str().map(str::to_owned)
}

/// Calls `each` for the fields of sub-message `number` of `message`, over all its occurrences.
fn within<'a>(
    message: &'a [u8],
    number: u32,
    mut each: impl FnMut(u32, Payload<'a>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    for field in Fields::new(message) {
        let (found, payload) = field?;
        if found == number {
            for inner in Fields::new(payload.bytes()) {
                let (number, payload) = inner?;
                each(number, payload)?;
            }
        }
    }
    Ok(())
}

fn entity(message: &[u8]) -> Result<Entity, WireError> {
    let mut entity = Entity::default();
    within(message, 1, |number, payload| {
        match number {
            1 => entity.name = text(payload)?,
            2 => entity.value_type = payload.varint() as u32,
            3 => entity.description = text(payload)?,
            4 => entity.join_key = text(payload)?,
            9 => entity.project = text(payload)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(entity)
}

fn feature_spec(message: &[u8]) -> Result<Field, WireError> {
    let mut spec = Field::default();
    for field in Fields::new(message) {
        match field? {
            (1, payload) => spec.name = text(payload)?,
            (2, payload) => spec.value_type = payload.varint() as u32,
            _ => {}
        }
    }
    Ok(spec)
}

/// Where the kinds of view keep the same facts: field numbers in their spec and meta messages.
struct Layout {
    kind: ViewKind,
    entities: u32,
    features: u32,
    entity_columns: u32,
    ttl: u32,
    disabled: u32,
    stored: u32,
    version: u32,
    state: u32,
    intervals: u32,
    online: u32,
    offline: u32,
    batch_source: u32,
    stream_source: u32,
}

const NONE: u32 = u32::MAX;
const PLAIN: Layout = Layout {
    kind: ViewKind::Plain,
    entities: 3,
    features: 4,
    entity_columns: 12,
    ttl: 6,
    disabled: 20,
    stored: NONE,
    version: 4,
    state: 6,
    intervals: 3,
    online: 8,
    offline: 13,
    batch_source: 7,
    stream_source: 9,
};
const STREAM: Layout = Layout {
    kind: ViewKind::Stream,
    entity_columns: 5,
    ttl: 9,
    disabled: 23,
    online: 12,
    offline: NONE,
    batch_source: 10,
    stream_source: 11,
    ..PLAIN
};
const LABEL: Layout = Layout {
    kind: ViewKind::Label,
    entity_columns: 11,
    disabled: NONE,
    version: NONE,
    state: NONE,
    intervals: NONE,
    offline: NONE,
    // A label view has one source; it is fed by it if that is a push source.
    batch_source: NONE,
    stream_source: 7,
    ..PLAIN
};
const ON_DEMAND: Layout = Layout {
    kind: ViewKind::OnDemand { stored: false },
    entities: 13,
    features: 3,
    entity_columns: 14,
    ttl: NONE,
    disabled: 19,
    stored: 12,
    version: 3,
    state: 5,
    intervals: NONE,
    online: NONE,
    offline: NONE,
    batch_source: NONE,
    stream_source: NONE,
};

fn view(message: &[u8], layout: &Layout) -> Result<View, WireError> {
    let mut view = View { kind: layout.kind, ..View::default() };
    within(message, 1, |number, payload| {
        match number {
            1 => view.name = text(payload)?,
            2 => view.project = text(payload)?,
            n if n == layout.entities => view.entities.push(text(payload)?),
            n if n == layout.features => view.features.push(feature_spec(payload.bytes())?),
            n if n == layout.entity_columns => {
                view.entity_columns.push(feature_spec(payload.bytes())?);
            }
            n if n == layout.online => view.online = payload.varint() != 0,
            n if n == layout.offline => view.offline = payload.varint() != 0,
            n if n == layout.batch_source => view.batch_source = Some(source(payload.bytes())?),
            n if n == layout.stream_source => {
                let (stream, batch) = stream_source(payload.bytes())?;
                view.stream_source = Some(stream);
                // Stored beside the stream source, too, unless that is all a view has.
                view.batch_source = view.batch_source.take().or(batch);
            }
            n if n == layout.ttl => view.ttl_nanos = duration(payload.bytes())?,
            n if n == layout.disabled => view.disabled = payload.varint() != 0,
            n if n == layout.stored => {
                view.kind = ViewKind::OnDemand { stored: payload.varint() != 0 };
            }
            _ => {}
        }
        Ok(())
    })?;
    within(message, 2, |number, payload| {
        match number {
            n if n == layout.version => view.version = payload.varint() as i32,
            n if n == layout.state => view.state = State::from_number(payload.varint()),
            n if n == layout.intervals => {
                view.materialized_until = view.materialized_until.max(interval_end(payload.bytes())?);
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(view)
}

/// A stream source and the batch source inside it.
fn stream_source(message: &[u8]) -> Result<(Source, Option<Source>), WireError> {
    let mut batch = None;
    for field in Fields::new(message) {
        if let (26, payload) = field? {
            batch = Some(source(payload.bytes())?);
        }
    }
    Ok((source(message)?, batch))
}

/// End of a `feast.core.MaterializationInterval`.
fn interval_end(message: &[u8]) -> Result<Option<i128>, WireError> {
    let mut end = None;
    for field in Fields::new(message) {
        if let (2, payload) = field? {
            end = Some(duration(payload.bytes())?);
        }
    }
    Ok(end)
}

fn duration(message: &[u8]) -> Result<i128, WireError> {
    let (seconds, nanos) = seconds_and_nanos(message)?;
    Ok(i128::from(seconds) * 1_000_000_000 + i128::from(nanos))
}

/// Reads a `google.protobuf.Timestamp` or `Duration`: whole seconds and nanoseconds.
pub fn seconds_and_nanos(message: &[u8]) -> Result<(i64, i32), WireError> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::new(message) {
        match field? {
            (1, payload) => seconds = payload.varint() as i64,
            (2, payload) => nanos = payload.varint() as i32,
            _ => {}
        }
    }
    Ok((seconds, nanos))
}

fn service(message: &[u8]) -> Result<Service, WireError> {
    let mut service = Service::default();
    within(message, 1, |number, payload| {
        match number {
            1 => service.name = text(payload)?,
            2 => service.project = text(payload)?,
            3 => service.projections.push(projection(payload.bytes())?),
            8 => service.precompute_online = payload.varint() != 0,
            _ => {}
        }
        Ok(())
    })?;
    Ok(service)
}

/// An entry of a map of texts: its key and its value.
pub(super) fn map_entry(message: &[u8]) -> Result<(String, String), WireError> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in Fields::new(message) {
        match field? {
            (1, payload) => key = text(payload)?,
            (2, payload) => value = text(payload)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn projection(message: &[u8]) -> Result<Projection, WireError> {
    let mut projection = Projection::default();
    for field in Fields::new(message) {
        let (number, payload) = field?;
        match number {
            1 => projection.view = text(payload)?,
            2 => projection.features.push(feature_spec(payload.bytes())?),
            3 => projection.alias = text(payload)?,
            4 => {
                let (from, to) = map_entry(payload.bytes())?;
                projection.join_key_map.retain(|(key, _)| *key != from);
                projection.join_key_map.push((from, to));
            }
            10 => projection.version = Some(payload.varint() as i32),
            _ => {}
        }
    }
    Ok(projection)
}

fn versions(message: &[u8], records: &mut Vec<VersionRecord>) -> Result<(), WireError> {
    for field in Fields::new(message) {
        let (1, payload) = field? else { continue };
        let mut record = VersionRecord::default();
        let (mut kind, mut definition) = ("", &[][..]);
        for field in Fields::new(payload.bytes()) {
            match field? {
                (1, payload) => record.view_name = text(payload)?,
                (2, payload) => record.project = text(payload)?,
                (3, payload) => record.number = payload.varint() as i32,
                (4, payload) => kind = payload.str()?,
                (5, payload) => definition = payload.bytes(),
                _ => {}
            }
        }
        let layout = match kind {
            "stream_feature_view" => &STREAM,
            "on_demand_feature_view" => &ON_DEMAND,
            "label_view" => &LABEL,
            _ => &PLAIN,
        };
        record.view = view(definition, layout).ok();
        records.push(record);
    }
    Ok(())
}
