//! One connection to one server: commands leave in order, replies come back in order, and nothing waits.
//!
//! ```text
//! Down --time to retry--> Connecting --connected--> Greeting --accepted--> Up
//!   ^                         |                        |                    |
//!   +-------- refused --------+------- refused --------+---- lost, late ----+
//! ```
//!
//! A connection that is lost, or whose oldest reply is late, is dropped whole: a reply that comes too late never
//! answers another request.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use mio::{Interest, Registry, Token as PollToken};

use super::resp::{self, Malformed, Token};
use crate::net::Stream;
use crate::tls::client::Wire;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Over TCP, with the name it was given by.
    Tcp(SocketAddr, String),
    /// On a socket file.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(_, name) => f.write_str(name),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What the next reply belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Expect {
    /// Whose it is. What nobody waits for any more is read and forgotten.
    pub ticket: super::Ticket,
    /// Which of its views.
    pub view: u16,
    /// Number of features; the time follows them.
    pub features: u32,
    /// Which key of the view; [`SKIP`] for a reply without values.
    pub key: u32,
}

/// The reply is a status and means nothing.
pub const SKIP: u32 = u32::MAX;

/// Takes what replies hold.
pub trait Sink {
    /// Value number `index` of a reply; `None` is null.
    fn value(&mut self, expect: &Expect, index: usize, bytes: Option<&[u8]>);
    /// All values of a reply have come.
    fn end(&mut self, expect: &Expect);
    /// The reply is an error.
    fn error(&mut self, expect: &Expect, text: &[u8]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Down,
    Connecting,
    /// So many replies to the first commands are missing.
    Greeting(usize),
    Up,
}

/// What happened while a link was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing of note.
    None,
    /// It accepts commands now.
    Up,
    /// It is gone; all replies it owed are lost.
    Lost,
}

/// See the module.
#[derive(Debug)]
pub struct Link {
    /// Somebody may still need it; the others are not connected again.
    pub wanted: bool,
    address: Address,
    /// Commands that begin every connection.
    greeting: Vec<Vec<u8>>,
    state: State,
    stream: Option<Wire>,
    /// Encrypts, if it does.
    tls: Option<Arc<ClientConfig>>,
    token: PollToken,
    input: Vec<u8>,
    /// Bytes of the input that are read.
    parsed: usize,
    /// Bytes of the input that have come.
    filled: usize,
    output: Vec<u8>,
    sent: usize,
    expected: VecDeque<Expect>,
    /// How far the reply at the front is read: its next value.
    progress: Option<usize>,
    failures: u32,
    retry_at: Option<Instant>,
    connecting_since: Instant,
    /// When it last said something, or was first asked since it owed nothing.
    heard: Instant,
    /// How long it may owe replies and say nothing.
    patience: Duration,
    error: String,
}

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Unsent bytes above which requests are sent away. One request may exceed it: its body had a limit.
const MAX_OUTPUT: usize = 64 << 20;
/// Pauses between attempts to connect: doubled from the first to the last, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// How long an attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

impl Link {
    /// A link that connects when it is asked to. Events carry `token`; a server that owes replies and is silent
    /// for `patience` is given up.
    pub fn new(
        address: Address,
        greeting: Vec<Vec<u8>>,
        tls: Option<Arc<ClientConfig>>,
        token: PollToken,
        patience: Duration,
    ) -> Self {
        Self {
            wanted: true,
            address,
            greeting,
            state: State::Down,
            stream: None,
            tls,
            token,
            input: Vec::new(),
            parsed: 0,
            filled: 0,
            output: Vec::new(),
            sent: 0,
            expected: VecDeque::new(),
            progress: None,
            failures: 0,
            retry_at: None,
            connecting_since: Instant::now(),
            heard: Instant::now(),
            patience,
            error: String::new(),
        }
    }

    /// The server.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// True when commands may be queued.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// True when so much is waiting to be sent that no new request should add to it.
    pub fn is_full(&self) -> bool {
        self.output.len() - self.sent >= MAX_OUTPUT
    }

    /// Why it is not up, as the Python client words it; empty when nothing went wrong yet.
    pub fn error(&self) -> &str {
        &self.error
    }

    /// The queue of commands, and a note of the reply to the one that is about to be appended.
    pub fn expect(&mut self, expect: Expect, now: Instant) -> &mut Vec<u8> {
        if self.expected.is_empty() {
            self.heard = now;
        }
        self.expected.push_back(expect);
        &mut self.output
    }

    /// Token of its events.
    pub fn token(&self) -> PollToken {
        self.token
    }

    /// True when it owes replies and has been silent for too long.
    pub fn is_late(&self, now: Instant) -> bool {
        self.state == State::Up && !self.expected.is_empty() && now >= self.heard + self.patience
    }

    /// Whose replies are missing.
    pub fn expected(&self) -> impl Iterator<Item = &Expect> {
        self.expected.iter()
    }

    /// When it tries again, or gives up trying.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Down => self.retry_at,
            State::Connecting | State::Greeting(_) => Some(self.connecting_since + CONNECT_TIMEOUT),
            State::Up => (!self.expected.is_empty()).then(|| self.heard + self.patience),
        }
    }

    /// Connects if it is down and may try.
    pub fn connect(&mut self, registry: &Registry, now: Instant) -> Change {
        match self.state {
            State::Down if self.retry_at.is_none_or(|at| at <= now) => {}
            State::Connecting | State::Greeting(_) if now >= self.connecting_since + CONNECT_TIMEOUT => {
                return self.fail(format!("Timeout connecting to server {}", self.address), now);
            }
            _ => return Change::None,
        }
        self.connecting_since = now;
        match self.open(registry) {
            Ok(()) => {
                self.state = State::Connecting;
                Change::None
            }
            Err(error) => self.fail(connect_error(&error, &self.address), now),
        }
    }

    fn open(&mut self, registry: &Registry) -> io::Result<()> {
        let mut stream = match &self.address {
            Address::Tcp(address, _) => {
                let stream = mio::net::TcpStream::connect(*address)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Address::Unix(path) => Stream::Unix(mio::net::UnixStream::connect(path)?),
        };
        registry.register(&mut stream, self.token, Interest::READABLE | Interest::WRITABLE)?;
        self.stream = Some(match (&self.tls, &self.address) {
            (Some(config), Address::Tcp(_, name)) => {
                let host = name.rsplit_once(':').map_or(name.as_str(), |(host, _)| host);
                Wire::tls(stream, config, host)?
            }
            _ => Wire::Plain(stream),
        });
        Ok(())
    }

    /// Drops the connection; the next attempt comes after a pause that grows.
    pub fn fail(&mut self, error: String, now: Instant) -> Change {
        if self.state == State::Up || self.error != error {
            log::warn!("online store {}: {error}", self.address);
        }
        let exponent = self.failures.min(7);
        let pause = (FIRST_PAUSE * 2_u32.pow(exponent)).min(LAST_PAUSE);
        // A connection that worked is tried again at once.
        let pause = if self.failures == 0 { Duration::ZERO } else { pause.mul_f64(0.5 + fastrand::f64()) };
        self.failures += 1;
        self.retry_at = Some(now + pause);
        self.error = error;
        self.state = State::Down;
        self.stream = None;
        self.output.clear();
        self.sent = 0;
        self.parsed = 0;
        self.filled = 0;
        self.progress = None;
        Change::Lost
    }

    /// Takes the replies that are lost with the connection.
    pub fn take_lost(&mut self) -> VecDeque<Expect> {
        std::mem::take(&mut self.expected)
    }

    /// Does what an event allows: finishes connecting, reads replies into `sink`.
    pub fn ready(&mut self, sink: &mut impl Sink, closed: bool, now: Instant) -> Change {
        let mut change = Change::None;
        if self.state == State::Connecting {
            match self.is_connected() {
                Ok(true) => change = self.greet(),
                Ok(false) => return Change::None,
                Err(error) => return self.fail(connect_error(&error, &self.address), now),
            }
        }
        match self.receive(sink, closed, now) {
            Ok(true) => Change::Up,
            Ok(false) => change,
            Err(error) => self.fail(error, now),
        }
    }

    fn is_connected(&self) -> io::Result<bool> {
        match self.stream.as_ref().map(Wire::stream) {
            Some(Stream::Tcp(stream)) => {
                if let Some(error) = stream.take_error()? {
                    return Err(error);
                }
                match stream.peer_addr() {
                    Ok(_) => Ok(true),
                    Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
                    Err(error) => Err(error),
                }
            }
            Some(Stream::Unix(_)) => Ok(true),
            None => Ok(false),
        }
    }

    fn greet(&mut self) -> Change {
        for command in &self.greeting {
            self.output.extend_from_slice(command);
        }
        if self.greeting.is_empty() {
            self.up()
        } else {
            self.state = State::Greeting(self.greeting.len());
            Change::None
        }
    }

    fn up(&mut self) -> Change {
        self.state = State::Up;
        Change::Up
    }

    /// A reply has come: whatever went wrong before is over. (A connection that was only made proves nothing: it
    /// may be refused with the first command.)
    fn works(&mut self) {
        log::info!("online store {}: connected", self.address);
        self.failures = 0;
        self.error.clear();
    }

    /// Reads all there is; true when the server has accepted the greeting. An error ends the connection.
    fn receive(&mut self, sink: &mut impl Sink, closed: bool, now: Instant) -> Result<bool, String> {
        let mut accepted = false;
        loop {
            if self.input.len() < self.filled + CHUNK {
                self.input.resize(self.filled + CHUNK, 0);
            }
            let Some(stream) = &mut self.stream else { return Ok(accepted) };
            let room = self.input.len() - self.filled;
            let holds_back = stream.holds_back();
            let length = match stream.read(&mut self.input[self.filled..]) {
                Ok(0) => return Err("Connection closed by server.".to_owned()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(accepted),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("Error while reading from {}: {error}", self.address)),
            };
            self.filled += length;
            self.heard = now;
            accepted |= self.parse(sink).map_err(|error| match error {
                Refused::Malformed(error) => error.to_string(),
                Refused::Greeting(text) => text,
            })?;
            self.compact();
            // Nothing is left to be read, unless the end is: no other event would announce that.
            if length < room && !closed && !holds_back {
                return Ok(accepted);
            }
        }
    }

    /// Moves what is not read yet to the front; a large buffer that is empty is given back.
    fn compact(&mut self) {
        if self.parsed == self.filled {
            self.parsed = 0;
            self.filled = 0;
            if self.input.len() > 16 * CHUNK {
                self.input = Vec::new();
            }
        } else if self.parsed > CHUNK {
            self.input.copy_within(self.parsed..self.filled, 0);
            self.filled -= self.parsed;
            self.parsed = 0;
        }
    }

    fn parse(&mut self, sink: &mut impl Sink) -> Result<bool, Refused> {
        let mut accepted = false;
        loop {
            let Some((token, length)) = resp::next(&self.input[self.parsed..self.filled])? else {
                return Ok(accepted);
            };
            if let State::Greeting(left) = self.state {
                if let Token::Error(text) = token {
                    return Err(Refused::Greeting(String::from_utf8_lossy(text).into_owned()));
                }
                self.parsed += length;
                self.state = State::Greeting(left - 1);
                if left == 1 {
                    self.up();
                    accepted = true;
                }
                continue;
            }
            // A reply that nobody asked for: the stream cannot be trusted.
            let expect = *self.expected.front().ok_or(Malformed)?;
            let ended = match (self.progress, token) {
                (None, Token::Error(text)) => {
                    sink.error(&expect, text);
                    true
                }
                (None, Token::Simple(_)) if expect.key == SKIP => true,
                (None, Token::Array(Some(count))) if count == expect.features as usize + 1 => {
                    self.progress = Some(0);
                    false
                }
                (Some(index), Token::Bulk(bytes)) => {
                    sink.value(&expect, index, bytes);
                    let last = index == expect.features as usize;
                    if last {
                        sink.end(&expect);
                    } else {
                        self.progress = Some(index + 1);
                    }
                    last
                }
                _ => return Err(Malformed.into()),
            };
            self.parsed += length;
            if ended {
                self.progress = None;
                self.expected.pop_front();
                if self.failures > 0 {
                    self.works();
                }
            }
        }
    }

    /// Writes what is queued, as far as the socket takes it.
    pub fn flush(&mut self, now: Instant) -> Change {
        if matches!(self.state, State::Down | State::Connecting) {
            return Change::None;
        }
        while self.sent < self.output.len() {
            let Some(stream) = &mut self.stream else { return Change::None };
            match stream.write(&self.output[self.sent..]) {
                Ok(0) => return self.fail("Connection closed by server.".to_owned(), now),
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Change::None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return self.fail(format!("Error while writing to {}: {error}", self.address), now);
                }
            }
        }
        self.output.clear();
        self.sent = 0;
        match self.stream.as_mut().map(Wire::push) {
            Some(Err(error)) => self.fail(format!("Error while writing to {}: {error}", self.address), now),
            _ => Change::None,
        }
    }
}

/// Why a connection cannot go on.
enum Refused {
    Malformed(Malformed),
    /// An answer to the first commands.
    Greeting(String),
}

impl From<Malformed> for Refused {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

/// The Python client's words for a connection that could not be made.
fn connect_error(error: &io::Error, address: &Address) -> String {
    let number = error.raw_os_error().map_or(String::new(), |number| format!("{number} "));
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    format!("Error {number}connecting to {address}. {text}.")
}
