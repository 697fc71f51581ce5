//! `get-online-features`: one read without a server, as a table or JSON.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use super::args::GetArgs;
use super::commands::say;
use super::list::table;
use super::site::{open, usage};
use crate::api::{online, Answer, ApiRules, Context, Freshness, PlanCache, Step};
use crate::config::store::Location;
use crate::exit;
use crate::master::{MissingRegistry, StartError};
use crate::os::process::wall_clock;
use crate::worker;

/// First token of the store's connections.
const STORES: usize = 16;
const WAKER: Token = Token(0);

/// Reads once.
pub(super) fn get(location: &Location, args: &GetArgs) -> Result<i32, StartError> {
    let body = request(args)?;
    let (prepared, site) = open(location, MissingRegistry::Refuse)?;
    let failed = |error: std::io::Error| StartError::new(exit::CONFIG, error.to_string());
    let mut poll = Poll::new().map_err(failed)?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(failed)?);
    let tls = prepared.store_tls.clone();
    let mut store =
        worker::open_store(&prepared.settings, &site.store, tls, &poll, STORES, waker).map_err(failed)?;
    let (mut plans, mut scratch) = (PlanCache::default(), online::Scratch::default());
    let mut answer = Answer::default();
    let mut asked = None;
    let until = Instant::now() + prepared.settings.store_timeout + Duration::from_secs(5);
    loop {
        let now = Instant::now();
        let mut cx = Context {
            snapshot: &prepared.snapshot,
            plans: &mut plans,
            store: &mut *store,
            scratch: &mut scratch,
            rules: ApiRules {
                key_version: prepared.store.key_version,
                strict_content_type: false,
                enforce_ttl: prepared.settings.enforce_ttl,
            },
            now_nanos: wall_clock().as_nanos() as i128,
            freshness: Freshness::Checked,
            registry_changed: &mut || false,
            waiting_since: None,
            asked: &mut asked,
            now,
            meters: None,
            out_of_patience: now >= until,
        };
        let step = online::get_online_features(body.as_bytes(), None, &mut cx, &mut answer);
        store.end_tick();
        match step {
            Step::Reply => break,
            Step::WaitForValues => {
                if let Some(asked) = &asked {
                    store.own(asked.ticket, 0);
                }
                let mut done = Vec::new();
                let mut events = Events::with_capacity(64);
                while done.is_empty() && Instant::now() < until {
                    poll.poll(&mut events, Some(Duration::from_millis(50))).map_err(failed)?;
                    let now = Instant::now();
                    for event in events.iter().filter(|event| event.token() != WAKER) {
                        store.ready(event.token(), event.is_read_closed(), now);
                    }
                    store.turn(now, &mut done);
                }
                if done.is_empty() {
                    return Err(StartError::new(exit::CONFIG, "the online store does not answer"));
                }
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    if answer.status != 200 {
        let text = serde_json::from_str::<String>(&text).unwrap_or(text);
        return Err(StartError::new(exit::CONFIG, text));
    }
    say(&if args.json { text } else { shown(&text) });
    Ok(exit::OK)
}

/// The body of the request that these words stand for.
fn request(args: &GetArgs) -> Result<String, StartError> {
    let mut entities = serde_json::Map::new();
    for pair in &args.entities {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(usage(format!("--entities {pair}: write NAME=VALUE, e.g. driver_id=1001")));
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::from(value));
        let list = entities.entry(name.to_owned()).or_insert_with(|| serde_json::json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(value);
        }
    }
    let mut body = serde_json::json!({ "entities": entities });
    match &args.service {
        Some(service) => body["feature_service"] = service.as_str().into(),
        None if args.features.is_empty() => return Err(usage("name --features or a --service")),
        None => body["features"] = args.features.clone().into(),
    }
    Ok(body.to_string())
}

/// The answer as a table: a line per entity.
fn shown(text: &str) -> String {
    let Ok(body) = serde_json::from_str::<serde_json::Value>(text) else { return text.to_owned() };
    let names: Vec<&str> = body["metadata"]["feature_names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_str)
        .collect();
    let columns: Vec<&Vec<serde_json::Value>> = body["results"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|column| column["values"].as_array())
        .collect();
    let rows: Vec<Vec<String>> = (0..columns.first().map_or(0, |column| column.len()))
        .map(|row| {
            columns
                .iter()
                .map(|column| match &column[row] {
                    serde_json::Value::String(text) => text.clone(),
                    other => other.to_string(),
                })
                .collect()
        })
        .collect();
    table(&names, &rows)
}
