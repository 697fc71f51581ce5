//! The control socket: a word in, a line of JSON out. Only the owner of the server, or root, is heard.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::os::process;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// How is everything?
    Status,
    /// As HUP.
    Reload,
    /// As TTIN: one worker more.
    Ttin,
    /// As TTOU: one worker less.
    Ttou,
    /// As USR1: open log files again.
    Reopen,
    /// As USR2: start the new binary.
    Upgrade,
    /// As TERM.
    Stop,
}

const WORDS: [(Request, &str); 7] = [
    (Request::Status, "status"),
    (Request::Reload, "reload"),
    (Request::Ttin, "ttin"),
    (Request::Ttou, "ttou"),
    (Request::Reopen, "reopen"),
    (Request::Upgrade, "upgrade"),
    (Request::Stop, "stop"),
];

impl Request {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(request, _)| *request == self).map_or("", |(_, word)| word)
    }

    fn parse(word: &str) -> Option<Self> {
        WORDS.iter().find(|(_, known)| *known == word).map(|(request, _)| *request)
    }
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Process number.
    pub pid: i32,
    /// Place on the scoreboard.
    pub slot: usize,
    /// booting, serving, retiring or draining
    pub state: String,
    /// Seconds since it was forked.
    pub age_seconds: u64,
    /// Requests parsed.
    pub requests: u64,
    /// Open connections.
    pub connections: u32,
    /// Seconds since it last turned its loop.
    pub silent_seconds: u64,
    /// Resident memory, shared pages included.
    pub memory_kib: u64,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Process number; 0 while it waits.
    pub pid: i32,
    /// What it does.
    pub what: String,
    /// Seconds since it was forked.
    pub age_seconds: u64,
    /// How far it is.
    pub percent: u8,
}

/// The whole tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the running binary.
    pub version: String,
    /// The master's process number.
    pub pid: i32,
    /// A name of [`TreePhase`](super::scoreboard::TreePhase).
    pub phase: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Workers wanted.
    pub wanted: usize,
    /// Addresses.
    pub listeners: Vec<String>,
    /// All workers, the oldest first.
    pub workers: Vec<WorkerStatus>,
    /// Jobs that run or wait.
    #[serde(default)]
    pub jobs: Vec<JobStatus>,
    /// Offline pushes that wait for their batch.
    #[serde(default)]
    pub offline_pushes_waiting: usize,
    /// Their rows.
    #[serde(default)]
    pub offline_rows_waiting: usize,
    /// Where the metric files are, if anything is counted.
    #[serde(default)]
    pub metrics_directory: Option<String>,
}

/// The master's end.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    clients: Vec<Client>,
    owner: u32,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    said: Vec<u8>,
    since: Instant,
}

/// How long somebody may take to say a word.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_WORD: usize = 64;
const MAX_CLIENTS: usize = 16;

impl Control {
    /// Listens at `path` with mode 0600. A socket that nobody listens on is replaced.
    pub fn open(path: &Path) -> io::Result<Self> {
        let socket = process::with_umask(0o177, || crate::os::sockets::listen_unix(path, 16))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let listener = UnixListener::from(std::os::fd::OwnedFd::from(socket));
        Ok(Self { listener, path: path.to_owned(), clients: Vec::new(), owner: process::effective_uid() })
    }

    /// Descriptors to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = std::os::fd::BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        std::iter::once(self.listener.as_fd()).chain(self.clients.iter().map(|client| client.stream.as_fd()))
    }

    /// Takes what has been asked, with the connections that wait for answers. Nobody is waited for.
    pub fn take(&mut self, now: Instant) -> Vec<(UnixStream, Option<Request>)> {
        while let Ok((stream, _)) = self.listener.accept() {
            let peer = process::peer_uid(&stream);
            let heard = peer.is_some_and(|uid| uid == self.owner || uid == 0);
            if heard && self.clients.len() < MAX_CLIENTS && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, said: Vec::new(), since: now });
            }
        }
        let mut asked = Vec::new();
        for mut client in std::mem::take(&mut self.clients) {
            let mut buffer = [0; MAX_WORD];
            let open = loop {
                match client.stream.read(&mut buffer) {
                    Ok(0) => break false,
                    Ok(length) => client.said.extend_from_slice(&buffer[..length]),
                    Err(error) => break error.kind() == io::ErrorKind::WouldBlock,
                }
                if client.said.len() > MAX_WORD {
                    break false;
                }
            };
            if let Some(end) = client.said.iter().position(|&byte| byte == b'\n') {
                let word = String::from_utf8_lossy(&client.said[..end]).into_owned();
                asked.push((client.stream, Request::parse(word.trim())));
            } else if open && now.duration_since(client.since) < PATIENCE {
                self.clients.push(client);
            }
        }
        asked
    }

    /// Moves the socket's file to `path`; clients find it there from now on.
    pub fn rename(&mut self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, path)?;
        path.clone_into(&mut self.path);
        Ok(())
    }

    /// Removes the socket's file.
    pub fn close(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Sends an answer, as far as the other side takes it at once.
pub fn answer(mut stream: UnixStream, value: &impl Serialize) {
    if let Ok(mut line) = serde_json::to_vec(value) {
        line.push(b'\n');
        let _ = stream.write_all(&line);
    }
}

/// Asks the server whose control socket is at `path`; returns its line.
pub fn ask(path: &Path, request: Request) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{}\n", request.word()).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the server hears its owner and root only",
        ));
    }
    Ok(line)
}
