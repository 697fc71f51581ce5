//! `df`: JSON columns as the reference's data frame takes them.

use std::borrow::Cow;
use std::collections::HashMap;

use super::cell::{self, Cell, Column, Kind, TOO_LARGE};
use super::document::{from_json, holds_huge};
use crate::text::pyjson::Json;

/// Bytes that a value takes at least.
const CELL: usize = size_of::<Cell<'static>>();
/// Most bytes of values that are made from one, or that fill the gaps between labelled ones.
const MOST_SPREAD: usize = 512 << 20;

/// Columns of equal length whose types are not known yet.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The columns, in the order in which they were given.
    pub columns: Vec<Column<'a>>,
    /// The rows have labels of their own, which the offline store takes for one more column.
    pub labelled: bool,
}

impl<'a> Frame<'a> {
    /// Checks the shape.
    pub fn of(columns: &[(Cow<'a, str>, Json<'a>)]) -> Result<Self, String> {
        let lists = || columns.iter().filter(|(_, value)| matches!(value, Json::List(_)));
        let objects = || columns.iter().filter(|(_, value)| matches!(value, Json::Object(_)));
        let (has_lists, has_objects) = (lists().next().is_some(), objects().next().is_some());
        if columns.is_empty() {
            return Ok(Self { columns: Vec::new(), labelled: false });
        }
        if !has_lists && !has_objects {
            return Err("If using all scalar values, you must pass an index".to_owned());
        }
        if has_lists && has_objects {
            return Err("Mixing dicts with non-Series may lead to ambiguous ordering.".to_owned());
        }
        let mut labels: HashMap<&str, usize> = HashMap::new();
        for (_, value) in objects() {
            let Json::Object(members) = value else { continue };
            for (label, _) in members {
                let next = labels.len();
                labels.entry(label).or_insert(next);
            }
        }
        let mut lengths =
            lists().map(|(_, value)| if let Json::List(items) = value { items.len() } else { 0 });
        let rows = if has_objects { labels.len() } else { lengths.next().unwrap_or(0) };
        if lengths.any(|length| length != rows) {
            return Err("All arrays must be of the same length".to_owned());
        }
        // A small body must not become a large frame.
        let spread = columns.iter().filter(|(_, value)| !matches!(value, Json::List(_)));
        let bytes = spread.map(|(_, value)| if let Json::Str(text) = value { text.len() } else { 0 } + CELL);
        if bytes.sum::<usize>().saturating_mul(rows) > MOST_SPREAD {
            return Err("The frame is too large: send fewer rows at once, and values as lists".to_owned());
        }
        let cells = |value: &Json<'a>| -> Vec<Cell<'a>> {
            match value {
                Json::List(items) => items.iter().map(|item| from_json(item.clone())).collect(),
                Json::Object(members) => {
                    let mut cells = vec![Cell::Null; rows];
                    for (label, item) in members {
                        if let Some(&row) = labels.get(label.as_ref()) {
                            cells[row] = from_json(item.clone());
                        }
                    }
                    cells
                }
                scalar => vec![from_json(scalar.clone()); rows],
            }
        };
        let columns = columns
            .iter()
            .map(|(name, value)| Column { name: name.clone(), kind: Kind::Null, cells: cells(value) })
            .collect();
        Ok(Self { columns, labelled: has_objects })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.columns.first().map_or(0, |column| column.cells.len())
    }

    /// Finds the type of every column.
    pub fn infer(&mut self) -> Result<(), String> {
        for column in &mut self.columns {
            if column.cells.iter().any(holds_huge) {
                return Err(TOO_LARGE.to_owned());
            }
            column.kind = cell::infer(&column.name, &column.cells)?;
        }
        Ok(())
    }
}
