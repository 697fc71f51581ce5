//! From references or a service to the views that must be read, with the checks in the reference's order.

use std::collections::HashSet;

use crate::registry::model::{Service, State, View, ViewKind};
use crate::registry::snapshot::{Snapshot, DUMMY_JOIN_KEY};

/// Why a request names something that cannot be read. The variants carry data; what a client sees of them is
/// decided in `api::error`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// No such service in the project.
    ServiceNotFound(String),
    /// Neither a service nor a reference.
    NoFeatures,
    /// A reference without `:`.
    InvalidReference(String),
    /// `view@vN` while versions are not served.
    VersioningOff(String),
    /// No such version.
    VersionNotFound {
        /// View name.
        view: String,
        /// Version asked for.
        version: i32,
    },
    /// No such view in the project.
    ViewNotFound(String),
    /// A view names an entity that is not defined.
    EntityNotFound(String),
    /// The view is switched off.
    Disabled(String),
    /// The view's life cycle forbids serving.
    NotServing {
        /// View name.
        view: String,
        /// Its state.
        state: State,
    },
    /// Two results would have one name.
    Collision {
        /// The names.
        names: Vec<String>,
        /// The request asked for full names.
        full_names: bool,
    },
    /// The view has no such feature.
    FeatureNotFound {
        /// Feature asked for.
        feature: String,
        /// View as it was asked for.
        projection: String,
    },
    /// A service selects a feature that its view no longer has.
    ProjectionMismatch {
        /// View name.
        view: String,
        /// The missing feature.
        feature: String,
    },
    /// The result has to be computed by a Python function.
    OnDemand(String),
}

/// One block of result columns: a view under one name.
#[derive(Debug)]
pub struct Block<'s> {
    /// The definition, at the version asked for.
    pub view: &'s View,
    /// Alias or name.
    pub name: String,
    /// `@vN` was asked for.
    pub pinned: Option<i32>,
    /// The stored version that is read; 0 = the table without suffix.
    pub read_version: i32,
    /// The version number reported in the metadata.
    pub reported_version: i32,
    /// Original join key and its name in requests.
    pub join_key_map: &'s [(String, String)],
    /// Requested features, each once, in request order.
    pub features: Vec<String>,
}

impl Block<'_> {
    /// Alias or name, with the pinned version.
    pub fn shown_name(&self) -> String {
        match self.pinned {
            Some(version) => format!("{}@v{version}", self.name),
            None => self.name.clone(),
        }
    }

    /// Names of the join keys in the definition, sorted by code point.
    pub fn join_keys(&self, snapshot: &Snapshot) -> Result<Vec<String>, PlanError> {
        if self.view.entities.is_empty() {
            return Ok(vec![DUMMY_JOIN_KEY.to_owned()]);
        }
        let mut keys = Vec::with_capacity(self.view.entities.len());
        for name in &self.view.entities {
            let key = snapshot.join_key_of(name).ok_or_else(|| PlanError::EntityNotFound(name.clone()))?;
            keys.push(key.to_owned());
        }
        keys.sort_unstable();
        Ok(keys)
    }
}

/// A reference taken apart: `view[@version]:feature`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reference<'r> {
    view_part: &'r str,
    view: &'r str,
    version: Option<i32>,
    feature: &'r str,
}

fn parse(reference: &str) -> Result<Reference<'_>, PlanError> {
    let (view_part, feature) =
        reference.split_once(':').ok_or_else(|| PlanError::InvalidReference(reference.to_owned()))?;
    let (view, version) = match view_part.split_once('@') {
        None => (view_part, None),
        Some((view, tag)) if tag.is_empty() || tag.eq_ignore_ascii_case("latest") => (view, None),
        Some((view, tag)) => match version_number(tag) {
            Some(number) => (view, Some(number)),
            None => (view_part, None),
        },
    };
    Ok(Reference { view_part, view, version, feature })
}

/// The view that a reference names, without its version; `None` when it names none.
pub fn view_of(reference: &str) -> Option<&str> {
    parse(reference).ok().map(|reference| reference.view)
}

fn version_number(tag: &str) -> Option<i32> {
    let digits = tag.strip_prefix(['v', 'V'])?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    // A number that no version has is a version nevertheless.
    plain.then(|| digits.parse().unwrap_or(i32::MAX))
}

/// Checks that a view may be served.
fn may_serve(view: &View, snapshot: &Snapshot) -> Result<(), PlanError> {
    if view.disabled {
        return Err(PlanError::Disabled(view.name.clone()));
    }
    match view.state {
        State::Serving => Ok(()),
        State::Materializing if snapshot.rules.serve_while_materializing => Ok(()),
        state => Err(PlanError::NotServing { view: view.name.clone(), state }),
    }
}

/// Finds the definition of a view at the version asked for.
fn find<'s>(
    snapshot: &'s Snapshot,
    name: &str,
    view_part: &str,
    version: Option<i32>,
) -> Result<&'s View, PlanError> {
    let Some(number) = version else {
        return snapshot.view(name).ok_or_else(|| PlanError::ViewNotFound(name.to_owned()));
    };
    if !snapshot.rules.versioning {
        return Err(PlanError::VersioningOff(view_part.to_owned()));
    }
    snapshot
        .view_at(name, number)
        .ok_or_else(|| PlanError::VersionNotFound { view: name.to_owned(), version: number })
}

/// Resolves a list of references.
pub fn references<'s>(
    snapshot: &'s Snapshot,
    refs: &[String],
    full_names: bool,
) -> Result<Vec<Block<'s>>, PlanError> {
    if refs.is_empty() {
        return Err(PlanError::NoFeatures);
    }
    let parsed: Vec<Reference<'_>> =
        refs.iter().map(|reference| parse(reference)).collect::<Result<_, _>>()?;
    let mut blocks: Vec<Block<'s>> = Vec::new();
    let mut places = Vec::with_capacity(parsed.len());
    let mut known = std::collections::HashMap::new();
    for reference in &parsed {
        let place = match known.get(&(reference.view, reference.version)) {
            Some(&place) => place,
            None => {
                let view = find(snapshot, reference.view, reference.view_part, reference.version)?;
                may_serve(view, snapshot)?;
                let current = if snapshot.rules.versioning { view.version } else { 0 };
                blocks.push(Block {
                    view,
                    name: reference.view.to_owned(),
                    pinned: reference.version,
                    read_version: reference.version.unwrap_or(current),
                    reported_version: reference.version.unwrap_or(current),
                    join_key_map: &[],
                    features: Vec::new(),
                });
                known.insert((reference.view, reference.version), blocks.len() - 1);
                blocks.len() - 1
            }
        };
        places.push(place);
    }
    let wanted = parsed.iter().zip(refs).zip(&places).map(|((reference, text), &place)| {
        let shown = &blocks[place];
        let full = || {
            let version = shown.pinned.map_or(String::new(), |number| format!("@v{number}"));
            format!("{}{version}__{}", reference.view, reference.feature)
        };
        (text.as_str(), reference.feature, full)
    });
    check_collisions(wanted, full_names)?;
    for (reference, &place) in parsed.iter().zip(&places) {
        let block = &mut blocks[place];
        let stored_result = block.view.kind == ViewKind::OnDemand { stored: true };
        let has = block.view.features.iter().any(|field| field.name == reference.feature);
        if !has && !stored_result {
            return Err(PlanError::FeatureNotFound {
                feature: reference.feature.to_owned(),
                projection: block.shown_name(),
            });
        }
        if !block.features.iter().any(|feature| feature == reference.feature) {
            block.features.push(reference.feature.to_owned());
        }
    }
    refuse_computed(&blocks)?;
    Ok(blocks)
}

/// Resolves the projections of a service.
pub fn service<'s>(
    snapshot: &'s Snapshot,
    service: &'s Service,
    full_names: bool,
) -> Result<Vec<Block<'s>>, PlanError> {
    let mut blocks = Vec::with_capacity(service.projections.len());
    for projection in &service.projections {
        let view = match projection.version.filter(|_| snapshot.rules.versioning) {
            Some(number) => find(snapshot, &projection.view, &projection.view, Some(number))?,
            None => find(snapshot, &projection.view, &projection.view, None)?,
        };
        may_serve(view, snapshot)?;
        for field in &projection.features {
            if !view.features.iter().any(|known| known.name == field.name) {
                return Err(PlanError::ProjectionMismatch {
                    view: view.name.clone(),
                    feature: field.name.clone(),
                });
            }
        }
        let pinned = projection.version.filter(|_| snapshot.rules.versioning);
        blocks.push(Block {
            view,
            name: projection.name_to_use().to_owned(),
            pinned,
            // Without a pin the reference reads the table of the first version.
            read_version: pinned.unwrap_or(0),
            reported_version: 0,
            join_key_map: &projection.join_key_map,
            features: projection.features.iter().map(|field| field.name.clone()).collect(),
        });
    }
    let mut texts = Vec::new();
    for block in &blocks {
        let shown = block.shown_name();
        for feature in &block.features {
            texts.push((format!("{shown}:{feature}"), feature.as_str(), format!("{shown}__{feature}")));
        }
    }
    check_collisions(
        texts.iter().map(|(text, feature, full)| (text.as_str(), *feature, || full.clone())),
        full_names,
    )?;
    refuse_computed(&blocks)?;
    Ok(blocks)
}

/// `wanted`: per result its reference text, its feature and a way to make its full name.
fn check_collisions<'r, F: Fn() -> String>(
    wanted: impl Iterator<Item = (&'r str, &'r str, F)>,
    full_names: bool,
) -> Result<(), PlanError> {
    let mut seen = HashSet::new();
    let mut names: Vec<String> = Vec::new();
    for (text, feature, full) in wanted {
        if !seen.insert(if full_names { text } else { feature }) {
            let name = if full_names { full() } else { feature.to_owned() };
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    if names.is_empty() {
        Ok(())
    } else {
        Err(PlanError::Collision { names, full_names })
    }
}

fn refuse_computed(blocks: &[Block<'_>]) -> Result<(), PlanError> {
    match blocks.iter().find(|block| block.view.kind == ViewKind::OnDemand { stored: false }) {
        Some(block) => Err(PlanError::OnDemand(block.view.name.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_split_at_the_first_colon_and_the_first_at_sign() {
        let of = |text| parse(text).map(|r| (r.view, r.version, r.feature));
        assert_eq!(of("a:b:c"), Ok(("a", None, "b:c")));
        assert_eq!(of("a@V01:b"), Ok(("a", Some(1), "b")));
        assert_eq!(of("a@LATEST:b"), Ok(("a", None, "b")));
        assert_eq!(of("a@:b"), Ok(("a", None, "b")));
        assert_eq!(of("a@v:b"), Ok(("a@v", None, "b")));
        assert_eq!(of("a@x:b"), Ok(("a@x", None, "b")));
        assert_eq!(of(":"), Ok(("", None, "")));
        assert_eq!(of("ab"), Err(PlanError::InvalidReference("ab".into())));
    }
}
