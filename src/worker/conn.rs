//! One client connection: what it waits for, and what it does when that comes.
//!
//! ```text
//!            +--------------- answered, keep-alive ---------------+
//!            v                                                    |
//! Reading --request--> (answer) --all written--------------------+--> closed
//!    ^                    |  |                                    |
//!    |                    |  +--socket full--> Writing -----------+
//!    +----ready again--- Parked
//!                 close with unread bytes: Lingering --> closed
//! ```

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::service::{Incoming, Retry, Service};
use super::Clock;
use crate::api::Step;
use crate::config::Settings;
use crate::http::{respond, HttpError, Parsed, Parser};
use crate::ipc::handover::{Baggage, MAX_PENDING};
use crate::net::Stream;

/// Requests answered, and reads done, before other connections get their turn.
const BUDGET: u32 = 32;
/// How long a client may take to read the last answer of a connection that is being closed.
const LINGER: Duration = Duration::from_secs(2);
/// How long a client may leave an answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);
/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
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
    pub(super) stream: Stream,
    peer: Option<SocketAddr>,
    /// When the worker has to act without an event.
    pub(super) deadline: Instant,
    state: State,
    parser: Parser,
    /// Bytes read that no answer has used up.
    input: Vec<u8>,
    /// `input` holds bytes that the parser has not seen.
    unparsed: bool,
    /// Bytes of answers the socket did not take.
    output: Vec<u8>,
    sent: usize,
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
    pub(super) fn new(stream: Stream, peer: Option<SocketAddr>, deadline: Instant) -> Self {
        Self {
            stream,
            peer,
            deadline,
            state: State::Reading,
            parser: Parser::new(),
            input: Vec::new(),
            unparsed: false,
            output: Vec::new(),
            sent: 0,
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

    /// A connection that another worker handed over.
    pub(super) fn adopted(stream: Stream, baggage: Baggage, now: Instant) -> Self {
        let peer = stream.peer();
        Self {
            begun: baggage.begun,
            unparsed: !baggage.pending.is_empty(),
            input: baggage.pending,
            continued: baggage.continued,
            requests: baggage.requests,
            retry: baggage.job.map(Retry::of_job),
            ..Self::new(stream, peer, now + baggage.time_left)
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.watches_write = false;
        self.stream.register(registry, token, Interest::READABLE)
    }

    pub(super) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.stream.deregister(registry)
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
        self.state == State::Reading && self.retry.is_none() && self.input.len() <= MAX_PENDING
    }

    /// True when its request waits for something and it could still be handed over.
    pub(super) fn is_parked_portably(&self) -> bool {
        self.state == State::Parked && self.input.len() <= MAX_PENDING
    }

    /// True while nothing of a request has arrived.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Reading && self.input.is_empty()
    }

    /// What travels with it. It keeps nothing that matters.
    pub(super) fn baggage(&mut self, now: Instant) -> Baggage {
        Baggage {
            begun: self.begun,
            time_left: self.deadline.saturating_duration_since(now),
            continued: self.continued,
            requests: self.requests,
            job: None,
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
        let late = self.state == State::Reading && (self.begun || !self.input.is_empty());
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

    /// Serves bytes at hand, or reads once and serves. `None`: look at the state again.
    fn read_and_serve(&mut self, turn: &mut Turn<'_>, budget: &mut u32) -> Option<Fate> {
        if std::mem::take(&mut self.unparsed) {
            let input = std::mem::take(&mut self.input);
            self.serve_owned(input, turn, budget);
        } else if !self.readable {
            return Some(self.wait(turn));
        } else {
            match (&self.stream).read(turn.scratch) {
                // What is complete was answered; a request cut off in the middle is nobody's any more.
                Ok(0) => return Some(Fate::Close),
                Ok(length) => self.take_in(length, turn, budget),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.readable = false,
                    ErrorKind::Interrupted => {}
                    _ => return Some(Fate::Close),
                },
            }
        }
        (self.state == State::Parked).then_some(Fate::Parked)
    }

    /// Serves `length` bytes that were just read into the scratch buffer.
    fn take_in(&mut self, length: usize, turn: &mut Turn<'_>, budget: &mut u32) {
        *budget = budget.saturating_sub(1);
        // A short read has emptied the socket; the next byte makes a new event.
        self.readable = length == turn.scratch.len() || self.read_closed;
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
        let incoming =
            Incoming { head, bytes, peer: self.peer, retry: self.retry.take(), closing: turn.closing };
        let step = turn.service.answer(&incoming, turn.clock);
        if step == Step::Reply {
            let close = turn.closing || !head.keep_alive;
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

    /// Writes as much as the socket takes and keeps the rest.
    fn send(&mut self, parts: &[&[u8]], close: bool, clock: &Clock) {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut sent = 0;
        if self.output.is_empty() {
            let slices = [
                IoSlice::new(parts.first().copied().unwrap_or_default()),
                IoSlice::new(parts.get(1).copied().unwrap_or_default()),
            ];
            sent = match (&self.stream).write_vectored(&slices) {
                Ok(sent) => sent,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                Err(_) => {
                    self.state = State::Broken;
                    return;
                }
            };
        }
        if sent < total {
            let mut skip = sent;
            for part in parts {
                let from = skip.min(part.len());
                skip -= from;
                self.output.extend_from_slice(&part[from..]);
            }
        }
        if close || !self.output.is_empty() {
            self.state = State::Writing { then_close: close };
            self.deadline = clock.now + WRITE_TIMEOUT;
        }
    }

    /// Writes what is left of the answers. `None`: all written, look at the state again.
    fn flush(&mut self, then_close: bool, turn: &mut Turn<'_>) -> Option<Fate> {
        while self.sent < self.output.len() {
            match (&self.stream).write(&self.output[self.sent..]) {
                Ok(sent) => {
                    self.sent += sent;
                    self.deadline = turn.clock.now + WRITE_TIMEOUT;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !std::mem::replace(&mut self.watches_write, true) {
                        let both = Interest::READABLE | Interest::WRITABLE;
                        if self.stream.reregister(turn.registry, turn.token, both).is_err() {
                            return Some(Fate::Close);
                        }
                    }
                    return Some(Fate::Keep);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Some(Fate::Close),
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        if !then_close {
            self.state = State::Reading;
            return None;
        }
        // Closing a socket with unread bytes resets it, and the client may lose the answer.
        if !self.linger && !self.readable && self.input.is_empty() {
            return Some(Fate::Close);
        }
        self.stream.shutdown_write();
        self.state = State::Lingering;
        self.deadline = turn.clock.now + LINGER;
        None
    }

    /// Throws away what the client still sends, until it closes.
    fn linger(&mut self, turn: &mut Turn<'_>) -> Fate {
        self.input = Vec::new();
        for _ in 0..BUDGET {
            match (&self.stream).read(turn.scratch) {
                Ok(0) => return Fate::Close,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Fate::Keep,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Fate::Close,
            }
        }
        Fate::Again
    }

    /// Sets the deadline of what is being waited for.
    fn wait(&mut self, turn: &Turn<'_>) -> Fate {
        let settings = turn.settings;
        if self.input.is_empty() {
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
