//! One client connection: what it waits for, and what it does when that comes.
//!
//! ```text
//! Greeting (only behind a balancer that speaks the PROXY protocol)
//!    |
//!    |       +--------------- answered, keep-alive ---------------+
//!            v                                                    |
//! Reading --request--> (answer) --all written--------------------+--> closed
//!    ^                    |  |                                    |
//!    |                    |  +--socket full--> Writing -----------+
//!    +----ready again--- Parked
//!                 close with unread bytes: Lingering --> closed
//! ```

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustls::ServerConfig;

use super::service::{Incoming, Retry, Service};
use super::Clock;
use crate::api::Step;
use crate::config::Settings;
use crate::http::proxy::{self, Preamble};
use crate::http::{respond, HttpError, Parsed, Parser};
use crate::ipc::handover::{Baggage, MAX_PENDING};
use crate::net::Stream;
use crate::tls::server::{Got, Wire};

/// Requests answered, and reads done, before other connections get their turn.
const BUDGET: u32 = 32;
/// How long a client may take to read the last answer of a connection that is being closed.
const LINGER: Duration = Duration::from_secs(2);
/// How long a client may leave an answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);
/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A balancer's word about the client, or its first bytes.
    Greeting,
    /// Bytes from the client.
    Reading,
    /// The client to take the answer.
    Writing {
        /// Nothing follows this answer.
        then_close: bool,
    },
    /// Something that this worker will tell.
    Parked,
    /// The client to notice that nothing more comes; what it sends is thrown away.
    Lingering,
    /// Nothing: the client is gone.
    Broken,
}

/// What is to be done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Wait for events.
    Keep,
    /// Go on in the next turn.
    Again,
    /// Its request waits for the service.
    Parked,
    /// Close it.
    Close,
}

/// A client's address, for logs.
struct Peer(Option<SocketAddr>);

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(peer) => peer.fmt(f),
            None => f.write_str("a Unix socket"),
        }
    }
}

/// What a connection works with during its turn.
pub(super) struct Turn<'t> {
    pub(super) service: &'t mut Service,
    pub(super) scratch: &'t mut Vec<u8>,
    pub(super) settings: &'t Settings,
    pub(super) clock: &'t Clock,
    /// Every answer is the last one of its connection.
    pub(super) closing: bool,
    pub(super) registry: &'t Registry,
    pub(super) token: Token,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) wire: Wire,
    peer: Option<SocketAddr>,
    /// When the worker has to act without an event.
    pub(super) deadline: Instant,
    state: State,
    parser: Parser,
    /// Bytes read that no answer has used up.
    input: Vec<u8>,
    /// `input` holds bytes that the parser has not seen.
    unparsed: bool,
    /// The last event said that there is something to read.
    readable: bool,
    /// The client has said that nothing more comes: the end stands behind the bytes not read yet, and makes
    /// no event of its own.
    read_closed: bool,
    watches_write: bool,
    /// The client may still be sending when its last answer is out.
    linger: bool,
    /// `100 Continue` was sent for the request being read.
    continued: bool,
    /// The request being read counts towards the worker's limit already.
    counted: bool,
    requests: u32,
    retry: Option<Retry>,
    /// The request being read has begun; its deadline stands.
    begun: bool,
    /// It waits for the next turn.
    pub(super) posted: bool,
}

impl Conn {
    pub(super) fn new(wire: Wire, peer: Option<SocketAddr>, deadline: Instant) -> Self {
        Self {
            wire,
            peer,
            deadline,
            state: State::Reading,
            parser: Parser::new(),
            input: Vec::new(),
            unparsed: false,
            readable: false,
            read_closed: false,
            watches_write: false,
            linger: false,
            continued: false,
            counted: false,
            requests: 0,
            retry: None,
            begun: false,
            posted: false,
        }
    }

    /// A connection that may begin with a balancer's word about the client.
    pub(super) fn behind_balancer(self) -> Self {
        Self { state: State::Greeting, ..self }
    }

    /// A connection that another worker handed over.
    pub(super) fn adopted(
        stream: Stream,
        baggage: Baggage,
        tls: Option<&Arc<ServerConfig>>,
        now: Instant,
    ) -> io::Result<Self> {
        let wire = match tls.filter(|_| baggage.handshake) {
            Some(config) => Wire::secure(stream, config)?,
            None => Wire::adopted(stream, &baggage.keys)?,
        };
        Ok(Self {
            state: if baggage.greeting { State::Greeting } else { State::Reading },
            begun: baggage.begun,
            counted: baggage.counted,
            unparsed: !baggage.pending.is_empty(),
            input: baggage.pending,
            continued: baggage.continued,
            requests: baggage.requests,
            retry: baggage.job.map(Retry::of_job),
            ..Self::new(wire, baggage.peer, now + baggage.time_left)
        })
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.watches_write = false;
        self.wire.register(registry, token, Interest::READABLE)
    }

    pub(super) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.wire.deregister(registry)
    }

    /// Notes what an event said.
    pub(super) fn readiness(&mut self, read_closed: bool) {
        // Events are edge-triggered: this one is remembered until a read finds nothing more.
        self.readable = true;
        self.read_closed |= read_closed;
    }

    /// True when it can be handed to another worker now.
    pub(super) fn is_portable(&self) -> bool {
        // One that has waited for something is driven first: what it waited for does not travel.
        matches!(self.state, State::Greeting | State::Reading) && self.retry.is_none() && self.fits()
    }

    /// True when its request waits for something and it could still be handed over.
    pub(super) fn is_parked_portably(&self) -> bool {
        self.state == State::Parked && self.fits()
    }

    fn fits(&self) -> bool {
        self.input.len() <= MAX_PENDING && self.wire.is_portable()
    }

    /// Lets a handshake that cannot be handed over end, one way or the other.
    pub(super) fn hurry(&mut self, until: Instant) {
        if self.wire.is_handshaking() && !self.wire.is_untouched() {
            self.deadline = self.deadline.min(until);
        }
    }

    /// True while nothing of a request has arrived.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Greeting | State::Reading) && self.input.is_empty()
    }

    /// What travels with it. It keeps nothing that matters.
    pub(super) fn baggage(&mut self, now: Instant) -> Baggage {
        Baggage {
            begun: self.begun,
            time_left: self.deadline.saturating_duration_since(now),
            continued: self.continued,
            counted: self.counted,
            greeting: self.state == State::Greeting,
            handshake: self.wire.is_untouched(),
            requests: self.requests,
            job: None,
            peer: self.peer,
            keys: self.wire.keys(),
            pending: std::mem::take(&mut self.input),
        }
    }

    /// Takes the baggage back: the other worker is gone.
    pub(super) fn take_back(&mut self, baggage: Baggage) {
        self.unparsed = !baggage.pending.is_empty();
        self.input = baggage.pending;
        self.parser = Parser::new();
        self.readable = true;
        if let Some(job) = baggage.job {
            self.state = State::Reading;
            self.retry = Some(Retry::of_job(job));
        }
    }

    /// Lets a waiting request try again.
    pub(super) fn unpark(&mut self, retry: Retry) {
        if self.state == State::Parked {
            self.state = State::Reading;
            self.unparsed = true;
            self.retry = Some(retry);
        }
    }

    /// True when its request is to be tried again.
    pub(super) fn retries(&self) -> bool {
        self.retry.is_some()
    }

    /// Acts on a deadline: true when something is left to write, false when it is to be closed.
    pub(super) fn time_out(&mut self, service: &mut Service, clock: &Clock) -> bool {
        if self.state == State::Parked {
            // The service has its own patience with what the request waits for.
            self.deadline = clock.now + WRITE_TIMEOUT;
            return true;
        }
        let late = self.state == State::Reading
            && (self.begun || !self.input.is_empty())
            && !self.wire.is_handshaking();
        if late {
            self.refuse(HttpError::Timeout, service, clock);
        }
        late
    }

    /// Does everything that can be done without waiting.
    pub(super) fn advance(&mut self, turn: &mut Turn<'_>) -> Fate {
        let mut budget = BUDGET;
        loop {
            let next = match self.state {
                State::Greeting => self.greet(turn),
                State::Broken => Some(Fate::Close),
                State::Parked => Some(Fate::Keep),
                State::Lingering => Some(self.linger(turn)),
                State::Writing { then_close } => self.flush(then_close, turn),
                State::Reading if budget == 0 => Some(Fate::Again),
                State::Reading => self.read_and_serve(turn, &mut budget),
            };
            if let Some(fate) = next {
                return fate;
            }
        }
    }

    /// Learns from a balancer who the client is. `None`: look at the state again.
    fn greet(&mut self, turn: &mut Turn<'_>) -> Option<Fate> {
        let rules = turn.settings.proxy_protocol.as_ref().filter(|_| self.readable);
        let Some(rules) = rules else { return Some(Fate::Keep) };
        let found = match self.wire.stream().peek(turn.scratch) {
            Ok(0) => return Some(Fate::Close),
            Ok(length) => proxy::find(&turn.scratch[..length], rules.versions),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Preamble::Need),
            Err(error) if error.kind() == ErrorKind::Interrupted => return None,
            Err(_) => return Some(Fate::Close),
        };
        let error = match found {
            Ok(Preamble::Absent) => {
                self.state = State::Reading;
                return None;
            }
            // The next byte makes a new event.
            Ok(Preamble::Need) => {
                self.readable = false;
                return Some(if self.read_closed { Fate::Close } else { Fate::Keep });
            }
            // On a Unix socket whoever may connect is trusted, as in gunicorn.
            Ok(Preamble::Present { length, client })
                if self.peer.is_none_or(|peer| rules.trusted.trusts(Some(peer.ip()))) =>
            {
                let taken = self.wire.stream().read(&mut turn.scratch[..length]);
                if !matches!(taken, Ok(taken) if taken == length) {
                    return Some(Fate::Close);
                }
                self.peer = client.or(self.peer);
                self.state = State::Reading;
                return None;
            }
            Ok(Preamble::Present { .. }) => HttpError::Untrusted,
            Err(proxy::Malformed) => HttpError::BadProxyLine,
        };
        log::warn!("{error} ({})", Peer(self.peer));
        // Whoever expects a handshake would not understand the answer.
        if self.wire.is_handshaking() {
            return Some(Fate::Close);
        }
        self.refuse(error, turn.service, turn.clock);
        None
    }

    /// Serves bytes at hand, or reads once and serves. `None`: look at the state again.
    fn read_and_serve(&mut self, turn: &mut Turn<'_>, budget: &mut u32) -> Option<Fate> {
        if std::mem::take(&mut self.unparsed) {
            let input = std::mem::take(&mut self.input);
            self.serve_owned(input, turn, budget);
        } else if !self.readable {
            return Some(self.wait(turn));
        } else {
            match self.wire.read(turn.scratch) {
                // What is complete was answered; a request cut off in the middle is nobody's any more.
                Ok(Got { length: 0, .. }) => return Some(Fate::Close),
                Ok(got) => self.take_in(got, turn, budget),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.readable = false,
                    ErrorKind::Interrupted => *budget = budget.saturating_sub(1),
                    ErrorKind::InvalidData => {
                        log::debug!("TLS: {error} ({})", Peer(self.peer));
                        return Some(Fate::Close);
                    }
                    _ => return Some(Fate::Close),
                },
            }
            // Words of a handshake that had no room.
            if self.state == State::Reading && self.wire.has_unsent() {
                self.state = State::Writing { then_close: false };
            }
        }
        if self.state == State::Parked {
            // What a handshake has left to say does not wait for the answer.
            let _ = self.wire.flush();
            return Some(Fate::Parked);
        }
        None
    }

    /// Serves bytes that were just read into the scratch buffer.
    fn take_in(&mut self, got: Got, turn: &mut Turn<'_>, budget: &mut u32) {
        *budget = budget.saturating_sub(1);
        // What has emptied the socket hears of the next byte by a new event.
        self.readable = got.more || self.read_closed;
        let length = got.length;
        if self.input.is_empty() {
            let scratch = std::mem::take(turn.scratch);
            let used = self.serve(&scratch[..length], turn, budget);
            self.input.extend_from_slice(&scratch[used..length]);
            *turn.scratch = scratch;
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(&turn.scratch[..length]);
            self.serve_owned(input, turn, budget);
        }
    }

    /// As [`serve`](Self::serve), keeping what is left. An idle connection keeps no buffer.
    fn serve_owned(&mut self, mut input: Vec<u8>, turn: &mut Turn<'_>, budget: &mut u32) {
        let used = self.serve(&input, turn, budget);
        if used < input.len() {
            input.drain(..used);
            self.input = input;
        }
    }

    /// Answers the requests in `buffer`; returns how many bytes were used up.
    fn serve(&mut self, buffer: &[u8], turn: &mut Turn<'_>, budget: &mut u32) -> usize {
        let mut used = 0;
        loop {
            let rest = &buffer[used..];
            if rest.is_empty() || self.state != State::Reading || *budget == 0 {
                self.unparsed = !rest.is_empty();
                return used;
            }
            let parsed = self.parser.advance(rest, &turn.settings.limits);
            if self.parser.in_body() && !std::mem::replace(&mut self.counted, true) {
                turn.service.count_request();
            }
            match parsed {
                Ok(Parsed::Need) => return used,
                Ok(Parsed::NeedContinue) => {
                    if !std::mem::replace(&mut self.continued, true) {
                        self.send(&[respond::CONTINUE], false, turn.clock);
                    }
                }
                Ok(Parsed::Request { end }) => {
                    *budget -= 1;
                    match self.answer(&rest[..end], turn) {
                        Step::Reply => used += end,
                        _ => self.state = State::Parked,
                    }
                }
                Err(error) => {
                    self.refuse(error, turn.service, turn.clock);
                    return buffer.len();
                }
            }
        }
    }

    /// Answers one request, of which `bytes` are all bytes.
    fn answer(&mut self, bytes: &[u8], turn: &mut Turn<'_>) -> Step {
        let Some(head) = self.parser.head() else { return Step::Reply };
        let closing = turn.closing || self.wire.is_worn();
        let incoming = Incoming { head, bytes, peer: self.peer, retry: self.retry.take(), closing };
        let step = turn.service.answer(&incoming, turn.clock);
        if step == Step::Reply {
            let close = closing || !head.keep_alive;
            self.parser = Parser::new();
            self.continued = false;
            self.counted = false;
            self.begun = false;
            self.requests = self.requests.saturating_add(1);
            // A client that keeps the server busy is not idle, and not late with anything.
            self.deadline = turn.clock.now + WRITE_TIMEOUT;
            let (head, body) = turn.service.reply();
            self.send(&[head, body], close, turn.clock);
        }
        step
    }

    /// Answers something that is not a request, and ends the connection.
    fn refuse(&mut self, error: HttpError, service: &mut Service, clock: &Clock) {
        log::debug!("{error}");
        service.refuse(error, clock);
        let (head, body) = service.reply();
        self.parser = Parser::new();
        self.linger = true;
        self.send(&[head, body], true, clock);
    }

    /// Writes as much as the socket takes; the rest waits.
    fn send(&mut self, parts: &[&[u8]], close: bool, clock: &Clock) {
        if self.wire.send(parts).is_err() {
            self.state = State::Broken;
        } else if close || self.wire.has_unsent() {
            self.state = State::Writing { then_close: close };
            self.deadline = clock.now + WRITE_TIMEOUT;
        }
    }

    /// Writes what is left of the answers. `None`: all written, look at the state again.
    fn flush(&mut self, then_close: bool, turn: &mut Turn<'_>) -> Option<Fate> {
        let unsent = self.wire.unsent();
        match self.wire.flush() {
            Err(_) => return Some(Fate::Close),
            Ok(true) => {}
            Ok(false) => {
                if self.wire.unsent() < unsent {
                    self.deadline = turn.clock.now + WRITE_TIMEOUT;
                }
                if !std::mem::replace(&mut self.watches_write, true) {
                    let both = Interest::READABLE | Interest::WRITABLE;
                    if self.wire.reregister(turn.registry, turn.token, both).is_err() {
                        return Some(Fate::Close);
                    }
                }
                return Some(Fate::Keep);
            }
        }
        if !then_close {
            self.state = State::Reading;
            return None;
        }
        // Closing a socket with unread bytes resets it, and the client may lose the answer.
        if !self.linger && !self.readable && self.input.is_empty() {
            return Some(Fate::Close);
        }
        self.wire.farewell();
        self.wire.stream().shutdown_write();
        self.state = State::Lingering;
        self.deadline = turn.clock.now + LINGER;
        None
    }

    /// Throws away what the client still sends, until it closes.
    fn linger(&mut self, turn: &mut Turn<'_>) -> Fate {
        self.input = Vec::new();
        for _ in 0..BUDGET {
            match self.wire.stream().read(turn.scratch) {
                Ok(0) => return Fate::Close,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Fate::Keep,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Fate::Close,
            }
        }
        Fate::Again
    }

    /// Says goodbye to a client that has its answers.
    pub(super) fn farewell(&mut self) {
        if matches!(self.state, State::Reading | State::Writing { .. }) {
            self.wire.farewell();
        }
    }

    /// Sets the deadline of what is being waited for.
    fn wait(&mut self, turn: &Turn<'_>) -> Fate {
        let settings = turn.settings;
        if self.input.is_empty() && !self.wire.has_partial() {
            self.begun = false;
            if self.requests > 0 {
                self.deadline = turn.clock.now + settings.keep_alive;
            }
        } else if self.parser.in_body() {
            self.begun = true;
            self.deadline = turn.clock.now + settings.body_timeout;
        } else if !std::mem::replace(&mut self.begun, true) {
            // A head has one deadline, however slowly its bytes come.
            self.deadline = turn.clock.now + settings.header_timeout;
        }
        Fate::Keep
    }
}
