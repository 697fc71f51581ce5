//! The channel between the master and one worker: small packets, and end-of-file when the other side dies.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::job::JobId;
use crate::os::fdpass::{self, Received};

/// Largest message; receivers have a buffer of this size.
pub const MAX_MESSAGE: usize = 64 << 10;

/// What a worker tells the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToMaster {
    /// Accepting connections.
    Ready,
    /// Its limit of requests is reached: wants a successor, serves on until then.
    Retiring,
    /// A handover failed: accepting again, still wants a successor.
    ServingOn,
    /// Have a job done, and tell its answer.
    RunJob(JobId, Vec<u8>),
    /// A connection that waits for a job has come from another worker: tell the job's answer here.
    AwaitJob(JobId),
}

/// What the master tells a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// Stop accepting, send all connections through this socket, then exit.
    HandTo(OwnedFd),
    /// Take over the connections that come through this socket.
    Adopt(OwnedFd),
    /// A job has ended: its answer.
    JobDone {
        /// Which one.
        id: JobId,
        /// Status.
        status: u16,
        /// JSON.
        body: Vec<u8>,
    },
}

const READY: u8 = b'r';
const RETIRING: u8 = b't';
const SERVING_ON: u8 = b's';
const HAND_TO: u8 = b'h';
const ADOPT: u8 = b'a';
const RUN_JOB: u8 = b'j';
const AWAIT_JOB: u8 = b'w';
const JOB_DONE: u8 = b'd';

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
    pub fn tell_master(&self, message: &ToMaster) -> io::Result<()> {
        let packet = match message {
            ToMaster::Ready => vec![READY],
            ToMaster::Retiring => vec![RETIRING],
            ToMaster::ServingOn => vec![SERVING_ON],
            ToMaster::RunJob(id, job) => [&[RUN_JOB], &id.to_le_bytes()[..], job].concat(),
            ToMaster::AwaitJob(id) => [&[AWAIT_JOB], &id.to_le_bytes()[..]].concat(),
        };
        self.send(&packet, &[])
    }

    /// Sends to a worker; a descriptor is copied to it; this side's copy stays with `message`.
    pub fn tell_worker(&self, message: &ToWorker) -> io::Result<()> {
        match message {
            ToWorker::HandTo(fd) => self.send(&[HAND_TO], &[fd.as_raw_fd()]),
            ToWorker::Adopt(fd) => self.send(&[ADOPT], &[fd.as_raw_fd()]),
            ToWorker::JobDone { id, status, body } => {
                let head = [&[JOB_DONE], &id.to_le_bytes()[..], &status.to_le_bytes()].concat();
                self.send(&[&head[..], body].concat(), &[])
            }
        }
    }

    /// Sends bytes as they are.
    pub fn send(&self, packet: &[u8], fds: &[std::os::fd::RawFd]) -> io::Result<()> {
        if packet.len() > MAX_MESSAGE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too large"));
        }
        fdpass::send(self.0.as_fd(), packet, fds)
    }

    /// Receives bytes as they are.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Incoming<&'b [u8]>> {
        Ok(match fdpass::receive(self.0.as_fd(), buffer)? {
            Received::Packet(length, _) => Incoming::Message(&buffer[..length]),
            Received::Eof => Incoming::Closed,
            Received::Empty => Incoming::Empty,
        })
    }

    /// Receives what a worker sent; `buffer` holds [`MAX_MESSAGE`] bytes.
    pub fn from_worker(&self, buffer: &mut [u8]) -> io::Result<Incoming<ToMaster>> {
        loop {
            let length = match fdpass::receive(self.0.as_fd(), buffer)? {
                Received::Packet(length, _) => length,
                Received::Eof => return Ok(Incoming::Closed),
                Received::Empty => return Ok(Incoming::Empty),
            };
            let message = match buffer[..length].split_first() {
                Some((&READY, _)) => ToMaster::Ready,
                Some((&RETIRING, _)) => ToMaster::Retiring,
                Some((&SERVING_ON, _)) => ToMaster::ServingOn,
                Some((&RUN_JOB, rest)) => match rest.split_first_chunk() {
                    Some((id, job)) => ToMaster::RunJob(JobId::from_le_bytes(*id), job.to_vec()),
                    None => continue,
                },
                Some((&AWAIT_JOB, rest)) => match rest.split_first_chunk() {
                    Some((id, _)) => ToMaster::AwaitJob(JobId::from_le_bytes(*id)),
                    None => continue,
                },
                _ => continue,
            };
            return Ok(Incoming::Message(message));
        }
    }

    /// Receives what the master sent; `buffer` holds [`MAX_MESSAGE`] bytes.
    pub fn from_master(&self, buffer: &mut [u8]) -> io::Result<Incoming<ToWorker>> {
        loop {
            let (length, fds) = match fdpass::receive(self.0.as_fd(), buffer)? {
                Received::Packet(length, fds) => (length, fds),
                Received::Eof => return Ok(Incoming::Closed),
                Received::Empty => return Ok(Incoming::Empty),
            };
            let message = match (buffer[..length].split_first(), fds.into_iter().next()) {
                (Some((&HAND_TO, _)), Some(fd)) => ToWorker::HandTo(fd),
                (Some((&ADOPT, _)), Some(fd)) => ToWorker::Adopt(fd),
                (Some((&JOB_DONE, rest)), _) => {
                    let Some((id, rest)) = rest.split_first_chunk() else { continue };
                    let Some((status, body)) = rest.split_first_chunk() else { continue };
                    ToWorker::JobDone {
                        id: JobId::from_le_bytes(*id),
                        status: u16::from_le_bytes(*status),
                        body: body.to_vec(),
                    }
                }
                _ => continue,
            };
            return Ok(Incoming::Message(message));
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
