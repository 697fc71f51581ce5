//! Data sources: where a view's rows come from.

use super::model::{map_entry, text};
use super::wire::{Fields, WireError};

/// `feast.core.DataSource.SourceType`, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourceKind {
    /// `BATCH_FILE`
    File,
    /// `PUSH_SOURCE`
    Push,
    /// Anything else, by its number.
    Other(u32),
    /// No source.
    #[default]
    None,
}

/// `feast.core.DataSource`.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// What it is.
    pub kind: SourceKind,
    /// Name, unique in the project.
    pub name: String,
    /// Project it belongs to; empty inside views.
    pub project: String,
    /// Column with the event time.
    pub timestamp_field: String,
    /// Column with the time a row was made; empty = none.
    pub created_field: String,
    /// Column of the source and the name it has in the view.
    pub field_mapping: Vec<(String, String)>,
    /// Path or URI of a file source.
    pub path: String,
}

impl Source {
    /// The name that column `name` of the source has in the view.
    pub fn mapped<'n>(&'n self, name: &'n str) -> &'n str {
        self.field_mapping.iter().find(|(from, _)| from == name).map_or(name, |(_, to)| to)
    }

    /// The column of the source that is called `name` in the view.
    pub fn column<'n>(&'n self, name: &'n str) -> &'n str {
        self.field_mapping.iter().find(|(_, to)| to == name).map_or(name, |(from, _)| from)
    }
}

/// Decodes a `feast.core.DataSource`.
pub(super) fn source(message: &[u8]) -> Result<Source, WireError> {
    let mut source = Source::default();
    for field in Fields::new(message) {
        let (number, payload) = field?;
        match number {
            1 => {
                source.kind = match payload.varint() {
                    1 => SourceKind::File,
                    9 => SourceKind::Push,
                    other => SourceKind::Other(other as u32),
                }
            }
            2 => source.field_mapping.push(map_entry(payload.bytes())?),
            3 => source.timestamp_field = text(payload)?,
            5 => source.created_field = text(payload)?,
            11 => {
                for option in Fields::new(payload.bytes()) {
                    if let (2, payload) = option? {
                        source.path = text(payload)?;
                    }
                }
            }
            20 => source.name = text(payload)?,
            21 => source.project = text(payload)?,
            _ => {}
        }
    }
    Ok(source)
}
