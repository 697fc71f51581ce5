//! When does each step run? One loop per worker process: accept, read, answer, write, hand over.
//!
//! ```text
//! Serving --limit--> Retiring --successor ready--> HandingOver --all handed--> exit 0
//!    |                   |                              |
//!    +------TERM---------+-------------TERM-------------+--> Draining --empty or late--> exit 0
//!    +------QUIT, INT----+------------------------------+--> exit 0 at once
//! ```
//!
//! What must not happen here: deciding what an answer says (that is `api`), or which processes exist (that
//! is `master`).

mod accept;
mod conn;
mod lifecycle;
mod refresh;
mod service;
mod transfer;
mod writing;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use crate::config::{Settings, StoreConfig};
use crate::ipc::channel::{Channel, ToMaster};
use crate::ipc::scoreboard::{Scoreboard, Slot, SlotState};
use crate::jobs::Site;
use crate::metrics::meters::Meters;
use crate::metrics::statsd::Statsd;
use crate::net::{Listener, Stream};
use crate::os::process::wall_clock;
use crate::os::signals::Pipe;
use crate::os::title;
use crate::registry::file::Stamp;
use crate::registry::{RegistryFile, Snapshot};
use crate::tls::server::Wire;

use accept::Acceptor;
use conn::{Conn, Fate};
use lifecycle::Life;
pub(crate) use service::open_store;
use service::Service;
use transfer::{Inheritance, Outgoing};

/// What a worker inherits from the master.
#[derive(Debug)]
pub struct Boot<'m> {
    /// Settings.
    pub settings: &'m Settings,
    /// The repository.
    pub store: &'m StoreConfig,
    /// The registry file.
    pub registry: &'m RegistryFile,
    /// Its content as the master knows it, and the stamp that belongs to it.
    pub snapshot: Arc<Snapshot>,
    /// Stamp of `snapshot`.
    pub stamp: Option<Stamp>,
    /// Sockets to accept on: this process's copies, to close when it drains.
    pub listeners: Vec<Listener>,
    /// Everybody's words.
    pub board: &'m Scoreboard,
    /// This worker's slot.
    pub slot: usize,
    /// The way to the master.
    pub channel: Channel,
    /// This process's signals.
    pub signals: Pipe,
    /// Requests after which it retires; `None` = never.
    pub limit: Option<u64>,
    /// The buffer to read into, [`SCRATCH`] bytes that the master never touches: clearing one after the fork
    /// would cost a worker a page fault per page.
    pub scratch: Vec<u8>,
    /// Where jobs and the writing thread work.
    pub site: &'m Site,
    /// How the store is reached, if that is encrypted.
    pub store_tls: Option<Arc<rustls::ClientConfig>>,
    /// How clients' connections are encrypted, if they are.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Where its figures go, if anywhere.
    pub statsd: Option<Statsd>,
    /// What it counts, if anything is counted.
    pub meters: Option<Meters>,
    /// Leave out the lines of a normal life: too many workers come and go.
    pub quiet: bool,
}

/// The time of a turn, read once.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// For deadlines.
    pub now: Instant,
    /// For dates.
    pub wall: Duration,
}

impl Clock {
    fn read() -> Self {
        Self { now: Instant::now(), wall: wall_clock() }
    }
}

const CHANNEL: Token = Token(0);
const SIGNALS: Token = Token(1);
const WAKER: Token = Token(2);
const OUTGOING: Token = Token(3);
const LISTENERS: usize = 16;
const INHERITANCES: usize = 256;
const STORES: usize = 1 << 19;
const CONNS: usize = 1 << 20;

/// How often deadlines of connections are looked at.
const SWEEP: Duration = Duration::from_millis(500);
/// Bytes read at once.
pub const SCRATCH: usize = 64 << 10;

/// A worker process.
struct Worker<'m> {
    poll: Poll,
    board: &'m Scoreboard,
    slot: &'m Slot,
    settings: &'m Settings,
    channel: Channel,
    signals: Pipe,
    acceptor: Acceptor,
    conns: Slab<Conn>,
    /// Connections that have more to do than one turn allows.
    posted: Vec<usize>,
    service: Service,
    life: Life,
    tls: Option<Arc<rustls::ServerConfig>>,
    outgoing: Option<Outgoing>,
    inheritances: Slab<Inheritance>,
    scratch: Vec<u8>,
    clock: Clock,
    next_sweep: Instant,
    quiet: bool,
}

/// Does once, in the master, what every worker would otherwise do again after its fork: libraries look up
/// what the processor can do on their first use, which costs a worker 55 microseconds.
pub fn warm_up() {
    let request = b"POST /get-online-features HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    let parsed = crate::http::Parser::new().advance(request, &crate::http::Limits::default());
    debug_assert!(parsed.is_ok());
    let _ = memchr::memchr2(b'\r', b'\n', request);
    let mut out = Vec::new();
    crate::text::pyfmt::write_f64(&mut out, 0.5);
    let _ = fastrand::u64(..);
    crate::online::sqlite::warm_up();
}

/// Runs a worker until its end; returns its exit code.
pub fn run(boot: Boot<'_>) -> i32 {
    let quiet = boot.quiet;
    if !quiet {
        log::info!("Booting worker with pid: {}", std::process::id());
    }
    match Worker::new(boot) {
        // Nothing is torn down at the end: that would copy pages shared with the master.
        Ok(worker) => std::mem::ManuallyDrop::new(worker).run(),
        Err(error) => {
            log::error!("Exception in worker process: {error}");
            crate::exit::BOOT_FAILED
        }
    }
}

impl<'m> Worker<'m> {
    fn new(mut boot: Boot<'m>) -> io::Result<Self> {
        let clock = Clock::read();
        let poll = Poll::new()?;
        let registry = poll.registry();
        let channel_fd = std::os::fd::AsFd::as_fd(&boot.channel).as_raw_fd();
        registry.register(&mut SourceFd(&channel_fd), CHANNEL, Interest::READABLE)?;
        registry.register(&mut SourceFd(&boot.signals.as_raw_fd()), SIGNALS, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(registry, WAKER)?);
        let slot = boot.board.slot(boot.slot);
        if !boot.quiet {
            log::info!("Started server process [{}]", std::process::id());
            log::info!("Waiting for application startup.");
        }
        let service = Service::new(&mut boot, waker, &poll, STORES)?;
        let acceptor = Acceptor::new(boot.listeners, boot.settings, &poll)?;
        slot.set_state(SlotState::Serving);
        title::show("worker", SlotState::Serving.name());
        boot.channel.tell_master(&ToMaster::Ready)?;
        if !boot.quiet {
            log::info!("Application startup complete.");
        }
        Ok(Self {
            poll,
            board: boot.board,
            slot,
            settings: boot.settings,
            channel: boot.channel,
            signals: boot.signals,
            acceptor,
            conns: Slab::with_capacity(64),
            posted: Vec::new(),
            service,
            life: Life::new(boot.limit),
            tls: boot.tls,
            outgoing: None,
            inheritances: Slab::new(),
            scratch: boot.scratch,
            next_sweep: clock.now + SWEEP,
            clock,
            quiet: boot.quiet,
        })
    }

    fn run(&mut self) -> i32 {
        let mut events = Events::with_capacity(256);
        loop {
            let wait = self.next_deadline().saturating_duration_since(Instant::now());
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    log::error!("Exception in worker process: poll: {error}");
                    return crate::exit::CRASHED;
                }
                _ => {}
            }
            self.clock = Clock::read();
            for event in &events {
                match event.token() {
                    CHANNEL => self.hear_master(),
                    SIGNALS => self.hear_signals(),
                    WAKER => self.service.registry_loaded(),
                    OUTGOING => self.continue_handover(),
                    Token(n) if n >= CONNS => self.ready(n - CONNS, event.is_read_closed()),
                    Token(n) if n >= STORES => self.service.store_ready(event, &self.clock),
                    Token(n) if n >= INHERITANCES => self.adopt(n - INHERITANCES),
                    Token(n) => self.accept(n - LISTENERS),
                }
            }
            self.drive_posted();
            self.wake_parked();
            self.sweep();
            self.service.end_turn(&self.clock, self.conns.len());
            self.slot.beat();
            self.slot.set_requests(self.service.requests);
            if let Some(code) = self.next_step() {
                return code;
            }
        }
    }

    /// When the next thing happens that no event announces.
    fn next_deadline(&self) -> Instant {
        let now = self.clock.now;
        if !self.posted.is_empty() {
            return now;
        }
        [
            self.acceptor.rearm_at(),
            self.service.retry_at(),
            self.service.refresh_at(),
            self.service.measure_at(),
            (!self.conns.is_empty()).then_some(self.next_sweep),
            self.life.deadline(),
        ]
        .into_iter()
        .flatten()
        .fold(now + self.settings.beat_period(), Instant::min)
    }

    /// Takes one connection from listener `index`, unless it is somebody else's turn.
    fn accept(&mut self, index: usize) {
        if let Some((stream, peer)) = self.acceptor.accept(index, &self.poll, self.clock.now) {
            self.add_new(stream, peer);
            self.balance();
        }
    }

    fn balance(&mut self) {
        self.slot.set_connections(self.conns.len());
        self.acceptor.balance(self.conns.len(), self.board, &self.poll, self.clock.now);
    }

    /// Starts watching a connection that was just accepted.
    fn add_new(&mut self, stream: Stream, peer: Option<SocketAddr>) {
        if let Some(meters) = &mut self.service.meters {
            meters.accepted();
        }
        let wire = match &self.tls {
            None => Ok(Wire::plain(stream)),
            Some(config) => Wire::secure(stream, config),
        };
        match wire {
            Ok(wire) => {
                let conn = Conn::new(wire, peer, self.clock.now + self.settings.header_timeout);
                let proxied = self.settings.proxy_protocol.is_some();
                self.add(if proxied { conn.behind_balancer() } else { conn });
            }
            Err(error) => log::error!("cannot begin a TLS connection: {error}"),
        }
    }

    /// Starts watching a connection; returns its index.
    fn add(&mut self, conn: Conn) -> Option<usize> {
        let entry = self.conns.vacant_entry();
        let index = entry.key();
        let conn = entry.insert(conn);
        if let Err(error) = conn.register(self.poll.registry(), Token(CONNS + index)) {
            log::warn!("cannot watch a connection: {error}");
            self.conns.remove(index);
            return None;
        }
        Some(index)
    }

    /// Takes note of an event and acts on it.
    fn ready(&mut self, index: usize, read_closed: bool) {
        if let Some(conn) = self.conns.get_mut(index) {
            conn.readiness(read_closed);
            self.drive(index);
        }
    }

    /// Lets a connection do what it can.
    fn drive(&mut self, index: usize) {
        let Some(conn) = self.conns.get_mut(index) else { return };
        let mut turn = conn::Turn {
            service: &mut self.service,
            scratch: &mut self.scratch,
            settings: self.settings,
            clock: &self.clock,
            closing: self.life.announces_close(),
            registry: self.poll.registry(),
            token: Token(CONNS + index),
        };
        match conn.advance(&mut turn) {
            Fate::Keep => {}
            Fate::Again => self.post(index),
            Fate::Parked => self.service.park(index),
            Fate::Close => self.close(index),
        }
    }

    fn close(&mut self, index: usize) {
        if let Some(mut conn) = self.conns.try_remove(index) {
            conn.farewell();
            let _ = conn.deregister(self.poll.registry());
            self.service.forget(index);
            self.slot.set_connections(self.conns.len());
            self.acceptor.closed_one(self.conns.len(), &self.poll, self.clock.now);
        }
    }

    /// Lets a connection go on in the next turn, once.
    fn post(&mut self, index: usize) {
        if let Some(conn) = self.conns.get_mut(index) {
            if !std::mem::replace(&mut conn.posted, true) {
                self.posted.push(index);
            }
        }
    }

    fn drive_posted(&mut self) {
        for index in std::mem::take(&mut self.posted) {
            // The index may have a new owner, who was not posted.
            let posted = self.conns.get_mut(index).is_some_and(|conn| std::mem::take(&mut conn.posted));
            if posted {
                self.drive(index);
            }
        }
    }

    /// Gives requests that waited for something another try.
    fn wake_parked(&mut self) {
        let ready = self.service.take_ready(self.clock.now);
        // Before anybody hears that a job was accepted, the master has it.
        for message in self.service.take_messages() {
            match self.channel.tell_master(&message) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.service.tell_later(message),
                Err(error) => self.service.job_refused(&message, &error),
                Ok(()) => {}
            }
        }
        for (index, retry) in ready {
            if let Some(conn) = self.conns.get_mut(index) {
                conn.unpark(retry);
                self.drive(index);
            }
        }
        self.acceptor.rearm(&self.poll, self.clock.now);
    }

    /// Ends connections whose time is up.
    fn sweep(&mut self) {
        if self.clock.now < self.next_sweep {
            return;
        }
        self.next_sweep = self.clock.now + SWEEP;
        let late: Vec<usize> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.deadline <= self.clock.now)
            .map(|(index, _)| index)
            .collect();
        for index in late {
            let Some(conn) = self.conns.get_mut(index) else { continue };
            if conn.time_out(&mut self.service, &self.clock) {
                self.drive(index);
            } else {
                self.close(index);
            }
        }
    }

    /// Registers one end of a packet socket.
    fn watch_packets(&self, fd: std::os::fd::RawFd, token: Token) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE | Interest::WRITABLE)
    }
}

/// What is read at once holds a whole packet of handed-over connections, and a whole message of the master.
const _: () =
    assert!(crate::ipc::handover::MAX_PACKET <= SCRATCH && crate::ipc::channel::MAX_MESSAGE <= SCRATCH);
