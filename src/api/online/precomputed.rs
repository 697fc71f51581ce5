//! Services whose answers were computed beforehand: one stored vector per entity instead of the views.

use super::{begin_column, build_keys, end_column, fetch, other, write_time, Inputs, Stop, Unkeyed};
use crate::api::error::ApiError;
use crate::api::{Context, Step};
use crate::feature::cells::EventTime;
use crate::feature::entity_key::KeyError;
use crate::feature::plan::{Plan, Precomputed};
use crate::feature::value;
use crate::online::Progress;
use crate::registry::model::seconds_and_nanos;
use crate::registry::wire::{Fields, Payload, WireError};

/// `feast.core.PrecomputedFeatureVector`.
#[derive(Debug, Default)]
struct Vector {
    names: Vec<String>,
    values: Vec<Vec<u8>>,
    /// View and its event time in nanoseconds.
    view_times: Vec<(String, i128)>,
    at: EventTime,
}

/// Reads and writes all columns. Whatever keeps a vector from being used is one and the same error.
pub(super) fn answer(
    vectors: &Precomputed,
    plan: &Plan,
    inputs: &Inputs<'_, '_>,
    rows: usize,
    cx: &mut Context<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Stop> {
    let unusable = || {
        let name = &vectors.service;
        other(format!(
            "FeatureService '{name}' has precompute_online=True but pre-computed vectors could not be read. \
             Run `feast precompute {name}` or materialize to populate vectors."
        ))
    };
    build_keys(&vectors.read, plan, inputs, rows, cx.scratch).map_err(|error| match error {
        // A null is noticed before the vectors are looked for.
        Unkeyed::Missing(_) | Unkeyed::Value(KeyError::Null) => error.into(),
        Unkeyed::Value(_) => unusable(),
    })?;
    let read = fetch(&vectors.read, cx).map_err(|stop| match stop {
        Stop::Error(ApiError::Overloaded(text)) => Stop::Error(ApiError::Overloaded(text)),
        Stop::Error(_) => unusable(),
        wait @ Stop::Wait(_) => wait,
    })?;
    if read == Progress::Pending {
        return Err(Stop::Wait(Step::WaitForValues));
    }
    let scratch = &*cx.scratch;
    let unique_of = scratch.keys[scratch.key_set].unique_of();
    let mut found = Vec::with_capacity(unique_of.len());
    for &unique in unique_of {
        let bytes = scratch.cells.get(unique as usize, 0).ok_or_else(unusable)?;
        found.push(decode(bytes).map_err(|_| unusable())?);
    }
    let first = found.first().ok_or_else(unusable)?;
    if found.iter().any(|vector| vector.names != first.names || vector.values.len() != vector.names.len()) {
        return Err(unusable());
    }
    let mut stored: Vec<&str> = first.names.iter().map(String::as_str).collect();
    let mut expected: Vec<&str> = vectors.columns.iter().map(|column| column.name.as_str()).collect();
    stored.sort_unstable();
    expected.sort_unstable();
    if stored != expected {
        return Err(unusable());
    }
    let mut times = Vec::new();
    for (row, vector) in found.iter().enumerate() {
        if row > 0 {
            times.push(b',');
        }
        write_time(&mut times, vector.at);
    }
    let mut statuses = Vec::new();
    for column in &vectors.columns {
        let place = first.names.iter().position(|name| *name == column.name).ok_or_else(unusable)?;
        begin_column(out);
        statuses.clear();
        for (row, vector) in found.iter().enumerate() {
            if row > 0 {
                out.push(b',');
                statuses.push(b',');
            }
            value::write(out, &vector.values[place]).map_err(|error| other(error.to_string()))?;
            let written = vector.view_times.iter().find(|(view, _)| *view == column.view);
            let expired =
                column.ttl_nanos > 0 && written.is_some_and(|(_, at)| cx.now_nanos - at > column.ttl_nanos);
            let status: &[u8] = if expired { b"\"OUTSIDE_MAX_AGE\"" } else { b"\"PRESENT\"" };
            statuses.extend_from_slice(status);
        }
        end_column(out, &statuses, &times);
    }
    Ok(())
}

/// Takes the vector out of the stored `Value`'s bytes member.
fn decode(stored: &[u8]) -> Result<Vector, WireError> {
    let mut message = &[][..];
    for field in Fields::new(stored) {
        if let (1, Payload::Bytes(bytes)) = field? {
            message = bytes;
        }
    }
    let mut vector = Vector::default();
    for field in Fields::new(message) {
        let (number, payload) = field?;
        match number {
            1 => vector.names.push(payload.str()?.to_owned()),
            2 => vector.values.push(payload.bytes().to_owned()),
            3 => {
                let (mut view, mut at) = (String::new(), 0);
                for part in Fields::new(payload.bytes()) {
                    match part? {
                        (1, payload) => payload.str()?.clone_into(&mut view),
                        (2, payload) => {
                            let (seconds, nanos) = seconds_and_nanos(payload.bytes())?;
                            at = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
                        }
                        _ => {}
                    }
                }
                vector.view_times.push((view, at));
            }
            4 => {
                let (seconds, nanos) = seconds_and_nanos(payload.bytes())?;
                vector.at = EventTime { seconds, nanos: nanos.clamp(0, 999_999_999) as u32 };
            }
            _ => {}
        }
    }
    Ok(vector)
}
