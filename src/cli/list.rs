//! `feature-views list` and its like: what a repository defines, as tables.

use super::commands::say;
use super::site::open;
use crate::config::store::Location;
use crate::exit;
use crate::master::{MissingRegistry, StartError};
use crate::registry::edit::{self, state};
use crate::registry::model::ViewKind;

/// Prints columns that are as wide as they need to be, as the reference does.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|text| text.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        padded.join("    ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// All feature views.
pub(super) fn views(location: &Location) -> Result<i32, StartError> {
    let (prepared, _) = open(location, MissingRegistry::Refuse)?;
    let bytes = std::fs::read(prepared.registry.path()).unwrap_or_default();
    let rows: Vec<Vec<String>> = prepared
        .snapshot
        .views()
        .iter()
        .map(|view| {
            let entities: Vec<String> = view
                .entities
                .iter()
                .filter(|name| *name != "__dummy")
                .map(|name| crate::text::pyrepr::repr(name))
                .collect();
            let kind = match view.kind {
                ViewKind::Plain => "FeatureView",
                ViewKind::Stream => "StreamFeatureView",
                ViewKind::Label => "LabelView",
                ViewKind::OnDemand { .. } => "OnDemandFeatureView",
            };
            let number = edit::state_of(&bytes, &prepared.snapshot.project, &view.name).ok().flatten();
            vec![
                view.name.clone(),
                if entities.is_empty() { "n/a".to_owned() } else { format!("{{{}}}", entities.join(", ")) },
                kind.to_owned(),
                if view.disabled { "No" } else { "Yes" }.to_owned(),
                state::name(number.unwrap_or(0)).to_owned(),
            ]
        })
        .collect();
    say(&table(&["NAME", "ENTITIES", "TYPE", "ENABLED", "STATE"], &rows));
    Ok(exit::OK)
}

/// All entities.
pub(super) fn entities(location: &Location) -> Result<i32, StartError> {
    const NAMES: [&str; 9] =
        ["UNKNOWN", "BYTES", "STRING", "INT32", "INT64", "DOUBLE", "FLOAT", "BOOL", "UNIX_TIMESTAMP"];
    let (prepared, _) = open(location, MissingRegistry::Refuse)?;
    let rows: Vec<Vec<String>> = prepared
        .snapshot
        .entities
        .iter()
        .filter(|entity| entity.name != "__dummy")
        .map(|entity| {
            let name = NAMES.get(entity.value_type as usize).copied().unwrap_or("UNKNOWN");
            vec![entity.name.clone(), entity.description.clone(), format!("ValueType.{name}")]
        })
        .collect();
    say(&table(&["NAME", "DESCRIPTION", "TYPE"], &rows));
    Ok(exit::OK)
}

/// All feature services.
pub(super) fn services(location: &Location) -> Result<i32, StartError> {
    let (prepared, _) = open(location, MissingRegistry::Refuse)?;
    let mut rows: Vec<Vec<String>> = prepared
        .snapshot
        .services()
        .map(|service| {
            let features = service.projections.iter().flat_map(|projection| {
                let view = projection.name_to_use();
                projection.features.iter().map(move |field| format!("{view}:{}", field.name))
            });
            vec![service.name.clone(), features.collect::<Vec<_>>().join(", ")]
        })
        .collect();
    rows.sort();
    say(&table(&["NAME", "FEATURES"], &rows));
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows = [vec!["a".to_owned(), "long cell".to_owned()], vec!["wide é".to_owned(), String::new()]];
        assert_eq!(super::table(&["N", "M"], &rows), "N         M\na         long cell\nwide é");
    }
}
