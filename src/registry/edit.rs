//! Changes to a serialized registry that keep every byte they are not about: messages and fields that a newer
//! Feast has written survive.

use super::wire::{self, put_int, put_message, put_str, raw_fields, Fields, WireError};

/// Seconds since the epoch and nanoseconds.
pub type Time = (i64, i32);

/// `feast.core.FeatureViewState` numbers.
pub mod state {
    /// Never materialized by the state machine.
    pub const UNSPECIFIED: u64 = 0;
    /// `CREATED`
    pub const CREATED: u64 = 1;
    /// `GENERATED`
    pub const GENERATED: u64 = 2;
    /// `MATERIALIZING`
    pub const MATERIALIZING: u64 = 3;
    /// `AVAILABLE_ONLINE`
    pub const AVAILABLE: u64 = 4;

    /// The name the reference prints.
    pub fn name(number: u64) -> &'static str {
        match number {
            UNSPECIFIED => "STATE_UNSPECIFIED",
            CREATED => "CREATED",
            GENERATED => "GENERATED",
            MATERIALIZING => "MATERIALIZING",
            _ => "AVAILABLE_ONLINE",
        }
    }
}

/// Intervals kept as they are; of more, the oldest adjoining ones are merged.
const MAX_INTERVALS: usize = 100;

/// What becomes of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Another state, in place.
    State(u64),
    /// It was materialized: the interval is added, the state is AVAILABLE_ONLINE, the message moves to the end of
    /// its list.
    Materialized {
        /// Begin of the window.
        start: Time,
        /// End of the window.
        end: Time,
    },
}

/// Fields of `Registry` that hold views which can be materialized.
const VIEWS: [u32; 2] = [6, 14];

/// Applies `change` to the views of `project` named in `views`, and stamps the registry with `version_id` and `now`.
pub fn change_views(
    registry: &[u8],
    project: &str,
    views: &[&str],
    change: Change,
    version_id: &str,
    now: Time,
) -> Result<Vec<u8>, WireError> {
    let mut kept: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut moved: Vec<(u32, Vec<u8>)> = Vec::new();
    for (number, raw, payload) in raw_fields(registry)? {
        let named = VIEWS.contains(&number)
            && names(payload.bytes())?.is_some_and(|(name, of)| of == project && views.contains(&name));
        if !named {
            kept.push((number, raw.to_vec()));
            continue;
        }
        let mut out = Vec::new();
        let view = changed_view(payload.bytes(), change, now)?;
        wire::put_bytes(&mut out, number, &view);
        match change {
            Change::State(_) => kept.push((number, out)),
            Change::Materialized { .. } => moved.push((number, out)),
        }
    }
    for (number, message) in moved {
        // Behind the last one of its kind, or else where that kind would stand.
        let place = kept.iter().rposition(|(n, _)| *n <= number).map_or(0, |place| place + 1);
        kept.insert(place, (number, message));
    }
    Ok(stamped(kept, version_id, now))
}

/// The state number of a view; `None` when there is no such view.
pub fn state_of(registry: &[u8], project: &str, view: &str) -> Result<Option<u64>, WireError> {
    Ok(look_at(registry, project, view)?.map(|(state, _)| state))
}

/// The state of a view whose materialization has ended without an end: one that was materialized before goes on being
/// served.
pub fn state_without_run(registry: &[u8], project: &str, view: &str) -> Result<u64, WireError> {
    let materialized = look_at(registry, project, view)?.is_some_and(|(_, materialized)| materialized);
    Ok(if materialized { state::AVAILABLE } else { state::GENERATED })
}

/// State number of a view, and whether an interval is recorded.
fn look_at(registry: &[u8], project: &str, view: &str) -> Result<Option<(u64, bool)>, WireError> {
    for field in Fields::new(registry) {
        let (number, payload) = field?;
        if !VIEWS.contains(&number) || names(payload.bytes())? != Some((view, project)) {
            continue;
        }
        let (mut found, mut materialized) = (state::UNSPECIFIED, false);
        for (_, _, meta) in raw_fields(payload.bytes())?.into_iter().filter(|(n, _, _)| *n == 2) {
            for field in Fields::new(meta.bytes()) {
                match field? {
                    (3, _) => materialized = true,
                    (6, payload) => found = payload.varint(),
                    _ => {}
                }
            }
        }
        return Ok(Some((found, materialized)));
    }
    Ok(None)
}

/// Replaces version id and time of the last change; `fields` are those of a `Registry` with their bytes.
pub fn stamped(fields: Vec<(u32, Vec<u8>)>, version_id: &str, now: Time) -> Vec<u8> {
    let mut fields: Vec<(u32, Vec<u8>)> =
        fields.into_iter().filter(|(number, _)| *number != 4 && *number != 5).collect();
    let place = fields.iter().position(|(number, _)| *number > 5).unwrap_or(fields.len());
    let mut stamp = Vec::new();
    put_str(&mut stamp, 4, version_id);
    put_time(&mut stamp, 5, now);
    fields.insert(place, (4, stamp));
    fields.into_iter().flat_map(|(_, bytes)| bytes).collect()
}

/// Appends a `google.protobuf.Timestamp`.
pub fn put_time(out: &mut Vec<u8>, number: u32, (seconds, nanos): Time) {
    put_message(out, number, |out| {
        put_int(out, 1, seconds);
        put_int(out, 2, i64::from(nanos));
    });
}

/// Name and project in the spec of a view.
fn names(view: &[u8]) -> Result<Option<(&str, &str)>, WireError> {
    for field in Fields::new(view) {
        let (1, spec) = field? else { continue };
        let (mut name, mut project) = ("", "");
        for field in Fields::new(spec.bytes()) {
            match field? {
                (1, payload) => name = payload.str()?,
                (2, payload) => project = payload.str()?,
                _ => {}
            }
        }
        return Ok(Some((name, project)));
    }
    Ok(None)
}

fn changed_view(view: &[u8], change: Change, now: Time) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(view.len() + 64);
    // Parts of a message may come in several pieces: together they are the message.
    let mut meta = Vec::new();
    let fields = raw_fields(view)?;
    fields.iter().filter(|(n, _, _)| *n == 2).for_each(|(_, _, part)| meta.extend_from_slice(part.bytes()));
    for (number, raw, _) in &fields {
        if *number < 2 {
            out.extend_from_slice(raw);
        }
    }
    wire::put_bytes(&mut out, 2, &changed_meta(&meta, change, now)?);
    for (number, raw, _) in &fields {
        if *number > 2 {
            out.extend_from_slice(raw);
        }
    }
    Ok(out)
}

fn changed_meta(meta: &[u8], change: Change, now: Time) -> Result<Vec<u8>, WireError> {
    let mut intervals: Vec<&[u8]> = Vec::new();
    let mut fields: Vec<(u32, Vec<u8>)> = Vec::new();
    for (number, raw, payload) in raw_fields(meta)? {
        match number {
            2 | 6 => {}
            3 => intervals.push(payload.bytes()),
            _ => fields.push((number, raw.to_vec())),
        }
    }
    let mut added = Vec::new();
    let number = match change {
        Change::State(number) => number,
        Change::Materialized { start, end } => {
            put_time(&mut added, 1, start);
            put_time(&mut added, 2, end);
            intervals.push(&added);
            state::AVAILABLE
        }
    };
    let mut part = |number: u32, fill: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        fill(&mut out);
        fields.push((number, out));
    };
    part(2, &|out| put_time(out, 2, now));
    for interval in merged(&intervals)? {
        part(3, &|out| wire::put_bytes(out, 3, &interval));
    }
    part(6, &|out| put_int(out, 6, number.cast_signed()));
    fields.sort_by_key(|(number, _)| *number);
    Ok(fields.into_iter().flat_map(|(_, bytes)| bytes).collect())
}

/// The same intervals; of too many, the oldest that adjoin their successor are merged with it. The newest one stays.
fn merged(intervals: &[&[u8]]) -> Result<Vec<Vec<u8>>, WireError> {
    let mut kept: Vec<Vec<u8>> = intervals.iter().map(|bytes| bytes.to_vec()).collect();
    while kept.len() > MAX_INTERVALS {
        let mut adjoining = None;
        for index in 0..kept.len().saturating_sub(2) {
            if time_of(&kept[index], 2)? == time_of(&kept[index + 1], 1)? {
                adjoining = Some(index);
                break;
            }
        }
        let Some(index) = adjoining else { break };
        let (start, end) = (time_of(&kept[index], 1)?, time_of(&kept[index + 1], 2)?);
        let mut whole = Vec::new();
        put_time(&mut whole, 1, start);
        put_time(&mut whole, 2, end);
        kept[index] = whole;
        kept.remove(index + 1);
    }
    Ok(kept)
}

fn time_of(interval: &[u8], number: u32) -> Result<Time, WireError> {
    for field in Fields::new(interval) {
        let (found, payload) = field?;
        if found == number {
            return super::model::seconds_and_nanos(payload.bytes());
        }
    }
    Ok((0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::model::Registry;

    fn view(name: &str, unknown: bool) -> Vec<u8> {
        let mut out = Vec::new();
        put_message(&mut out, 1, |out| {
            put_str(out, 1, name);
            put_str(out, 2, "p");
            if unknown {
                put_str(out, 99, "newer");
            }
        });
        put_message(&mut out, 2, |out| {
            put_time(out, 1, (1, 0));
            put_str(out, 77, "newer");
        });
        put_str(&mut out, 88, "newer");
        out
    }

    fn registry() -> Vec<u8> {
        let mut out = Vec::new();
        put_str(&mut out, 3, "1");
        put_str(&mut out, 4, "old");
        put_time(&mut out, 5, (1, 0));
        wire::put_bytes(&mut out, 6, &view("a", true));
        wire::put_bytes(&mut out, 6, &view("b", false));
        put_str(&mut out, 100, "newer");
        out
    }

    #[test]
    fn a_run_is_recorded_and_nothing_unknown_is_lost() {
        let change = Change::Materialized { start: (10, 0), end: (20, 5) };
        let edited = change_views(&registry(), "p", &["a"], change, "new", (99, 1)).unwrap();
        let decoded = Registry::decode(&edited).unwrap();
        let names: Vec<&str> = decoded.views.iter().map(|view| view.name.as_str()).collect();
        assert_eq!(names, ["b", "a"], "the view moves to the end");
        assert_eq!(decoded.views[1].materialized_until, Some(20_000_000_005));
        assert_eq!(state_of(&edited, "p", "a").unwrap(), Some(state::AVAILABLE));
        assert_eq!(state_of(&edited, "p", "b").unwrap(), Some(state::UNSPECIFIED));
        let newer = edited.windows(5).filter(|window| window == b"newer").count();
        assert_eq!(newer, 6, "every unknown field is still there");
        assert!(!edited.windows(3).any(|window| window == b"old"));
    }

    #[test]
    fn another_project_is_not_touched() {
        let edited =
            change_views(&registry(), "q", &["a"], Change::State(state::MATERIALIZING), "v", (1, 0)).unwrap();
        assert_eq!(state_of(&edited, "p", "a").unwrap(), Some(state::UNSPECIFIED));
    }

    #[test]
    fn intervals_above_the_limit_are_merged_but_never_the_newest() {
        let mut bytes = registry();
        for hour in 0..150 {
            let change = Change::Materialized { start: (hour * 3600, 0), end: ((hour + 1) * 3600, 0) };
            bytes = change_views(&bytes, "p", &["a"], change, "v", (1, 0)).unwrap();
        }
        let fields = raw_fields(&bytes).unwrap();
        let (_, _, view) = fields.iter().rfind(|(n, _, _)| *n == 6).unwrap();
        let view = raw_fields(view.bytes()).unwrap();
        let meta = view.iter().find(|(n, _, _)| *n == 2).unwrap().2;
        let meta = raw_fields(meta.bytes()).unwrap();
        let intervals: Vec<&[u8]> =
            meta.iter().filter(|(n, _, _)| *n == 3).map(|(_, _, payload)| payload.bytes()).collect();
        assert_eq!(intervals.len(), MAX_INTERVALS);
        assert_eq!(time_of(intervals[0], 1).unwrap(), (0, 0));
        assert_eq!(time_of(intervals[0], 2).unwrap(), (51 * 3600, 0));
        assert_eq!(time_of(intervals[99], 1).unwrap(), (149 * 3600, 0));
    }
}
