//! Connections on their way from a retiring worker to another one.
//!
//! One packet carries up to [`MAX_BATCH`] connections: their descriptors, and for each the bytes that were
//! read but not answered. The receiver acknowledges each packet before it touches the connections; until
//! then the sender keeps its copies, so that a receiver that dies loses nobody.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::Duration;

use super::job::JobId;
use crate::os::fdpass::{self, Received, MAX_FDS};

/// Most connections in one packet.
pub const MAX_BATCH: usize = MAX_FDS;
/// Most unread bytes that travel with a connection; one that has more stays until it is answered.
pub const MAX_PENDING: usize = 30 << 10;
/// Largest packet; what a worker reads at once anyway holds it.
pub const MAX_PACKET: usize = 32 << 10;
/// Most bytes of a connection's keys.
pub const MAX_KEYS: usize = 255;
/// Bytes of an address: its kind, the address, the port.
const PEER: usize = 1 + 16 + 2;
const ACK: &[u8] = b"k";

/// A connection's state besides its socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage {
    /// `100 Continue` was sent for the request whose bytes are `pending`.
    pub continued: bool,
    /// The request whose bytes are `pending` has been counted.
    pub counted: bool,
    /// A balancer's word about the client may come first.
    pub greeting: bool,
    /// A TLS handshake is to come.
    pub handshake: bool,
    /// Requests answered on it so far.
    pub requests: u32,
    /// A request has begun, so that its deadline stands.
    pub begun: bool,
    /// Time until its deadline.
    pub time_left: Duration,
    /// The request in `pending` waits for this job.
    pub job: Option<JobId>,
    /// The client's address, when it is known.
    pub peer: Option<SocketAddr>,
    /// Keys of an encrypted connection, at most [`MAX_KEYS`] bytes.
    pub keys: Vec<u8>,
    /// Bytes read and not yet answered.
    pub pending: Vec<u8>,
}

/// Bytes a connection adds to a packet.
pub fn weight(baggage: &Baggage) -> usize {
    22 + PEER + baggage.keys.len() + baggage.pending.len()
}

/// How many of `waiting` fit into the next packet; at least one if there is any.
pub fn batch<'b>(waiting: impl Iterator<Item = &'b Baggage>) -> usize {
    let mut size = 0;
    waiting
        .take(MAX_BATCH)
        .take_while(|baggage| {
            size += weight(baggage);
            size == weight(baggage) || size <= MAX_PACKET
        })
        .count()
}

/// Sends one packet. `WouldBlock`: the receiver's queue is full, nothing was sent.
pub fn send(socket: &OwnedFd, connections: &[(RawFd, &Baggage)]) -> io::Result<()> {
    let mut packet = Vec::new();
    for (_, baggage) in connections {
        let Baggage { continued, begun, counted, greeting, handshake, .. } = **baggage;
        let flags = [continued, begun, baggage.job.is_some(), counted, greeting, handshake];
        packet.push(flags.iter().rev().fold(0, |bits, &flag| bits << 1 | u8::from(flag)));
        packet.extend_from_slice(&baggage.job.unwrap_or(0).to_le_bytes());
        packet.extend_from_slice(&baggage.requests.to_le_bytes());
        let left = u32::try_from(baggage.time_left.as_millis()).unwrap_or(u32::MAX);
        packet.extend_from_slice(&left.to_le_bytes());
        packet.extend_from_slice(&pack_peer(baggage.peer));
        packet.push(baggage.keys.len() as u8);
        packet.extend_from_slice(&baggage.keys);
        packet.extend_from_slice(&(baggage.pending.len() as u32).to_le_bytes());
        packet.extend_from_slice(&baggage.pending);
    }
    let fds: Vec<RawFd> = connections.iter().map(|(fd, _)| *fd).collect();
    fdpass::send(socket.as_fd(), &packet, &fds)
}

/// What the receiving side finds.
#[derive(Debug)]
pub enum Arrival {
    /// Connections; already acknowledged.
    Connections(Vec<(OwnedFd, Baggage)>),
    /// The sender has sent everything.
    Eof,
    /// Nothing now.
    Empty,
}

/// Receives and acknowledges one packet; `buffer` holds [`MAX_PACKET`] bytes.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Arrival> {
    match fdpass::receive(socket.as_fd(), buffer)? {
        Received::Eof => Ok(Arrival::Eof),
        Received::Empty => Ok(Arrival::Empty),
        Received::Packet(length, fds) => {
            let arrived = unpack(&buffer[..length], fds)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed handover packet"))?;
            match fdpass::send(socket.as_fd(), ACK, &[]) {
                // A sender that is gone holds no copy any more: these are ours.
                Err(error) if !is_gone(&error) => Err(error),
                _ => Ok(Arrival::Connections(arrived)),
            }
        }
    }
}

/// True for an error that says that the other side has gone.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

fn pack_peer(peer: Option<SocketAddr>) -> [u8; PEER] {
    let mut packed = [0; PEER];
    if let Some(peer) = peer {
        match peer.ip() {
            IpAddr::V4(ip) => {
                packed[0] = 4;
                packed[1..5].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                packed[0] = 6;
                packed[1..17].copy_from_slice(&ip.octets());
            }
        }
        packed[17..].copy_from_slice(&peer.port().to_le_bytes());
    }
    packed
}

fn unpack_peer([kind, ip @ .., low, high]: [u8; PEER]) -> Option<SocketAddr> {
    let ip: [u8; 16] = ip;
    let ip = match kind {
        4 => IpAddr::V4([ip[0], ip[1], ip[2], ip[3]].into()),
        6 => IpAddr::V6(ip.into()),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_le_bytes([low, high])))
}

fn unpack(mut packet: &[u8], fds: Vec<OwnedFd>) -> Option<Vec<(OwnedFd, Baggage)>> {
    let mut arrived = Vec::with_capacity(fds.len());
    for fd in fds {
        let (&flags, rest) = packet.split_first()?;
        let (job, rest) = rest.split_first_chunk()?;
        let (requests, rest) = rest.split_first_chunk::<4>()?;
        let (left, rest) = rest.split_first_chunk::<4>()?;
        let (peer, rest) = rest.split_first_chunk()?;
        let (&keys, rest) = rest.split_first()?;
        let (keys, rest) = rest.split_at_checked(keys.into())?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (pending, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        packet = rest;
        let baggage = Baggage {
            continued: flags & 1 != 0,
            begun: flags & 2 != 0,
            counted: flags & 8 != 0,
            greeting: flags & 16 != 0,
            handshake: flags & 32 != 0,
            job: (flags & 4 != 0).then_some(JobId::from_le_bytes(*job)),
            requests: u32::from_le_bytes(*requests),
            time_left: Duration::from_millis(u32::from_le_bytes(*left).into()),
            peer: unpack_peer(*peer),
            keys: keys.to_vec(),
            pending: pending.to_vec(),
        };
        arrived.push((fd, baggage));
    }
    packet.is_empty().then_some(arrived)
}

/// What the sending side finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Ack {
    /// One packet was taken.
    Taken,
    /// The receiver is gone.
    Gone,
    /// Nothing now.
    Empty,
}

/// Looks for an acknowledgement.
pub fn acknowledged(socket: &OwnedFd) -> Ack {
    match fdpass::receive(socket.as_fd(), &mut [0; 8]) {
        Ok(Received::Packet(..)) => Ack::Taken,
        Ok(Received::Empty) => Ack::Empty,
        Ok(Received::Eof) | Err(_) => Ack::Gone,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_packet_arrives_whole_and_is_acknowledged() {
        let (a, b) = fdpass::packet_pair().unwrap();
        let (c, d) = fdpass::packet_pair().unwrap();
        let first = Baggage {
            continued: true,
            counted: true,
            greeting: true,
            handshake: true,
            requests: 7,
            begun: true,
            time_left: Duration::from_millis(1500),
            job: Some(0x0102_0304_0506),
            peer: Some("10.1.2.3:4567".parse().unwrap()),
            keys: vec![7; MAX_KEYS],
            pending: b"POST".to_vec(),
        };
        let second = Baggage { peer: Some("[2001:db8::1]:80".parse().unwrap()), ..Baggage::default() };
        send(&a, &[(c.as_raw_fd(), &first), (d.as_raw_fd(), &second)]).unwrap();
        assert_eq!(acknowledged(&a), Ack::Empty);
        let Arrival::Connections(arrived) = receive(&b, &mut [0; 512]).unwrap() else { panic!() };
        assert_eq!(arrived.iter().map(|(_, baggage)| baggage).collect::<Vec<_>>(), [&first, &second]);
        assert_eq!(acknowledged(&a), Ack::Taken);
        drop(b);
        assert_eq!(acknowledged(&a), Ack::Gone);
    }

    #[test]
    fn a_batch_is_bounded_by_count_and_size() {
        let small = Baggage::default();
        let large = Baggage { keys: vec![0; MAX_KEYS], pending: vec![0; MAX_PENDING], ..Baggage::default() };
        assert_eq!(batch(std::iter::repeat_n(&small, 100)), MAX_BATCH);
        assert_eq!(batch([&large, &small, &large].into_iter()), 2);
        assert_eq!(batch([&large, &large].into_iter()), 1);
        assert!(weight(&large) <= MAX_PACKET);
    }

    #[test]
    fn malformed_packets_are_refused() {
        let (a, _b) = fdpass::packet_pair().unwrap();
        assert!(unpack(&[0, 0, 0], vec![a]).is_none());
        assert!(unpack(&[0], vec![]).is_none());
    }
}
