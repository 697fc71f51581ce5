//! One project of a registry, indexed by name. Immutable: workers share it behind an `Arc`, and forked
//! workers share its pages with the master, so nothing here may hold a counter or a cache.

use std::collections::HashMap;

use super::model::{Entity, Registry, Service, VersionRecord, View};
use super::source::SourceKind;
use super::wire::WireError;

/// The join key that stands for "no entity"; never echoed, its value is the empty string.
pub const DUMMY_JOIN_KEY: &str = "__dummy_id";
/// The entity of views without entities.
pub const DUMMY_ENTITY: &str = "__dummy";

/// Switches of the `registry` block that change what a reference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotRules {
    /// `registry.enable_online_feature_view_versioning`
    pub versioning: bool,
    /// A view in state MATERIALIZING may be read.
    pub serve_while_materializing: bool,
}

/// Everything one project defines, as of one version of the registry file.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the loads of this process tree; plans made from another generation are stale.
    pub generation: u64,
    /// Project name.
    pub project: String,
    /// Rules that hold for it.
    pub rules: SnapshotRules,
    /// Entities of the project.
    pub entities: Vec<Entity>,
    views: Vec<View>,
    views_by_name: HashMap<String, usize>,
    services: HashMap<String, Service>,
    versions: Vec<VersionRecord>,
    push_sources: Vec<String>,
}

impl Snapshot {
    /// Decodes `bytes` and keeps what belongs to `project`.
    pub fn decode(
        bytes: &[u8],
        project: &str,
        rules: SnapshotRules,
        generation: u64,
    ) -> Result<Self, WireError> {
        let registry = Registry::decode(bytes)?;
        let views: Vec<View> = registry.views.into_iter().filter(|v| v.project == project).collect();
        let mut views_by_name = HashMap::with_capacity(views.len());
        for (index, view) in views.iter().enumerate() {
            // The first of a name wins: views are in the order in which the reference searches the kinds.
            views_by_name.entry(view.name.clone()).or_insert(index);
        }
        Ok(Self {
            generation,
            project: project.to_owned(),
            rules,
            entities: registry.entities.into_iter().filter(|e| e.project == project).collect(),
            views,
            views_by_name,
            services: registry
                .services
                .into_iter()
                .filter(|s| s.project == project)
                .map(|s| (s.name.clone(), s))
                .collect(),
            versions: registry.versions.into_iter().filter(|v| v.project == project).collect(),
            push_sources: registry
                .sources
                .into_iter()
                .filter(|s| s.kind == SourceKind::Push && s.project == project)
                .map(|s| s.name)
                .collect(),
        })
    }

    /// The current definition of a view.
    pub fn view(&self, name: &str) -> Option<&View> {
        self.views_by_name.get(name).map(|&index| &self.views[index])
    }

    /// A view as it was at version `number`.
    pub fn view_at(&self, name: &str, number: i32) -> Option<&View> {
        self.versions
            .iter()
            .filter(|record| record.view_name == name && record.number == number)
            .find_map(|record| record.view.as_ref())
    }

    /// All views.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// True when there is a push source of this name.
    pub fn has_push_source(&self, name: &str) -> bool {
        self.push_sources.iter().any(|known| known == name)
    }

    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// A service by name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    /// The join key of the entity called `name`.
    pub fn join_key_of(&self, name: &str) -> Option<&str> {
        if name == DUMMY_ENTITY {
            return Some(DUMMY_JOIN_KEY);
        }
        self.entities.iter().find(|entity| entity.name == name).map(|entity| entity.join_key.as_str())
    }
}
