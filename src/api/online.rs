//! `POST /get-online-features`.

use std::time::Instant;

use super::error::ApiError;
use super::json_in::{self, Entities, Features, Request};
use super::{Answer, Asked, Context, Freshness, Step};
use crate::feature::cells::{Cells, EventTime, Keys, EPOCH};
use crate::feature::entity::{self, EntityValue};
use crate::feature::entity_key::KeyError;
use crate::feature::plan::{Plan, Shape, ViewRead};
use crate::feature::value;
use crate::online::{Progress, ReadError};
use crate::text::time;

mod account;
mod precomputed;

/// Buffers that live as long as the worker, so that a request allocates nothing that grows with its values.
#[derive(Debug, Default)]
pub struct Scratch {
    body: json_in::Buffers,
    shape: Vec<u8>,
    converted: Vec<EntityValue<'static>>,
    ends: Vec<usize>,
    keys: Vec<Keys>,
    /// Which of `keys` belong to the request at hand.
    built: Vec<bool>,
    /// The one that the cells were read with.
    key_set: usize,
    cells: Cells,
    blocks: Blocks,
    tally: account::Tally,
}

/// Pieces of the answer that repeat from column to column.
#[derive(Debug, Default)]
struct Blocks {
    /// `"PRESENT",...` for every row.
    present: Vec<u8>,
    /// The epoch for every row.
    epoch: Vec<u8>,
    /// The event times of the view at hand for every row.
    times: Vec<u8>,
}

/// Why there is no answer yet, or never.
enum Stop {
    Error(ApiError),
    Wait(Step),
}

impl<E: Into<ApiError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

fn other(text: impl Into<String>) -> Stop {
    Stop::Error(ApiError::Other(text.into()))
}

/// Answers a request whose body and content type are given.
pub fn get_online_features(
    body: &[u8],
    content_type: Option<&str>,
    cx: &mut Context<'_>,
    answer: &mut Answer,
) -> Step {
    let strict = cx.rules.strict_content_type;
    let plain = !strict || json_in::is_json_type(content_type);
    let fast = if plain { json_in::read_fast(body, &mut cx.scratch.body) } else { None };
    // A list of references that is no list of strings shows only when it is parsed.
    let step = match fast {
        Some(request) => answer_request(request, cx, answer),
        None => Outcome::ReadExactly,
    };
    let step = match step {
        Outcome::ReadExactly => match json_in::read_exact(body, content_type, strict, answer) {
            Some(request) => answer_request(request, cx, answer),
            None => return Step::Reply,
        },
        done @ Outcome::Step(_) => done,
    };
    match step {
        Outcome::Step(step) => step,
        Outcome::ReadExactly => Step::Reply,
    }
}

enum Outcome {
    Step(Step),
    ReadExactly,
}

fn answer_request(request: Request<'_>, cx: &mut Context<'_>, answer: &mut Answer) -> Outcome {
    let begun = account::begin(cx);
    let asked = cx.asked.take();
    cx.store.begin(asked.as_ref().map(|asked| asked.ticket), cx.now);
    let resumed = asked.is_some();
    let found = asked.map_or_else(|| find_plan(&request, cx), |asked| Ok(Some(asked.plan)));
    let plan = match found {
        Ok(Some(plan)) => plan,
        Ok(None) => return Outcome::ReadExactly,
        Err(Stop::Wait(step)) => return Outcome::Step(step),
        Err(Stop::Error(error)) => {
            account::unresolved(&request, begun, cx);
            cx.scratch.body = request.entities.into_buffers();
            error.reply(answer);
            return Outcome::Step(Step::Reply);
        }
    };
    cx.scratch.tally.clear();
    let done = run(&plan, &request.entities, cx, answer);
    match done {
        Err(Stop::Wait(Step::WaitForValues)) => {
            *cx.asked = cx.store.take_ticket().map(|ticket| Asked { ticket, plan: plan.clone() });
        }
        _ => cx.store.end(),
    }
    if !matches!(done, Err(Stop::Wait(_))) {
        if resumed {
            // From the first command to the last reply.
            cx.scratch.tally.reading = cx.waiting_since.map(|since| since.elapsed()).unwrap_or_default();
        }
        account::ended(&plan, account::first_rows(&request.entities), done.is_ok(), begun, cx);
        account::audit(&request, &plan, done.is_ok(), cx);
    }
    cx.scratch.body = request.entities.into_buffers();
    match done {
        Ok(()) => {}
        Err(Stop::Wait(step)) => return Outcome::Step(step),
        Err(Stop::Error(error)) => {
            log::debug!("request failed: {}", error.log_text());
            error.reply(answer);
        }
    }
    Outcome::Step(Step::Reply)
}

/// The plan of the request's shape, from the cache or made now. `None`: the features are no list of strings.
fn find_plan(request: &Request<'_>, cx: &mut Context<'_>) -> Result<Option<std::rc::Rc<Plan>>, Stop> {
    write_shape(request, &mut cx.scratch.shape);
    if let Some(plan) = cx.plans.get(&cx.scratch.shape, cx.snapshot.generation) {
        return Ok(Some(plan));
    }
    let Some(features) = request.features.parse() else { return Ok(None) };
    if cx.freshness == Freshness::Unchecked && (cx.registry_changed)() {
        return Err(Stop::Wait(Step::WaitForRegistry));
    }
    let names: Vec<&str> = request.entities.names.iter().map(AsRef::as_ref).collect();
    let shape = Shape {
        service: request.service.as_deref(),
        features: &features,
        full_names: request.full_names,
        version_metadata: request.version_metadata,
        entity_names: &names,
    };
    let plan = Plan::compile(&shape, cx.snapshot, cx.rules.key_version)
        .map_err(|error| Stop::Error(ApiError::from_plan(error, &cx.snapshot.project)))?;
    let plan = std::rc::Rc::new(plan);
    cx.plans.put(&cx.scratch.shape, plan.clone());
    Ok(Some(plan))
}

/// Bytes that are equal for requests of one shape and for no others: every part has its length before it.
fn write_shape(request: &Request<'_>, out: &mut Vec<u8>) {
    fn part(out: &mut Vec<u8>, bytes: &[u8]) {
        out.extend_from_slice(&bytes.len().to_le_bytes());
        out.extend_from_slice(bytes);
    }
    out.clear();
    let raw = matches!(request.features, Features::Raw(_));
    let flags = [request.full_names, request.version_metadata, request.service.is_some(), raw];
    out.extend(flags.map(u8::from));
    part(out, request.service.as_deref().unwrap_or_default().as_bytes());
    match &request.features {
        Features::Raw(text) => part(out, text.as_bytes()),
        Features::List(list) => {
            out.extend_from_slice(&list.len().to_le_bytes());
            list.iter().for_each(|item| part(out, item.as_bytes()));
        }
    }
    request.entities.names.iter().for_each(|name| part(out, name.as_bytes()));
}

fn run(plan: &Plan, entities: &Entities<'_>, cx: &mut Context<'_>, answer: &mut Answer) -> Result<(), Stop> {
    let mut values = recycle(std::mem::take(&mut cx.scratch.converted));
    let done = run_with(plan, entities, &mut values, cx, answer);
    cx.scratch.converted = recycle(values);
    done
}

fn run_with<'a>(
    plan: &Plan,
    entities: &Entities<'a>,
    values: &mut Vec<EntityValue<'a>>,
    cx: &mut Context<'_>,
    answer: &mut Answer,
) -> Result<(), Stop> {
    let mut ends = std::mem::take(&mut cx.scratch.ends);
    ends.clear();
    for (index, input) in plan.inputs.iter().enumerate() {
        entity::convert(entities.column(index), input.declared, values).map_err(other)?;
        ends.push(values.len());
    }
    let inputs = Inputs { values, ends: &ends };
    let rows = inputs.rows()?;
    cx.scratch.blocks.prepare(rows);
    cx.scratch.built.clear();
    cx.scratch.built.resize(plan.key_sets.len(), false);
    if cx.scratch.keys.len() < plan.key_sets.len() {
        cx.scratch.keys.resize_with(plan.key_sets.len(), Keys::default);
    }
    answer.json(200).extend_from_slice(b"{\"results\":[");
    write_entities(plan, &inputs, rows, &cx.scratch.blocks, &mut answer.body);
    match &plan.precomputed {
        Some(vectors) => precomputed::answer(vectors, plan, &inputs, rows, cx, &mut answer.body)?,
        None => {
            let mut pending = false;
            for view in &plan.views {
                build_keys(view, plan, &inputs, rows, cx.scratch)?;
                match fetch(view, cx)? {
                    Progress::Done => write_view(view, cx, &mut answer.body)?,
                    // The other views are asked for in the same breath.
                    Progress::Pending => pending = true,
                }
            }
            if pending {
                return Err(Stop::Wait(Step::WaitForValues));
            }
        }
    }
    answer.body.extend_from_slice(&plan.tail);
    cx.scratch.ends = ends;
    Ok(())
}

/// The converted values of a request, column by column.
struct Inputs<'v, 'a> {
    values: &'v [EntityValue<'a>],
    ends: &'v [usize],
}

impl<'a> Inputs<'_, 'a> {
    fn column(&self, index: usize) -> &[EntityValue<'a>] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.values[start..self.ends[index]]
    }

    /// The common length of all columns, ignored ones included.
    fn rows(&self) -> Result<usize, Stop> {
        let mut lengths = (0..self.ends.len()).map(|index| self.column(index).len());
        let first =
            lengths.next().ok_or_else(|| Stop::Error(ApiError::Key("pop from an empty set".to_owned())))?;
        if lengths.any(|length| length != first) {
            return Err(other("All entity rows must have the same columns."));
        }
        Ok(first)
    }
}

/// An empty list with the memory of `list`, free to borrow from another request. (Collecting in place keeps
/// the allocation.)
fn recycle<'b>(mut list: Vec<EntityValue<'_>>) -> Vec<EntityValue<'b>> {
    list.clear();
    list.into_iter().map(|_| EntityValue::Null).collect()
}

/// Why rows have no keys.
enum Unkeyed {
    /// Columns are missing; the text names them.
    Missing(String),
    /// A value cannot be a part of a key.
    Value(KeyError),
}

impl From<Unkeyed> for Stop {
    fn from(error: Unkeyed) -> Self {
        match error {
            Unkeyed::Missing(text) => Self::Error(ApiError::Key(text)),
            Unkeyed::Value(error) => Self::Error(error.into()),
        }
    }
}

/// Builds the keys of `view`, unless another view with the same keys has built them for this request.
fn build_keys(
    view: &ViewRead,
    plan: &Plan,
    inputs: &Inputs<'_, '_>,
    rows: usize,
    scratch: &mut Scratch,
) -> Result<(), Unkeyed> {
    let missing = || Unkeyed::Missing(plan.missing_keys(view, rows));
    let set = view.key_set.filter(|_| rows > 0).ok_or_else(missing)?;
    if !scratch.built[set] {
        scratch.keys[set]
            .build(&plan.key_sets[set], rows, |input| inputs.column(input))
            .map_err(Unkeyed::Value)?;
        scratch.built[set] = true;
    }
    scratch.key_set = set;
    Ok(())
}

/// Fetches the values of `view` under the keys built last.
fn fetch(view: &ViewRead, cx: &mut Context<'_>) -> Result<Progress, Stop> {
    let scratch = &mut *cx.scratch;
    let keys = &scratch.keys[scratch.key_set];
    scratch.cells.reset(keys.len(), view.features.len());
    let before = cx.meters.is_some().then(Instant::now);
    let read = cx.store.read(view, keys, &mut scratch.cells);
    if let Some(before) = before {
        scratch.tally.reading += before.elapsed();
    }
    let failure = match read {
        Ok(progress) => return Ok(progress),
        Err(ReadError::Overloaded) => {
            return Err(Stop::Error(ApiError::Overloaded("Too many requests wait for the online store")));
        }
        Err(ReadError::Busy) if cx.out_of_patience => "database is locked".to_owned(),
        Err(ReadError::Busy) => return Err(Stop::Wait(Step::WaitForStore)),
        Err(ReadError::Failed(text)) => text,
    };
    scratch.tally.store_failed = true;
    Err(other(failure))
}

impl Blocks {
    fn prepare(&mut self, rows: usize) {
        repeat(&mut self.present, b"\"PRESENT\"", rows);
        let mut epoch = Vec::with_capacity(24);
        write_time(&mut epoch, EPOCH);
        repeat(&mut self.epoch, &epoch, rows);
    }
}

/// Fills `out` with `count` copies of `item`, separated by commas.
fn repeat(out: &mut Vec<u8>, item: &[u8], count: usize) {
    out.clear();
    for index in 0..count {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(item);
    }
}

fn write_time(out: &mut Vec<u8>, at: EventTime) {
    out.push(b'"');
    time::write_rfc3339(out, at.seconds, at.nanos);
    out.push(b'"');
}

/// Separates columns: the first one follows the opening bracket of the list.
fn begin_column(out: &mut Vec<u8>) {
    let first = out.last() == Some(&b'[');
    out.extend_from_slice(if first { b"{\"values\":[" } else { b",{\"values\":[" });
}

/// Ends a column: statuses, and times unless there are no rows.
fn end_column(out: &mut Vec<u8>, statuses: &[u8], times: &[u8]) {
    out.extend_from_slice(b"],\"statuses\":[");
    out.extend_from_slice(statuses);
    end_column_after_statuses(out, times);
}

fn end_column_after_statuses(out: &mut Vec<u8>, times: &[u8]) {
    if !times.is_empty() {
        out.extend_from_slice(b"],\"event_timestamps\":[");
        out.extend_from_slice(times);
    }
    out.extend_from_slice(b"]}");
}

fn write_entities(plan: &Plan, inputs: &Inputs<'_, '_>, rows: usize, blocks: &Blocks, out: &mut Vec<u8>) {
    for echo in &plan.echoes {
        begin_column(out);
        for (row, value) in inputs.column(echo.input).iter().take(rows).enumerate() {
            if row > 0 {
                out.push(b',');
            }
            value.write_json(out);
        }
        end_column(out, &blocks.present, &blocks.epoch);
    }
}

/// Writes all columns of the view whose values are in the cells.
fn write_view(view: &ViewRead, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<(), Stop> {
    let Scratch { cells, keys, key_set, blocks, tally, .. } = &mut *cx.scratch;
    let mut missing = 0;
    let unique_of = keys[*key_set].unique_of();
    // All columns of a view share its event times: they are written once and copied.
    blocks.times.clear();
    for (row, &unique) in unique_of.iter().enumerate() {
        if row > 0 {
            blocks.times.push(b',');
        }
        write_time(&mut blocks.times, cells.time(unique as usize));
    }
    let expires = cx.rules.enforce_ttl && view.ttl_nanos > 0;
    let missing_is_present = cx.store.missing_is_present();
    for feature in 0..view.features.len() {
        begin_column(out);
        let mut all_present = !expires;
        for (row, &unique) in unique_of.iter().enumerate() {
            if row > 0 {
                out.push(b',');
            }
            match cells.get(unique as usize, feature) {
                Some(bytes) => value::write(out, bytes).map_err(|error| other(error.to_string()))?,
                None => {
                    all_present &= missing_is_present;
                    missing += 1;
                    out.extend_from_slice(b"null");
                }
            }
        }
        if all_present {
            end_column(out, &blocks.present, &blocks.times);
            continue;
        }
        out.extend_from_slice(b"],\"statuses\":[");
        for (row, &unique) in unique_of.iter().enumerate() {
            if row > 0 {
                out.push(b',');
            }
            let unique = unique as usize;
            let age = || cx.now_nanos - i128::from(cells.time(unique).seconds) * 1_000_000_000;
            let status: &[u8] = if cells.get(unique, feature).is_none() && !missing_is_present {
                b"\"NOT_FOUND\""
            } else if expires && age() > view.ttl_nanos {
                b"\"OUTSIDE_MAX_AGE\""
            } else {
                b"\"PRESENT\""
            };
            out.extend_from_slice(status);
        }
        end_column_after_statuses(out, &blocks.times);
    }
    let cells = (view.features.len() * unique_of.len()) as u64;
    // Where nothing is missing the reference counts the times of the rows instead.
    tally.values.push(if missing_is_present {
        (cells, unique_of.len() as u64)
    } else {
        (cells - missing, missing)
    });
    Ok(())
}
