//! Listening sockets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::unistd::dup;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Opens a TCP listener: non-blocking, close-on-exec, `TCP_NODELAY` (accepted sockets inherit it),
/// `SO_REUSEADDR`, and `SO_REUSEPORT` when asked for.
pub fn listen_tcp(address: SocketAddr, backlog: i32, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.ip().is_unspecified() && address.is_ipv6() {
        // Every address, whatever the system's default is.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    socket.listen(backlog)?;
    Ok(socket)
}

/// Opens a Unix stream listener at `path`, replacing a socket that a dead server left there.
///
/// A path that is anything else, or a socket on which somebody listens, is an error.
pub fn listen_unix(path: &Path, backlog: i32) -> io::Result<Socket> {
    use std::os::unix::fs::FileTypeExt;
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
        }
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        probe.set_nonblocking(true)?;
        match probe.connect(&SockAddr::unix(path)?) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            // A full queue (would block) has an owner too.
            Ok(()) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::AddrInUse.into())
            }
            Err(error) => return Err(error),
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(true)?;
    socket.listen(backlog)?;
    Ok(socket)
}

/// Adopts the listening socket that the parent process left at descriptor `fd`: a close-on-exec copy of it.
pub fn adopt(fd: RawFd, backlog: i32) -> io::Result<Socket> {
    if fd < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "descriptors 0 to 2 are not sockets"));
    }
    // SAFETY: the descriptor is only borrowed for the dup, which fails with EBADF when it is not open.
    let copy: OwnedFd = dup(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) })?;
    let socket = Socket::from(copy);
    if socket.r#type()? != Type::STREAM {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a stream socket"));
    }
    // SAFETY: the number names the inherited original, which nothing else in this process owns.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.set_cloexec(true)?;
    socket.set_nonblocking(true)?;
    if !socket.is_listener()? {
        socket.listen(backlog)?;
    }
    Ok(socket)
}
