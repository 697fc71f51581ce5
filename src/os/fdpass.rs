//! Datagrams with descriptors between related processes (`SCM_RIGHTS` over a `SOCK_SEQPACKET` pair).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
    SockType,
};

/// Most descriptors one datagram may carry here. The kernel's limit is 253; smaller batches keep the
/// receiver's control buffer small, and a short buffer would lose descriptors.
pub const MAX_FDS: usize = 32;

/// A connected pair of close-on-exec, non-blocking packet sockets. Packets keep their boundaries; when
/// one side is closed everywhere, the other reads end-of-file.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?)
}

/// Sends one packet with up to [`MAX_FDS`] descriptors. `WouldBlock` means the peer's queue is full and
/// nothing was sent; packets are never sent in part.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    debug_assert!(fds.len() <= MAX_FDS);
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What [`receive`] found.
#[derive(Debug)]
pub enum Received {
    /// A packet of so many bytes, with the descriptors that came along (close-on-exec set).
    Packet(usize, Vec<OwnedFd>),
    /// Every copy of the other end is closed.
    Eof,
    /// Nothing to read now.
    Empty,
}

/// Receives one packet into `buffer`. A packet longer than `buffer`, or descriptors cut off because this
/// process has no free descriptor, is an error of kind `InvalidData`.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let (bytes, flags, fds) = loop {
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Ok(message) => {
                let mut fds = Vec::new();
                if let Ok(control) = message.cmsgs() {
                    for part in control {
                        if let ControlMessageOwned::ScmRights(raw) = part {
                            // SAFETY: the kernel has just installed these descriptors for us alone.
                            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                        }
                    }
                }
                break (message.bytes, message.flags, fds);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Received::Empty),
            Err(Errno::ECONNRESET) => return Ok(Received::Eof),
            Err(errno) => return Err(errno.into()),
        }
    };
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet or descriptors were cut off"));
    }
    if bytes == 0 && fds.is_empty() {
        return Ok(Received::Eof);
    }
    Ok(Received::Packet(bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptors_and_bytes_arrive_together_and_eof_follows() {
        let (a, b) = packet_pair().unwrap();
        let (c, d) = packet_pair().unwrap();
        send(a.as_fd(), b"one", &[c.as_raw_fd()]).unwrap();
        send(a.as_fd(), b"two", &[]).unwrap();
        drop((a, c));
        let mut buffer = [0; 16];
        let Received::Packet(3, fds) = receive(b.as_fd(), &mut buffer).unwrap() else { panic!() };
        assert_eq!(&buffer[..3], b"one");
        send(fds[0].as_fd(), b"x", &[]).unwrap();
        assert!(matches!(receive(d.as_fd(), &mut buffer).unwrap(), Received::Packet(1, _)));
        assert!(matches!(receive(b.as_fd(), &mut buffer).unwrap(), Received::Packet(3, f) if f.is_empty()));
        assert!(matches!(receive(b.as_fd(), &mut buffer).unwrap(), Received::Eof));
        assert!(matches!(receive(d.as_fd(), &mut buffer).unwrap(), Received::Empty));
    }

    #[test]
    fn a_packet_larger_than_the_buffer_is_an_error() {
        let (a, b) = packet_pair().unwrap();
        send(a.as_fd(), b"0123456789", &[]).unwrap();
        assert!(receive(b.as_fd(), &mut [0; 4]).is_err());
    }
}
