//! `POST /push` and `POST /write-to-online-store`.
//!
//! Everything is checked and converted before anything is stored: one online transaction for all fed views, then
//! one append per distinct offline source.

use super::body::{self, Fields};
use super::{now, other, Done, Lane, Work};
use crate::api::error::ApiError;
use crate::api::json_in::Details;
use crate::feature::frame::Frame;
use crate::feature::rows::{self, Rows, Target};
use crate::offline::append;
use crate::offline::spool::Spooled;
use crate::online::Unwritten;
use crate::registry::model::{View, ViewKind};
use crate::registry::source::Source;

/// Where a push goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Online,
    Offline,
    Both,
}

impl To {
    fn online(self) -> bool {
        self != Self::Offline
    }

    fn offline(self) -> bool {
        self != Self::Online
    }
}

/// Feeds a push source's views.
pub(super) fn push(work: &Work, lane: &mut Lane, done: &mut Done) -> Result<(), ApiError> {
    let strict = lane.rules.strict_content_type;
    let Some(request) = body::read(&work.body, work.content_type.as_deref(), strict, &mut done.answer) else {
        return Ok(());
    };
    let Some(mut fields) = Fields::of(&request, Details::new(), &mut done.answer) else { return Ok(()) };
    let source = fields.text("push_source_name");
    let frame = fields.frame();
    fields.flag("allow_registry_cache", true);
    let to = fields.text_or("to", "online");
    fields.flag("transform_on_write", true);
    if !fields.fine(&mut done.answer) {
        return Ok(());
    }
    done.handled = true;
    let mut data = Frame::of(frame).map_err(other)?;
    let destination = match &*to {
        "online" => To::Online,
        "offline" => To::Offline,
        "online_and_offline" => To::Both,
        wrong => {
            return Err(other(format!(
                "{wrong} is not a supported push format. Please specify one of these ['online', 'offline', \
                 'online_and_offline']."
            )));
        }
    };
    let snapshot = &work.snapshot;
    if !snapshot.has_push_source(&source) {
        return Err(ApiError::Feast {
            status: 422,
            class: "PushSourceNotFoundException",
            message: format!("Unable to find push source '{source}'."),
        });
    }
    let fed: Vec<&View> = snapshot
        .views()
        .iter()
        .filter(|view| view.stream_source.as_ref().is_some_and(|stream| stream.name == source))
        .collect();
    let mut online = Vec::new();
    if destination.online() {
        for view in &fed {
            online.extend(convert(view, &mut data, work, lane)?);
        }
    }
    let mut offline: Vec<&Source> = Vec::new();
    if destination.offline() {
        for source in fed.iter().filter_map(|view| view.batch_source.as_ref()) {
            if !offline.iter().any(|known| known.path == source.path) {
                offline.push(source);
            }
        }
        for source in &offline {
            append::check(source, &lane.repo_path, &mut data.columns, data.labelled).map_err(other)?;
        }
    }
    store(lane, &online)?;
    let mut queued = false;
    for source in offline {
        match &mut lane.spool {
            Some(spool) => match spool.add(source, &work.body, data.rows()) {
                Ok(Spooled::Kept) => queued = true,
                Ok(Spooled::Full) => {
                    return Err(ApiError::Overloaded("Too many offline rows wait to be written"));
                }
                Err(error) => return Err(other(format!("cannot keep the rows for their batch: {error}"))),
            },
            None => {
                append::append(source, &lane.repo_path, &mut data.columns, lane.patience).map_err(other)?;
            }
        }
    }
    done.answer.reset(if queued { 202 } else { 200 });
    done.pushed = Some((source.into_owned(), to.into_owned()));
    Ok(())
}

/// Writes rows to one view.
pub(super) fn write(work: &Work, lane: &mut Lane, done: &mut Done) -> Result<(), ApiError> {
    let strict = lane.rules.strict_content_type;
    let Some(request) = body::read(&work.body, work.content_type.as_deref(), strict, &mut done.answer) else {
        return Ok(());
    };
    let Some(mut fields) = Fields::of(&request, Details::new(), &mut done.answer) else { return Ok(()) };
    let name = fields.text("feature_view_name");
    let frame = fields.frame();
    fields.flag("allow_registry_cache", true);
    let transform = fields.flag("transform_on_write", true);
    if !fields.fine(&mut done.answer) {
        return Ok(());
    }
    done.handled = true;
    let mut data = Frame::of(frame).map_err(other)?;
    let found = work.snapshot.views().iter().filter(|view| view.name == name);
    // The order in which the reference looks; label views are not known to this route.
    let rank = |view: &&View| match view.kind {
        ViewKind::Plain => 0,
        ViewKind::OnDemand { .. } => 1,
        ViewKind::Stream => 2,
        ViewKind::Label => 3,
    };
    let view = found.filter(|view| view.kind != ViewKind::Label).min_by_key(rank).ok_or_else(|| {
        ApiError::Feast {
            status: 404,
            class: "FeastObjectNotFoundException",
            message: format!("Can't recognize feast object with a name {name}"),
        }
    })?;
    if matches!(view.kind, ViewKind::OnDemand { .. }) && transform {
        return Err(ApiError::Unsupported(format!(
            "Feature view '{name}' is transformed on write, which this server does not support yet."
        )));
    }
    let rows = convert(view, &mut data, work, lane)?;
    store(lane, rows.as_slice())?;
    done.answer.json(200).extend_from_slice(b"null");
    Ok(())
}

/// The rows of a view, unless there is nothing to store.
fn convert(view: &View, data: &mut Frame<'_>, work: &Work, lane: &Lane) -> Result<Option<Rows>, ApiError> {
    let target = Target::of(view, &work.snapshot, lane.rules.key_version);
    let source = view.batch_source.as_ref().or(view.stream_source.as_ref());
    // The types of columns matter only to those who get as far as their values.
    let mut inferred = Ok(());
    if rows::reaches_values(&target, &data.columns) {
        inferred = data.infer();
    }
    let rename = |name: &str| source.map_or(name, |source| source.mapped(name)).to_owned();
    let checked = || inferred.clone();
    rows::convert(&target, &rename, &data.columns, &checked, lane.writer.no_time(), now()).map_err(other)
}

fn store(lane: &mut Lane, views: &[Rows]) -> Result<(), ApiError> {
    if views.is_empty() {
        return Ok(());
    }
    lane.writer.write(views).map_err(|Unwritten::Failed(text)| other(text))
}
