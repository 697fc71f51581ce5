//! What does a repository declare? Definitions in YAML, with the names that Feast's Python classes have, and how
//! they become a registry.
//!
//! `read` checks the text, `build` writes the messages, `apply` compares them with the registry. What must not
//! happen here: online stores, output.

pub mod apply;
mod build;
mod read;

pub use read::{check, read};

use std::path::{Path, PathBuf};

/// The file of a repository's definitions.
pub const FILE: &str = "definitions.yaml";

/// Everything that is declared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Definitions {
    /// `entities`
    pub entities: Vec<Entity>,
    /// `data_sources`
    pub sources: Vec<Source>,
    /// `feature_views`
    pub views: Vec<View>,
    /// `feature_services`
    pub services: Vec<Service>,
    /// `permissions`
    pub permissions: Vec<Permission>,
}

/// Texts that every object may have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// `description`
    pub description: String,
    /// `tags`
    pub tags: Vec<(String, String)>,
    /// `owner`
    pub owner: String,
}

/// An entity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entity {
    /// Its name.
    pub name: String,
    /// The column that identifies it.
    pub join_key: String,
    /// Number of its `ValueType`.
    pub value_type: u32,
    /// Texts.
    pub about: About,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Number of its `ValueType`.
    pub value_type: u32,
    /// Texts.
    pub about: About,
}

/// A data source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Path of a file source; empty for a push source.
    pub path: String,
    /// The batch source of a push source.
    pub batch: Option<String>,
    /// Column with the event time.
    pub timestamp_field: String,
    /// Column with the time a row was made.
    pub created_field: String,
    /// Columns that the view calls otherwise.
    pub field_mapping: Vec<(String, String)>,
    /// Texts.
    pub about: About,
}

/// A feature view.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Its name.
    pub name: String,
    /// Names of its entities.
    pub entities: Vec<String>,
    /// Its columns, join keys among them if that was written; empty = those of the source.
    pub schema: Vec<Field>,
    /// The name of its source.
    pub source: String,
    /// Time to live in seconds.
    pub ttl: i64,
    /// Materialized into the online store.
    pub online: bool,
    /// Written to its batch source as well.
    pub offline: bool,
    /// Texts.
    pub about: About,
}

/// A view, or a part of it, in a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Projection {
    /// The view.
    pub view: String,
    /// Its features; empty = all.
    pub features: Vec<String>,
}

/// A feature service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What it serves.
    pub features: Vec<Projection>,
    /// Texts.
    pub about: About,
}

/// A permission.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Permission {
    /// Its name.
    pub name: String,
    /// Numbers of the types of objects.
    pub types: Vec<u32>,
    /// Patterns of their names.
    pub name_patterns: Vec<String>,
    /// Numbers of the actions.
    pub actions: Vec<u32>,
    /// Roles that have it.
    pub roles: Vec<String>,
    /// Texts.
    pub about: About,
}

/// Where a repository's definitions are, if they are declared.
pub fn file_of(repo: &Path) -> Option<PathBuf> {
    let file = repo.join(FILE);
    file.is_file().then_some(file)
}
