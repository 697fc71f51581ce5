//! The channel between the master and one worker: small packets, and end-of-file when the other side dies.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::os::fdpass::{self, Received};

/// What a worker tells the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToMaster {
    /// Accepting connections.
    Ready,
    /// Its limit of requests is reached: wants a successor, serves on until then.
    Retiring,
    /// A handover failed: accepting again, still wants a successor.
    ServingOn,
}

/// What the master tells a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// Stop accepting, send all connections through this socket, then exit.
    HandTo(OwnedFd),
    /// Take over the connections that come through this socket.
    Adopt(OwnedFd),
}

const READY: u8 = b'r';
const RETIRING: u8 = b't';
const SERVING_ON: u8 = b's';
const HAND_TO: u8 = b'h';
const ADOPT: u8 = b'a';

/// One end of a channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What receiving found.
#[derive(Debug)]
pub enum Incoming<T> {
    /// A message.
    Message(T),
    /// The other side is gone.
    Closed,
    /// Nothing now.
    Empty,
}

impl Channel {
    /// Both ends: the master's and the worker's.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = fdpass::packet_pair()?;
        Ok((Self(a), Self(b)))
    }

    /// Sends to the master.
    pub fn tell_master(&self, message: ToMaster) -> io::Result<()> {
        let byte = match message {
            ToMaster::Ready => READY,
            ToMaster::Retiring => RETIRING,
            ToMaster::ServingOn => SERVING_ON,
        };
        fdpass::send(self.0.as_fd(), &[byte], &[])
    }

    /// Sends to a worker; the descriptor is copied to it; this side's copy stays with `message`.
    pub fn tell_worker(&self, message: &ToWorker) -> io::Result<()> {
        let (byte, fd) = match message {
            ToWorker::HandTo(fd) => (HAND_TO, fd),
            ToWorker::Adopt(fd) => (ADOPT, fd),
        };
        fdpass::send(self.0.as_fd(), &[byte], &[fd.as_raw_fd()])
    }

    /// Receives what a worker sent.
    pub fn from_worker(&self) -> io::Result<Incoming<ToMaster>> {
        let mut byte = [0; 8];
        loop {
            return Ok(match fdpass::receive(self.0.as_fd(), &mut byte)? {
                Received::Packet(..) if byte[0] == READY => Incoming::Message(ToMaster::Ready),
                Received::Packet(..) if byte[0] == RETIRING => Incoming::Message(ToMaster::Retiring),
                Received::Packet(..) if byte[0] == SERVING_ON => Incoming::Message(ToMaster::ServingOn),
                Received::Packet(..) => continue,
                Received::Eof => Incoming::Closed,
                Received::Empty => Incoming::Empty,
            });
        }
    }

    /// Receives what the master sent.
    pub fn from_master(&self) -> io::Result<Incoming<ToWorker>> {
        let mut byte = [0; 8];
        loop {
            return Ok(match fdpass::receive(self.0.as_fd(), &mut byte)? {
                Received::Packet(_, fds) => match (byte[0], fds.into_iter().next()) {
                    (HAND_TO, Some(fd)) => Incoming::Message(ToWorker::HandTo(fd)),
                    (ADOPT, Some(fd)) => Incoming::Message(ToWorker::Adopt(fd)),
                    _ => continue,
                },
                Received::Eof => Incoming::Closed,
                Received::Empty => Incoming::Empty,
            });
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
