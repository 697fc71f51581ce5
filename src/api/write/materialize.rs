//! `POST /materialize` and `POST /materialize-incremental`: what is asked for is checked here, in the reference's
//! order; the run is a job.

use super::body::{self, Fields};
use super::{now, other, Done, Lane, Work, WriteRoute};
use crate::api::error::ApiError;
use crate::api::json_in::Details;
use crate::ipc::channel::MAX_MESSAGE;
use crate::ipc::job::{Job, Run, Window};
use crate::os::process::wall_clock;
use crate::registry::edit::{self, state, Change};
use crate::registry::model::ViewKind;
use crate::registry::{RegistryError, Snapshot};
use crate::text::pyrepr;
use crate::text::when::{self, When, WhenError};

/// Most bytes of a job on its way to the master.
const MOST_OF_A_JOB: usize = MAX_MESSAGE - 64;

/// Checks a request and makes the job of it.
pub(super) fn prepare(work: &Work, lane: &mut Lane, done: &mut Done) -> Result<(), ApiError> {
    let strict = lane.rules.strict_content_type;
    let incremental = work.route == WriteRoute::MaterializeIncremental;
    let mut details = Details::new();
    let in_background = body::query_flag(&work.query, "async", &mut details);
    let force = body::query_flag(&work.query, "force", &mut details);
    let Some(request) = body::read(&work.body, work.content_type.as_deref(), strict, &mut done.answer) else {
        return Ok(());
    };
    let Some(mut fields) = Fields::of(&request, details, &mut done.answer) else { return Ok(()) };
    let start = if incremental { None } else { fields.optional("start_ts") };
    let end = if incremental { Some(fields.text("end_ts")) } else { fields.optional("end_ts") };
    let views = fields.list("feature_views");
    let whole = !incremental && fields.flag("disable_event_timestamp", false);
    fields.flag("full_feature_names", false);
    let version = fields.optional("version");
    if !fields.fine(&mut done.answer) {
        return Ok(());
    }
    done.handled = true;
    let snapshot = &work.snapshot;
    if version.is_some() {
        if views.as_ref().is_none_or(|views| views.len() != 1) {
            return Err(other("--version requires --views with exactly one feature view."));
        }
        if !snapshot.rules.versioning {
            return Err(other(
                "Version-aware materialization requires 'enable_online_feature_view_versioning: true' under \
                 'registry' in feature_store.yaml.",
            ));
        }
        return Err(ApiError::Unsupported(
            "Materializing an earlier version of a feature view is not supported yet.".to_owned(),
        ));
    }
    let views = views_of(snapshot, views.as_deref())?;
    let today = now();
    let window = if incremental {
        let end = end.unwrap_or_default();
        Window::Until { end: time(&end, today).map_err(other)?.nanos }
    } else if whole {
        Window::Between { start: 0, end: wall_clock().as_nanos() as i128 }
    } else {
        let both = start.filter(|text| !text.is_empty()).zip(end.filter(|text| !text.is_empty()));
        let (start, end) = both
            .ok_or_else(|| other("start_ts and end_ts are required when disable_event_timestamp is False"))?;
        let invalid = |text: String| other(format!("Invalid timestamp format: {text}"));
        let (start, end) = (time(&start, today).map_err(invalid)?, time(&end, today).map_err(invalid)?);
        if start.nanos >= end.nanos {
            let shown = |at: &When| when::python_text(at.nanos, at.offset.unwrap_or(0));
            return Err(other(format!(
                "start_ts ({}) must be before end_ts ({})",
                shown(&start),
                shown(&end)
            )));
        }
        Window::Between { start: start.nanos, end: end.nanos }
    };
    let job = Job::Materialize(Run { views: views.clone(), window, in_background }).encode();
    if job.len() > MOST_OF_A_JOB {
        return Err(other("feature_views: the list is too long for one run"));
    }
    if in_background && !begin_in_background(&views, force, work, lane, done)? {
        return Ok(());
    }
    if in_background {
        let list: Vec<&str> = views.iter().map(String::as_str).collect();
        let out = done.answer.json(202);
        out.extend_from_slice(b"{\"status\":\"accepted\",\"feature_views\":[");
        write_names(out, &list);
        out.extend_from_slice(b"]}");
    }
    done.job = Some(job);
    Ok(())
}

fn write_names(out: &mut Vec<u8>, names: &[&str]) {
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        crate::text::json::write_str(out, name);
    }
}

/// A time of a request, or the parser's words.
fn time(text: &str, today: i64) -> Result<When, String> {
    when::parse(text, today).map_err(|error| match error {
        WhenError::Unknown => format!("Unknown string format: {text}"),
        WhenError::Range(problem) => format!("{problem}: {text}"),
    })
}

/// Marks the views as being materialized. False: somebody does that already, and the refusal is written.
fn begin_in_background(
    views: &[String],
    force: bool,
    work: &Work,
    lane: &mut Lane,
    done: &mut Done,
) -> Result<bool, ApiError> {
    let project = &work.snapshot.project;
    let mut busy: Vec<String> = Vec::new();
    // Only plain views have a state that is set here.
    let plain: Vec<&str> = views
        .iter()
        .filter(|name| work.snapshot.view(name).is_some_and(|v| v.kind == ViewKind::Plain))
        .map(String::as_str)
        .collect();
    let edited: Result<(), RegistryError> = lane.registry.update(|bytes, id, now| {
        busy.clear();
        for name in &plain {
            if edit::state_of(bytes, project, name)? == Some(state::MATERIALIZING) {
                busy.push((*name).to_owned());
            }
        }
        if !busy.is_empty() && !force {
            return Ok(None);
        }
        Ok(Some(edit::change_views(bytes, project, &plain, Change::State(state::MATERIALIZING), id, now)?))
    });
    edited.map_err(|error| other(error.to_string()))?;
    let names: Vec<&str> = busy.iter().map(String::as_str).collect();
    if names.is_empty() {
        return Ok(true);
    }
    if force {
        log::warn!("Force reset MATERIALIZING → GENERATED for feature views: {}", pyrepr::repr_list(names));
        return Ok(true);
    }
    let text = format!(
        "Cannot start async materialization — the following feature views are already in MATERIALIZING state: {}. \
         Use ?force=true to override.",
        pyrepr::repr_list(names.iter().copied())
    );
    let out = done.answer.json(409);
    out.extend_from_slice(b"{\"error\":");
    crate::text::json::write_str(out, &text);
    out.extend_from_slice(b",\"feature_views\":[");
    write_names(out, &names);
    out.extend_from_slice(b"]}");
    Ok(false)
}

/// The views that a request means, each checked; the order is the reference's.
pub fn views_of(snapshot: &Snapshot, named: Option<&[String]>) -> Result<Vec<String>, ApiError> {
    let Some(named) = named else {
        let of = |kind: ViewKind| {
            snapshot
                .views()
                .iter()
                .filter(move |view| view.kind == kind && view.online && !view.disabled)
                .map(|view| view.name.clone())
        };
        return Ok(of(ViewKind::Plain).chain(of(ViewKind::Stream)).collect());
    };
    for name in named {
        let view = snapshot.view(name).ok_or_else(|| ApiError::Feast {
            status: 404,
            class: "FeatureViewNotFoundException",
            message: format!("Feature view {name} does not exist in project {}", snapshot.project),
        })?;
        match view.kind {
            ViewKind::Label => {
                return Err(other(
                    "LabelView labels cannot be materialized via materialize(). Use FeatureStore.push() to write \
                     labels.",
                ));
            }
            ViewKind::OnDemand { stored: false } => {
                return Err(other(format!(
                    "OnDemandFeatureView {name} is not configured for write_to_online_store."
                )));
            }
            ViewKind::OnDemand { stored: true } => {
                return Err(ApiError::Unsupported(format!(
                    "Feature view '{name}' is computed on demand, which this server does not support yet."
                )));
            }
            _ if view.disabled => {
                return Err(other(format!(
                    "FeatureView {name} is disabled. Enable it before materializing."
                )));
            }
            _ if !view.online && !view.offline => {
                return Err(other(format!("FeatureView {name} is not configured to be served online.")));
            }
            _ => {}
        }
    }
    Ok(named.to_vec())
}
