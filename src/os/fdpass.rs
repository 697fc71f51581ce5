//! Datagrams with descriptors between related processes (`SCM_RIGHTS` over a `SOCK_SEQPACKET` pair).

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{sendmsg, socketpair, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType};

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
/// process has no free descriptor, is an error of kind `InvalidData`; what did arrive is closed then.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    // Aligned as a control message must be.
    let mut space = [0_u64; (CONTROL_BYTES).div_ceil(8)];
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&space) as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    let bytes = loop {
        // SAFETY: `message` points to `slice`, `buffer` and `space`, which live until the end of this function.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        if received >= 0 {
            break received as usize;
        }
        match Errno::last() {
            // A peer that died with packets unread is reported once, before what it had sent.
            Errno::EINTR | Errno::ECONNRESET => {}
            Errno::EAGAIN => return Ok(Received::Empty),
            errno => return Err(errno.into()),
        }
    };
    let fds = descriptors(&message);
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet or descriptors were cut off"));
    }
    if bytes == 0 && fds.is_empty() {
        return Ok(Received::Eof);
    }
    Ok(Received::Packet(bytes, fds))
}

/// Room for the largest control message: its header and [`MAX_FDS`] descriptors.
const CONTROL_BYTES: usize = 64 + MAX_FDS * size_of::<RawFd>();

/// Takes the descriptors out of a received message, also out of one that was cut off.
fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: `message` was filled by recvmsg, and its control buffer is still alive.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !part.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return aligned pointers to whole headers.
        let header = unsafe { *part };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only computes.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let length = (header.cmsg_len as usize).saturating_sub(head);
            // SAFETY: the header is at `part`, its data follows.
            let data = unsafe { libc::CMSG_DATA(part) };
            // SAFETY: the kernel wrote `length` bytes there.
            let bytes = unsafe { std::slice::from_raw_parts(data, length) };
            for raw in bytes.as_chunks::<{ size_of::<RawFd>() }>().0 {
                // SAFETY: the kernel has just installed this descriptor for us alone.
                fds.push(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(*raw)) });
            }
        }
        // SAFETY: as above; the macro checks the bounds of the control buffer.
        part = unsafe { libc::CMSG_NXTHDR(message, part) };
    }
    fds
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
