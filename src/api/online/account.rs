//! What metrics and the audit log keep of an online request. Nothing is counted before the request has ended,
//! so that one that had to wait and was tried again counts once.

use std::time::{Duration, Instant};

use super::{Entities, Request};
use crate::api::Context;
use crate::feature::plan::{self, Plan, Shape};
use crate::feature::resolve;
use crate::metrics::meters::{Endpoint, Sizes};
use crate::text::{json, pyfmt};

/// What the reads of a request have given so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Time in the store.
    pub(super) reading: Duration,
    /// Values found and not found, per view of the plan that was read.
    pub(super) values: Vec<(u64, u64)>,
    /// The store, and nothing in the request, made it fail.
    pub(super) store_failed: bool,
}

impl Tally {
    pub(super) fn clear(&mut self) {
        self.reading = Duration::ZERO;
        self.values.clear();
        self.store_failed = false;
    }
}

/// When the handler began; `None` when nothing is counted.
pub(super) fn begin(cx: &Context<'_>) -> Option<Instant> {
    cx.meters.as_ref()?;
    Some(cx.waiting_since.unwrap_or_else(Instant::now))
}

/// Counts a request whose features or views could not be resolved.
pub(super) fn unresolved(request: &Request<'_>, begun: Option<Instant>, cx: &mut Context<'_>) {
    let Some(begun) = begun else { return };
    let features = request.features.parse().unwrap_or_default();
    let shape = Shape {
        service: request.service.as_deref(),
        features: &features,
        full_names: request.full_names,
        version_metadata: request.version_metadata,
        entity_names: &[],
    };
    let sizes = plan::sizes(&shape, cx.snapshot);
    if let Some(meters) = cx.meters.as_deref_mut() {
        if sizes.is_some() {
            meters.online_request(first_rows(&request.entities));
        }
        meters.request(Endpoint::OnlineFeatures, false, sizes, begun.elapsed());
    }
}

/// Counts a request that had a plan; `rows` is the length of its first entity list.
pub(super) fn ended(plan: &Plan, rows: usize, succeeded: bool, begun: Option<Instant>, cx: &mut Context<'_>) {
    let (Some(begun), Some(meters)) = (begun, cx.meters.as_deref_mut()) else { return };
    let tally = &cx.scratch.tally;
    meters.online_request(rows);
    if succeeded {
        meters.store_read(tally.reading);
    }
    if tally.store_failed {
        meters.store_error();
    }
    for (view, &(present, missing)) in plan.views.iter().zip(&tally.values) {
        meters.statuses(&view.name, present, missing);
    }
    let sizes: Sizes = Some(plan.sizes);
    meters.request(Endpoint::OnlineFeatures, succeeded, sizes, begun.elapsed());
}

/// Length of the first list of `entities`; 0 when there is none.
pub(super) fn first_rows(entities: &Entities<'_>) -> usize {
    if entities.names.is_empty() {
        0
    } else {
        entities.column(0).len()
    }
}

/// Writes the audit line of a request, if that is wanted.
pub(super) fn audit(request: &Request<'_>, plan: &Plan, succeeded: bool, cx: &Context<'_>) {
    if !cx.meters.as_ref().is_some_and(|meters| meters.audits()) {
        return;
    }
    let mut views: Vec<&str> = Vec::new();
    let features = request.features.parse().unwrap_or_default();
    match request.service.as_deref().and_then(|name| cx.snapshot.service(name)) {
        Some(service) => views.extend(service.projections.iter().map(|p| p.view.as_str())),
        None => views.extend(features.iter().filter_map(|name| resolve::view_of(name))),
    }
    let mut seen: Vec<&str> = Vec::new();
    views.retain(|view| {
        !seen.contains(view) && {
            seen.push(view);
            true
        }
    });
    let mut out = b"{\"event\":\"online_feature_request\",\"timestamp\":".to_vec();
    json::write_str_ascii(&mut out, &timestamp(cx.now_nanos));
    out.extend_from_slice(b",\"requestor_id\":\"anonymous\",\"entity_keys\":");
    write_list(&mut out, request.entities.names.iter().map(AsRef::as_ref));
    out.extend_from_slice(format!(",\"entity_count\":{}", first_rows(&request.entities)).as_bytes());
    out.extend_from_slice(b",\"feature_views\":");
    write_list(&mut out, views.into_iter());
    let status = if succeeded { "success" } else { "error" };
    out.extend_from_slice(
        format!(",\"feature_count\":{},\"status\":\"{status}\",\"latency_ms\":", plan.sizes.0).as_bytes(),
    );
    let millis = cx.scratch.tally.reading.as_secs_f64() * 1000.0;
    pyfmt::write_f64(&mut out, (millis * 100.0).round() / 100.0);
    out.push(b'}');
    log::info!(target: "feast.audit", "{}", String::from_utf8_lossy(&out));
}

fn write_list<'l>(out: &mut Vec<u8>, items: impl Iterator<Item = &'l str>) {
    out.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json::write_str_ascii(out, item);
    }
    out.push(b']');
}

fn timestamp(nanos: i128) -> String {
    let at = jiff::Timestamp::from_nanosecond(nanos).unwrap_or_default();
    at.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string()
}
