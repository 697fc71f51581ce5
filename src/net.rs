//! Which kind of socket is this? Client connections and listeners over TCP or Unix sockets.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{recv, MsgFlags};
use socket2::Socket;

use crate::os::sockets;

/// A connection to a client, non-blocking.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(mio::net::TcpStream),
    /// Over a Unix socket.
    Unix(mio::net::UnixStream),
}

impl Stream {
    /// Takes over a descriptor that was handed over, of either kind.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        if socket.domain()? == socket2::Domain::UNIX {
            Ok(Self::Unix(mio::net::UnixStream::from_std(UnixStream::from(OwnedFd::from(socket)))))
        } else {
            Ok(Self::Tcp(mio::net::TcpStream::from_std(socket.into())))
        }
    }

    /// The client's address; `None` on a Unix socket or when the client is gone.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Looks at what has arrived without taking it.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.as_raw_fd(), buffer, MsgFlags::MSG_PEEK)?)
    }

    /// Tells the client that nothing more will come.
    pub fn shutdown_write(&self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).write(bytes),
            Stream::Unix(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).write_vectored(slices),
            Stream::Unix(stream) => (&mut &*stream).write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

impl Source for Stream {
    fn register(&mut self, to: &Registry, token: Token, what: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.register(to, token, what),
            Self::Unix(stream) => stream.register(to, token, what),
        }
    }

    fn reregister(&mut self, to: &Registry, token: Token, what: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.reregister(to, token, what),
            Self::Unix(stream) => stream.reregister(to, token, what),
        }
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.deregister(from),
            Self::Unix(stream) => stream.deregister(from),
        }
    }
}

/// A listening socket, opened by the master and inherited by its workers.
#[derive(Debug)]
pub struct Listener {
    kind: ListenerKind,
    name: ListenerName,
    /// Device and inode of the socket file that goes when the listener goes.
    file: Option<(u64, u64)>,
}

#[derive(Debug)]
enum ListenerKind {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

/// What a listener is called in logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerName {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ListenerName {
    /// What it is called when its connections are encrypted.
    pub fn secure(&self) -> String {
        match self {
            Self::Tcp(address) => format!("https://{address}"),
            Self::Unix(_) => self.to_string(),
        }
    }

    /// Opens one more listening socket on this TCP address (`SO_REUSEPORT`).
    pub fn open_sibling(&self, backlog: i32) -> io::Result<Listener> {
        match self {
            Self::Tcp(address) => Listener::new(sockets::listen_tcp(*address, backlog, true)?),
            Self::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Listener {
    /// Wraps a socket that listens.
    pub fn new(socket: Socket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let (kind, name) = match address.as_socket() {
            Some(tcp) => {
                let listener = mio::net::TcpListener::from_std(socket.into());
                (ListenerKind::Tcp(listener), ListenerName::Tcp(tcp))
            }
            None => {
                let path = address.as_pathname().map(PathBuf::from).unwrap_or_default();
                let listener = UnixListener::from(OwnedFd::from(socket));
                (ListenerKind::Unix(mio::net::UnixListener::from_std(listener)), ListenerName::Unix(path))
            }
        };
        Ok(Self { kind, name, file: None })
    }

    /// Makes the socket file this listener's own: [`remove_file`](Self::remove_file) will delete it.
    #[must_use]
    pub fn owning_file(mut self) -> Self {
        self.own_file();
        self
    }

    /// The same for a listener that is in its place already.
    pub fn own_file(&mut self) {
        self.file = self.find_file();
    }

    /// True when the socket file is this listener's own.
    pub fn owns_file(&self) -> bool {
        self.file.is_some()
    }

    /// Deletes the socket file, unless it belongs to somebody else by now.
    pub fn remove_file(&self) {
        if let ListenerName::Unix(path) = &self.name {
            if self.file.is_some() && self.file == self.find_file() {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn find_file(&self) -> Option<(u64, u64)> {
        use std::os::unix::fs::MetadataExt;
        let ListenerName::Unix(path) = &self.name else { return None };
        let found = std::fs::symlink_metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    }

    /// Another socket on the same TCP address, for a worker of its own (`SO_REUSEPORT`).
    pub fn sibling(&self, backlog: i32) -> io::Result<Self> {
        self.name.open_sibling(backlog)
    }

    /// What it is called.
    pub fn name(&self) -> &ListenerName {
        &self.name
    }

    /// Takes one waiting connection.
    pub fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match &self.kind {
            ListenerKind::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((Stream::Tcp(stream), Some(peer)))
            }
            ListenerKind::Unix(listener) => Ok((Stream::Unix(listener.accept()?.0), None)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            ListenerKind::Tcp(listener) => listener.as_fd(),
            ListenerKind::Unix(listener) => listener.as_fd(),
        }
    }
}
