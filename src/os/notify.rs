//! Telling the service manager: datagrams to the socket it names.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service manager's socket.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
}

impl Notifier {
    /// Connects to the socket called `name`: a path, or an abstract name after an `@`.
    pub fn connect(name: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        match name.strip_prefix('@') {
            Some(abstract_name) => {
                socket.connect_addr(&SocketAddr::from_abstract_name(abstract_name.as_bytes())?)?;
            }
            None => socket.connect(name)?,
        }
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Sends `NAME=value` lines.
    pub fn tell(&self, lines: &str) -> io::Result<()> {
        self.socket.send(lines.as_bytes()).map(|_| ())
    }
}
