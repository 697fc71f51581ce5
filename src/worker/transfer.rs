//! Connections outlive workers: sending them to another worker, and taking them over.
//!
//! Order on the sending side: out of the poll, send, keep until acknowledged, close. Closing first would
//! leave an entry in the poll that nobody can delete; not waiting would lose the clients of a receiver that
//! dies.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::Token;

use super::conn::Conn;
use super::{Worker, INHERITANCES, OUTGOING};
use crate::ipc::handover::{self, Ack, Arrival, Baggage};
use crate::net::Stream;

/// Connections that travel together.
type Packet = Vec<(Conn, Baggage)>;

/// Most packets under way: their acknowledgements fit into the socket's queue.
const MAX_UNDER_WAY: usize = 64;

/// The way to the worker that takes over.
#[derive(Debug)]
pub(super) struct Outgoing {
    socket: OwnedFd,
    /// A packet that the other worker's queue had no room for. Its connections are out of the poll.
    unsent: Option<Packet>,
    /// Packets that were sent and not acknowledged.
    unacknowledged: VecDeque<Packet>,
}

impl Outgoing {
    /// True when nothing is on its way.
    pub(super) fn is_done(&self) -> bool {
        self.unsent.is_none() && self.unacknowledged.is_empty()
    }
}

/// The way from a worker that retires.
#[derive(Debug)]
pub(super) struct Inheritance {
    socket: OwnedFd,
}

impl Worker<'_> {
    /// Begins to send everything to the worker at the other end of `socket`.
    pub(super) fn start_handover(&mut self, socket: OwnedFd) {
        if !self.life.serves() || self.watch_packets(socket.as_raw_fd(), OUTGOING).is_err() {
            return;
        }
        self.outgoing = Some(Outgoing { socket, unsent: None, unacknowledged: VecDeque::new() });
        self.begin_handing_over();
    }

    /// Takes acknowledgements, and sends what can be sent now; the rest goes after its answer.
    pub(super) fn continue_handover(&mut self) {
        loop {
            let Some(outgoing) = &mut self.outgoing else { return };
            loop {
                match handover::acknowledged(&outgoing.socket) {
                    Ack::Taken => drop(outgoing.unacknowledged.pop_front()),
                    Ack::Empty => break,
                    Ack::Gone => return self.take_everything_back(),
                }
            }
            if outgoing.unacknowledged.len() >= MAX_UNDER_WAY {
                return;
            }
            let mut packet = outgoing.unsent.take().unwrap_or_default();
            if packet.is_empty() && self.life.is_handing_over() {
                packet = self.next_packet();
            }
            if packet.is_empty() {
                return;
            }
            let Some(outgoing) = &mut self.outgoing else { return };
            let list: Vec<_> = packet.iter().map(|(conn, bags)| (conn.wire.as_raw_fd(), bags)).collect();
            match handover::send(&outgoing.socket, &list) {
                Ok(()) => outgoing.unacknowledged.push_back(packet),
                Err(error) => {
                    outgoing.unsent = Some(packet);
                    // Gone: first what it has acknowledged, then its end. Full: an event tells when not.
                    if !handover::is_gone(&error) {
                        return;
                    }
                }
            }
        }
    }

    /// Takes the next connections that are free to go out of the poll.
    fn next_packet(&mut self) -> Vec<(Conn, Baggage)> {
        let now = self.clock.now;
        let mut chosen: Vec<(usize, Baggage)> = Vec::new();
        for (index, conn) in &mut self.conns {
            // Whoever waits for a job can as well wait elsewhere.
            let job = self.service.awaited_job(index).filter(|_| conn.is_parked_portably());
            if !conn.is_portable() && job.is_none() {
                continue;
            }
            chosen.push((index, Baggage { job, ..conn.baggage(now) }));
            if chosen.len() == handover::MAX_BATCH {
                break;
            }
        }
        let fits = handover::batch(chosen.iter().map(|(_, baggage)| baggage));
        for (index, baggage) in chosen.drain(fits..) {
            if let Some(conn) = self.conns.get_mut(index) {
                conn.take_back(baggage);
                if conn.retries() {
                    self.service.forget(index);
                    self.post(index);
                }
            }
        }
        let mut packet = Vec::with_capacity(fits);
        for (index, baggage) in chosen {
            let mut conn = self.conns.remove(index);
            let _ = conn.deregister(self.poll.registry());
            self.service.forget(index);
            packet.push((conn, baggage));
        }
        self.slot.set_connections(self.conns.len());
        packet
    }

    /// A connection that could not be sent is served here again.
    fn return_connection(&mut self, mut conn: Conn, baggage: Baggage) {
        conn.take_back(baggage);
        if let Some(index) = self.add(conn) {
            self.post(index);
        }
    }

    /// The other worker is gone: whatever it did not acknowledge is ours, and we serve on.
    fn take_everything_back(&mut self) {
        let Some(outgoing) = self.outgoing.take() else { return };
        let _ = self.poll.registry().deregister(&mut SourceFd(&outgoing.socket.as_raw_fd()));
        for (conn, baggage) in outgoing.unacknowledged.into_iter().chain(outgoing.unsent).flatten() {
            self.return_connection(conn, baggage);
        }
        if self.life.is_handing_over() {
            self.serve_on();
        }
    }

    /// Begins to take connections over from the worker at the other end of `socket`.
    pub(super) fn expect_connections(&mut self, socket: OwnedFd) {
        let entry = self.inheritances.vacant_entry();
        let token = Token(INHERITANCES + entry.key());
        let fd = socket.as_raw_fd();
        entry.insert(Inheritance { socket });
        if let Err(error) = self.watch_packets(fd, token) {
            log::error!("cannot take connections over: {error}");
            self.inheritances.remove(token.0 - INHERITANCES);
        }
    }

    /// Takes over what has arrived.
    pub(super) fn adopt(&mut self, index: usize) {
        loop {
            let Some(inheritance) = self.inheritances.get(index) else { return };
            match handover::receive(&inheritance.socket, &mut self.scratch) {
                Ok(Arrival::Connections(arrived)) => {
                    for (fd, baggage) in arrived {
                        self.adopt_one(fd, baggage);
                    }
                }
                Ok(Arrival::Empty) => return,
                end => {
                    if let Err(error) = end {
                        log::error!("cannot take connections over: {error}");
                    }
                    let gone = self.inheritances.remove(index);
                    let _ = self.poll.registry().deregister(&mut SourceFd(&gone.socket.as_raw_fd()));
                    return;
                }
            }
        }
    }

    fn adopt_one(&mut self, fd: OwnedFd, baggage: Baggage) {
        let has_bytes = !baggage.pending.is_empty();
        let (tls, now) = (self.tls.as_ref(), self.clock.now);
        let adopted = Stream::from_fd(fd).and_then(|stream| Conn::adopted(stream, baggage, tls, now));
        match adopted {
            Ok(conn) => {
                let index = self.add(conn);
                self.balance();
                if let Some(index) = index.filter(|_| has_bytes) {
                    self.drive(index);
                }
            }
            Err(error) => log::error!("cannot take a connection over: {error}"),
        }
    }
}
