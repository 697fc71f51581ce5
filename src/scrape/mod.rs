//! Who reads the metric files? One process that answers scrapes, with a loop of its own.
//!
//! Nothing a client does or leaves undone keeps another one waiting: everything is non-blocking and has a
//! deadline. What must not happen here: writing to the files.

mod reply;
mod status;

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::Socket;

use crate::exit;
use crate::http::{Limits, Parsed, Parser};
use crate::ipc::channel::{Channel, Incoming};
use crate::ipc::scoreboard::Scoreboard;
use crate::os::signals::Pipe;
use reply::Replier;

/// What the process inherits from the master.
#[derive(Debug)]
pub struct Boot<'m> {
    /// Listens on the metrics port.
    pub listener: Socket,
    /// The files.
    pub directory: &'m Path,
    /// What the workers do.
    pub board: &'m Scoreboard,
    /// Hangs up when the master dies.
    pub channel: Channel,
    /// This process's signals.
    pub signals: Pipe,
}

const CHANNEL: Token = Token(0);
const SIGNALS: Token = Token(1);
const LISTENER: Token = Token(2);
const CLIENTS: usize = 16;

/// Most clients at one time; the one that has been silent for longest makes room.
const MAX_CLIENTS: usize = 256;
/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(30);
/// Longest request; scrapes have no body.
const MAX_REQUEST: usize = 64 << 10;
/// Answers to one client before the others have their turn.
const BUDGET: u32 = 4;

/// A client.
struct Client {
    stream: TcpStream,
    parser: Parser,
    /// What has come and is not answered.
    input: Vec<u8>,
    /// What is answered and has not gone.
    output: Vec<u8>,
    written: usize,
    closing: bool,
    heard: Instant,
    /// When the request that is coming in began.
    begun: Option<Instant>,
}

/// Answers scrapes until the master is gone; returns the exit code.
pub fn run(boot: Boot<'_>) -> i32 {
    match Server::new(boot).and_then(Server::run) {
        Ok(()) => exit::OK,
        Err(error) => {
            log::error!("Exception in metrics process: {error}");
            exit::CRASHED
        }
    }
}

struct Server<'b> {
    boot: Boot<'b>,
    poll: Poll,
    listener: TcpListener,
    clients: Slab<Client>,
    /// Clients that have more to do than one turn allows.
    posted: Vec<usize>,
    replier: Replier<'b>,
}

/// What is to be done with a client.
enum Fate {
    Keep,
    Again,
    Close,
}

impl<'b> Server<'b> {
    fn new(boot: Boot<'b>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(boot.listener.try_clone()?.into());
        let registry = poll.registry();
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        registry.register(&mut SourceFd(&boot.channel.as_fd().as_raw_fd()), CHANNEL, Interest::READABLE)?;
        registry.register(&mut SourceFd(&boot.signals.as_raw_fd()), SIGNALS, Interest::READABLE)?;
        let replier = Replier::new(boot.directory, boot.board);
        Ok(Self { boot, poll, listener, clients: Slab::new(), posted: Vec::new(), replier })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(64);
        loop {
            let wait = if self.posted.is_empty() { Duration::from_secs(5) } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    CHANNEL
                        if matches!(
                            self.boot.channel.from_master(&mut [0; 8]),
                            Ok(Incoming::Closed) | Err(_)
                        ) =>
                    {
                        return Ok(());
                    }
                    CHANNEL => {}
                    // Signals to the whole group reach this process, too: the master ends it when it is time.
                    SIGNALS => drop(self.boot.signals.drain()),
                    LISTENER => self.accept(),
                    Token(n) => self.drive(n - CLIENTS),
                }
            }
            for index in std::mem::take(&mut self.posted) {
                self.drive(index);
            }
            self.sweep();
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if self.clients.len() >= MAX_CLIENTS {
                        self.make_room();
                    }
                    self.add(stream);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Out of descriptors or memory: the queue waits for the next event.
                Err(_) => return,
            }
        }
    }

    fn add(&mut self, mut stream: TcpStream) {
        let entry = self.clients.vacant_entry();
        let token = Token(CLIENTS + entry.key());
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut stream, token, interest).is_ok() {
            entry.insert(Client {
                stream,
                parser: Parser::new(),
                input: Vec::new(),
                output: Vec::new(),
                written: 0,
                closing: false,
                heard: Instant::now(),
                begun: None,
            });
        }
    }

    fn drive(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        match client.advance(&mut self.replier) {
            Fate::Keep => {}
            Fate::Again => self.posted.push(index),
            Fate::Close => drop(self.clients.remove(index)),
        }
    }

    /// Ends clients that have been silent for too long.
    fn sweep(&mut self) {
        self.clients.retain(|_, client| client.heard.elapsed() < IDLE);
    }

    fn make_room(&mut self) {
        let longest = self.clients.iter().min_by_key(|(_, client)| client.heard).map(|(index, _)| index);
        if let Some(index) = longest {
            self.clients.remove(index);
        }
    }
}

impl Client {
    /// Does what can be done in one turn.
    fn advance(&mut self, replier: &mut Replier<'_>) -> Fate {
        let mut chunk = [0; 4096];
        let mut answers = 0;
        loop {
            match self.flush() {
                Ok(true) if self.closing => return Fate::Close,
                Ok(true) => {}
                Ok(false) => return Fate::Keep,
                Err(_) => return Fate::Close,
            }
            if answers == BUDGET {
                return Fate::Again;
            }
            // One request at a time: the next one is looked at when the answer has gone.
            if self.answer(replier) {
                answers += 1;
                continue;
            }
            // A request that does not end is none; one that comes byte by byte has a deadline.
            let late = self.begun.is_some_and(|begun| begun.elapsed() > IDLE);
            if self.input.len() > MAX_REQUEST || late {
                return Fate::Close;
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Fate::Close,
                Ok(length) => {
                    self.heard = Instant::now();
                    self.begun.get_or_insert(self.heard);
                    self.input.extend_from_slice(&chunk[..length]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Fate::Keep,
                Err(_) => return Fate::Close,
            }
        }
    }

    /// Answers the request at the front of the input, if it is complete.
    fn answer(&mut self, replier: &mut Replier<'_>) -> bool {
        if self.input.is_empty() {
            return false;
        }
        let limits = Limits { body: MAX_REQUEST as u64, ..Limits::default() };
        match self.parser.advance(&self.input, &limits) {
            Ok(Parsed::Need | Parsed::NeedContinue) => false,
            Ok(Parsed::Request { end }) => {
                if let Some(head) = self.parser.head() {
                    self.closing = !head.keep_alive;
                    replier.answer(head, &self.input, &mut self.output);
                }
                self.input.drain(..end);
                self.begun = (!self.input.is_empty()).then(Instant::now);
                self.parser = Parser::new();
                true
            }
            Err(error) => {
                let (status, text) = error.answer();
                self.closing = true;
                self.input.clear();
                reply::refuse(status, text, &mut self.output);
                true
            }
        }
    }

    /// Writes; true when nothing is left to be written.
    fn flush(&mut self) -> io::Result<bool> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(length) => {
                    self.heard = Instant::now();
                    self.written += length;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(true)
    }
}
