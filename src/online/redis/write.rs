//! Writing features, byte for byte as the reference does it, over blocking connections and in pipelines.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Connection, ConnectionLike, ErrorKind, RedisError, Value};

use super::keys;
use super::link::Address;
use super::resp::{write_bulk, write_header};
use super::topology::{self, Found};
use crate::config::redis::RedisConfig;
use crate::feature::rows::{Nanos, NoTime, Rows};
use crate::online::{OnlineWriter, Unwritten};
use crate::registry::model::seconds_and_nanos;
use crate::registry::wire;

/// Rows that go out in one pipeline.
const BATCH: usize = 500;
/// How often a write is begun again when servers have moved or connections are gone, and after which pause.
const RETRIES: (u32, Duration) = (3, Duration::from_millis(50));
/// The same where nobody waits: as long as a replica needs to take over.
const PATIENT_RETRIES: (u32, Duration) = (60, Duration::from_millis(250));

/// How rows are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Seconds after which an entity expires; every write renews them.
    pub key_ttl: Option<u64>,
    /// Write without a look at what is stored.
    pub skip_dedup: bool,
    /// The rows' slot is on its way to this server.
    pub asking: bool,
    /// An earlier try may have stored a row without its time to live.
    pub again: bool,
}

/// What stands before each command to a server that imports the command's slot.
const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// Writes those rows whose numbers are in `which`. A row that is not newer than what is stored, or than an earlier
/// row of its entity in this call, is left out whole; a stored time of zero stops nobody. Returns how many were
/// written.
pub fn write(
    connection: &mut impl ConnectionLike,
    project: &str,
    rows: &Rows,
    which: &[u32],
    rules: Rules,
) -> Result<usize, RedisError> {
    let time_field = keys::time_field(&rows.stored);
    let fields: Vec<[u8; 4]> = rows.features.iter().map(|name| keys::field(&rows.stored, name)).collect();
    let mut newest: HashMap<&[u8], Nanos, foldhash::fast::RandomState> = HashMap::default();
    let mut written = 0;
    let mut out = Vec::new();
    let ask = |out: &mut Vec<u8>, commands: &mut usize| {
        if rules.asking {
            out.extend_from_slice(ASKING);
            *commands += 1;
        }
    };
    let expire = |out: &mut Vec<u8>, key: &[u8], seconds: u64, commands: &mut usize| {
        ask(out, commands);
        out.extend_from_slice(b"*3\r\n$6\r\nEXPIRE\r\n");
        write_key(out, key, project);
        write_bulk(out, seconds.to_string().as_bytes());
        *commands += 1;
    };
    for batch in which.chunks(BATCH) {
        let stored = if rules.skip_dedup {
            vec![0; batch.len()]
        } else {
            stored_times(connection, project, rows, batch, &time_field, rules.asking, &mut out)?
        };
        out.clear();
        let mut commands = 0;
        for (&row, stored) in batch.iter().zip(stored) {
            let row = row as usize;
            // Finer digits than microseconds are not kept.
            let event = rows.heads[row].event.div_euclid(1000) * 1000;
            if !rules.skip_dedup {
                let known = newest.get(rows.key(row)).copied().unwrap_or(0).max(stored);
                if known != 0 && event <= known {
                    if let Some(seconds) = rules.key_ttl.filter(|_| rules.again && event == stored) {
                        expire(&mut out, rows.key(row), seconds, &mut commands);
                    }
                    continue;
                }
                newest.insert(rows.key(row), event);
            }
            ask(&mut out, &mut commands);
            write_header(&mut out, b'*', 4 + fields.len() * 2);
            out.extend_from_slice(b"$4\r\nHSET\r\n");
            write_key(&mut out, rows.key(row), project);
            write_bulk(&mut out, time_field.as_bytes());
            write_bulk(&mut out, &timestamp(event));
            for (index, field) in fields.iter().enumerate() {
                write_bulk(&mut out, field);
                write_bulk(&mut out, rows.value(row, index));
            }
            commands += 1;
            if let Some(seconds) = rules.key_ttl {
                expire(&mut out, rows.key(row), seconds, &mut commands);
            }
            written += 1;
        }
        if commands > 0 {
            checked(connection.req_packed_commands(&out, 0, commands)?)?;
        }
    }
    Ok(written)
}

/// The event times that are stored for these rows.
fn stored_times(
    connection: &mut impl ConnectionLike,
    project: &str,
    rows: &Rows,
    batch: &[u32],
    time_field: &str,
    asking: bool,
    out: &mut Vec<u8>,
) -> Result<Vec<Nanos>, RedisError> {
    out.clear();
    for &row in batch {
        if asking {
            out.extend_from_slice(ASKING);
        }
        out.extend_from_slice(b"*3\r\n$4\r\nHGET\r\n");
        write_key(out, rows.key(row as usize), project);
        write_bulk(out, time_field.as_bytes());
    }
    let each = 1 + usize::from(asking);
    let replies = checked(connection.req_packed_commands(out, 0, batch.len() * each)?)?;
    Ok(replies
        .into_iter()
        .skip(each - 1)
        .step_by(each)
        .map(|reply| match reply {
            Value::BulkString(bytes) => seconds_and_nanos(&bytes)
                .map_or(0, |(seconds, nanos)| seconds.saturating_mul(1_000_000_000) + i64::from(nanos)),
            _ => 0,
        })
        .collect())
}

/// An error among the replies is the error of all.
fn checked(replies: Vec<Value>) -> Result<Vec<Value>, RedisError> {
    replies.into_iter().map(Value::extract_error).collect()
}

fn write_key(out: &mut Vec<u8>, key: &[u8], project: &str) {
    write_header(out, b'$', key.len() + project.len());
    out.extend_from_slice(key);
    out.extend_from_slice(project.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A serialized `google.protobuf.Timestamp`; the epoch is the empty string.
fn timestamp(event: Nanos) -> Vec<u8> {
    let mut out = Vec::new();
    let parts = [(1, event.div_euclid(1_000_000_000)), (2, event.rem_euclid(1_000_000_000))];
    for (number, value) in parts {
        if value != 0 {
            wire::put_int(&mut out, number, value);
        }
    }
    out
}

/// Blocking connections to all servers of a store.
pub struct RedisWriter {
    config: RedisConfig,
    project: String,
    found: Option<Found>,
    connections: Vec<Option<Connection>>,
    retries: (u32, Duration),
}

impl RedisWriter {
    /// A writer that connects on first use.
    pub fn new(config: &RedisConfig, project: &str) -> Self {
        // Replicas take no writes.
        let config = RedisConfig { read_from_replicas: false, ..config.clone() };
        Self { config, project: project.to_owned(), found: None, connections: Vec::new(), retries: RETRIES }
    }

    /// For a job, which waits out a failover rather than begin again.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { retries: PATIENT_RETRIES, ..self }
    }

    fn forget(&mut self) {
        self.found = None;
        self.connections.clear();
    }

    /// Removes every entity of the project, on all servers.
    pub fn remove_project(&mut self) -> Result<usize, String> {
        let found = topology::known(&self.config).map_or_else(|| topology::discover(&self.config), Ok)?;
        let mut removed = 0;
        for node in &found.nodes {
            let (host, port) = match node {
                Address::Unix(_) => (String::new(), 0),
                Address::Tcp(_, name) => {
                    let (host, port) = name.rsplit_once(':').unwrap_or((name, ""));
                    (host.to_owned(), port.parse().unwrap_or(6379))
                }
            };
            let mut connection = topology::connect(&self.config, &host, port, true)?;
            let mut cursor = 0_u64;
            loop {
                let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
                    .arg(cursor)
                    .arg("COUNT")
                    .arg(1000)
                    .query(&mut connection)
                    .map_err(|error| error.to_string())?;
                // Another project's name may end like this one's: the entity key says where the name begins.
                for key in keys.iter().filter(|key| project_of(key) == Some(self.project.as_bytes())) {
                    let _: () = redis::cmd("UNLINK")
                        .arg(key)
                        .query(&mut connection)
                        .map_err(|error| error.to_string())?;
                    removed += 1;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(removed)
    }

    /// Writes the rows of one server.
    fn write_to(&mut self, node: usize, rows: &Rows, which: &[u32], again: bool) -> Result<(), Problem> {
        let Some(found) = &self.found else { return Err(Problem::Moved("no servers".to_owned())) };
        if self.connections[node].is_none() {
            let opened = match &found.nodes[node] {
                Address::Unix(_) => topology::connect(&self.config, "", 0, true),
                Address::Tcp(_, name) => {
                    let (host, port) = name.rsplit_once(':').unwrap_or((name, ""));
                    topology::connect(&self.config, host, port.parse().unwrap_or(6379), true)
                }
            };
            self.connections[node] = Some(opened.map_err(Problem::Gone)?);
        }
        let Some(connection) = &mut self.connections[node] else { return Ok(()) };
        let rules =
            Rules { key_ttl: self.config.key_ttl, skip_dedup: self.config.skip_dedup, asking: false, again };
        match write(connection, &self.project, rows, which, rules) {
            Err(error) if error.code() == Some("ASK") => self.follow(node, rows, which, rules),
            Err(error) => Err(problem(&error)),
            Ok(_) => Ok(()),
        }
    }

    /// Writes rows one by one while a slot is moving: some of its keys are at the new server already.
    fn follow(&mut self, node: usize, rows: &Rows, which: &[u32], rules: Rules) -> Result<(), Problem> {
        let mut there: Option<(String, Connection)> = None;
        for &row in which {
            let Some(here) = &mut self.connections[node] else {
                return Err(Problem::Gone("no connection".to_owned()));
            };
            let Err(error) = write(here, &self.project, rows, &[row], rules) else { continue };
            let asked = error.redirect_node().filter(|_| error.code() == Some("ASK"));
            let Some((address, _)) = asked else { return Err(problem(&error)) };
            if there.as_ref().is_none_or(|(known, _)| known != address) {
                let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
                let port = port.parse().unwrap_or(6379);
                let connection = topology::connect(&self.config, host, port, true).map_err(Problem::Gone)?;
                there = Some((address.to_owned(), connection));
            }
            if let Some((_, connection)) = &mut there {
                let rules = Rules { asking: true, ..rules };
                write(connection, &self.project, rows, &[row], rules).map_err(|error| problem(&error))?;
            }
        }
        Ok(())
    }

    fn write_once(&mut self, rows: &Rows, again: bool) -> Result<(), Problem> {
        if self.found.is_none() {
            let found = topology::known(&self.config)
                .map_or_else(|| topology::discover(&self.config), Ok)
                .map_err(Problem::Gone)?;
            self.connections = found.nodes.iter().map(|_| None).collect();
            self.found = Some(found);
        }
        let Some(found) = &self.found else { return Ok(()) };
        let mut parts: Vec<Vec<u32>> = vec![Vec::new(); found.nodes.len()];
        let mut key = Vec::new();
        for row in 0..rows.len() {
            let node = if found.slots.is_empty() {
                0
            } else {
                key.clear();
                key.extend_from_slice(rows.key(row));
                key.extend_from_slice(self.project.as_bytes());
                usize::from(found.slots[usize::from(keys::slot(&key))])
            };
            let part =
                parts.get_mut(node).ok_or_else(|| Problem::Moved("a slot without a server".to_owned()))?;
            part.push(row as u32);
        }
        for (node, part) in parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            self.write_to(node, rows, part, again)?;
        }
        Ok(())
    }
}

/// What stands behind the entity key (of version 3) in a key.
fn project_of(key: &[u8]) -> Option<&[u8]> {
    fn number(rest: &mut &[u8]) -> Option<usize> {
        let (bytes, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    }
    let mut rest = key;
    let count = number(&mut rest)?;
    for _ in 0..count.checked_mul(2)? {
        number(&mut rest)?;
        let length = number(&mut rest)?;
        rest = rest.get(length..)?;
    }
    Some(rest)
}

/// Why a write did not happen.
enum Problem {
    /// The server is another one now.
    Moved(String),
    /// The connection is gone, or there is none.
    Gone(String),
    /// The server has said no.
    Refused(String),
}

/// What an error means for the write.
fn problem(error: &RedisError) -> Problem {
    let text = error.to_string();
    let elsewhere = error.is_cluster_error() || matches!(error.code(), Some("READONLY" | "LOADING"));
    if elsewhere {
        Problem::Moved(text)
    } else if error.is_io_error() || matches!(error.kind(), ErrorKind::Parse) {
        Problem::Gone(text)
    } else {
        Problem::Refused(text)
    }
}

impl OnlineWriter for RedisWriter {
    fn write(&mut self, views: &[Rows]) -> Result<(), Unwritten> {
        for rows in views {
            let (most, pause) = self.retries;
            let mut left = most;
            // Writing a row twice changes nothing: what is not newer is left out.
            while let Err(problem) = self.write_once(rows, left < most) {
                left -= 1;
                let text = match problem {
                    Problem::Refused(text) => return Err(Unwritten::Failed(text)),
                    Problem::Moved(text) | Problem::Gone(text) => text,
                };
                self.forget();
                if left == 0 {
                    return Err(Unwritten::Failed(text));
                }
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    fn no_time(&self) -> NoTime {
        NoTime { event: "NaTType does not support utctimetuple", created: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_whose_it_is() {
        let mut key = vec![1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, b'k', 4, 0, 0, 0, 8, 0, 0, 0];
        key.extend_from_slice(&7_i64.to_le_bytes());
        key.extend_from_slice(b"workshop");
        assert_eq!(project_of(&key), Some(&b"workshop"[..]));
        assert_eq!(project_of(b"shop"), None);
    }
}
