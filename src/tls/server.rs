//! The server's end: what clients are shown, and connections that may be encrypted.
//!
//! ```text
//! Handshake --finished--> Traffic --close_notify--> Closed
//!     |                      |
//!     +------ a fault: an alert goes out -----> Closed
//! ```

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::ServerConfig;

use super::traffic::{record_length, Fault, Kind, Traffic};
use super::{authorities, certificates, named, private_key, provider};
use crate::net::Stream;

/// Most bytes of a handshake that are kept while more are awaited.
const MOST_HANDSHAKE: usize = 32 << 10;
/// Most records without content in a row (as in rustls).
const MOST_EMPTY: u32 = 32;
/// A warning: the other side closes.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// Whether clients show a certificate (the numbers of gunicorn's `--cert-reqs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCerts {
    /// 0: they are not asked.
    None,
    /// 1: whoever has one shows it.
    Optional,
    /// 2: nobody gets in without.
    Required,
}

/// What clients are shown, and asked for. All files are PEM; the error names the file.
pub fn config(
    cert: &Path,
    key: &Path,
    clients: ClientCerts,
    ca: Option<&Path>,
) -> Result<ServerConfig, String> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match (clients, ca) {
        (ClientCerts::None, _) | (_, None) => builder.with_no_client_auth(),
        (_, Some(ca)) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(ca)?), provider());
            let verifier =
                if clients == ClientCerts::Optional { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| named(ca, &error))?)
        }
    };
    let mut config =
        builder.with_single_cert(certificates(cert)?, private_key(key)?).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                named(key, &format!("is not the key of the certificate in {}", cert.display()))
            }
            rustls::Error::InvalidCertificate(problem) => {
                named(cert, &format!("its first certificate cannot be read: {problem:?}"))
            }
            rustls::Error::General(text) if text.contains("private key") => named(
                key,
                &"a kind of key that is not supported; use RSA, ECDSA (P-256, P-384, P-521) or Ed25519",
            ),
            other => named(cert, &other),
        })?;
    if clients != ClientCerts::None {
        // Whoever resumes a session shows no certificate, for as long as it comes back in time: nobody does.
        config.send_tls13_tickets = 0;
    }
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Sessions are in tickets: what one worker remembers is no use to the next.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.enable_secret_extraction = true;
    Ok(config)
}

/// What a read has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Got {
    /// Bytes; 0 = the client sends no more.
    pub length: usize,
    /// More may be waiting, and make no event of its own.
    pub more: bool,
}

/// A client's connection.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    guard: Guard,
    /// Bytes that the socket has not taken yet, from `sent` on.
    out: Vec<u8>,
    sent: usize,
}

/// How it is protected.
#[derive(Debug)]
enum Guard {
    Plain,
    Secure(Box<Secure>),
}

#[derive(Debug)]
struct Secure {
    phase: Phase,
    /// Received, and not yet a whole record.
    partial: Vec<u8>,
    /// Records without content since the last one with some.
    empty: u32,
    /// The client sends no more; it may still listen.
    ended: bool,
}

enum Phase {
    Handshake {
        session: UnbufferedServerConnection,
        /// Bytes of `partial` that rustls has seen and wants to see again.
        offered: usize,
        /// Something has arrived.
        begun: bool,
    },
    Traffic(Traffic),
    Closed,
}

impl fmt::Debug for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake { offered, .. } => {
                f.debug_struct("Handshake").field("offered", offered).finish_non_exhaustive()
            }
            Self::Traffic(traffic) => traffic.fmt(f),
            Self::Closed => f.write_str("Closed"),
        }
    }
}

impl Wire {
    /// A connection that is not encrypted.
    pub fn plain(stream: Stream) -> Self {
        Self { stream, guard: Guard::Plain, out: Vec::new(), sent: 0 }
    }

    /// A connection that begins with a handshake.
    pub fn secure(stream: Stream, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(config.clone()).map_err(io::Error::other)?;
        let phase = Phase::Handshake { session, offered: 0, begun: false };
        let secure = Secure { phase, partial: Vec::new(), empty: 0, ended: false };
        Ok(Self { guard: Guard::Secure(Box::new(secure)), ..Self::plain(stream) })
    }

    /// A connection of another worker with its [`keys`](Self::keys).
    pub fn adopted(stream: Stream, keys: &[u8]) -> io::Result<Self> {
        if keys.is_empty() {
            return Ok(Self::plain(stream));
        }
        let traffic = Traffic::unpack(keys).ok_or_else(|| io::Error::other("keys of another version"))?;
        let phase = Phase::Traffic(traffic);
        let secure = Secure { phase, partial: Vec::new(), empty: 0, ended: false };
        Ok(Self { guard: Guard::Secure(Box::new(secure)), ..Self::plain(stream) })
    }

    /// The socket.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// True when another worker could go on with it: nothing is half done.
    pub fn is_portable(&self) -> bool {
        let whole = match &self.guard {
            Guard::Plain => true,
            Guard::Secure(secure) => {
                let whole = secure.partial.is_empty() && !secure.ended;
                whole && (matches!(secure.phase, Phase::Traffic(_)) || self.is_untouched())
            }
        };
        whole && !self.has_unsent()
    }

    /// True for a connection on which a handshake is to come, and nothing of it has.
    pub fn is_untouched(&self) -> bool {
        let Guard::Secure(secure) = &self.guard else { return false };
        matches!(secure.phase, Phase::Handshake { begun: false, .. })
    }

    /// True when a part of a record has arrived.
    pub fn has_partial(&self) -> bool {
        matches!(&self.guard, Guard::Secure(secure) if !secure.partial.is_empty())
    }

    /// What another worker needs besides the socket; nothing for one that is not encrypted.
    pub fn keys(&self) -> Vec<u8> {
        match &self.guard {
            Guard::Secure(secure) => match &secure.phase {
                Phase::Traffic(traffic) => traffic.pack(),
                _ => Vec::new(),
            },
            Guard::Plain => Vec::new(),
        }
    }

    /// True until the client has proven that it speaks TLS: it cannot be told anything yet.
    pub fn is_handshaking(&self) -> bool {
        matches!(&self.guard, Guard::Secure(secure) if !matches!(secure.phase, Phase::Traffic(_)))
    }

    /// True when its keys have been used so much that it should end.
    pub fn is_worn(&self) -> bool {
        matches!(&self.guard, Guard::Secure(secure) if matches!(&secure.phase, Phase::Traffic(t) if t.is_worn()))
    }

    /// Reads once into `buffer`, which is larger than the largest record. An error of kind `InvalidData` is the client's
    /// fault; it has been told. `Interrupted`: what came was for the handshake, or no whole record.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Got> {
        let Self { stream, guard, out, sent } = self;
        let Guard::Secure(secure) = guard else {
            let length = (&*stream).read(buffer)?;
            return Ok(Got { length, more: length == buffer.len() });
        };
        if secure.ended {
            return Ok(Got { length: 0, more: false });
        }
        let kept = secure.partial.len();
        let received = (&*stream).read(&mut buffer[kept..])?;
        if received == 0 {
            return Ok(Got { length: 0, more: false });
        }
        buffer[..kept].copy_from_slice(&secure.partial);
        let total = kept + received;
        let length = secure.take(&mut buffer[..total], out).map_err(|error| {
            let _ = flush(stream, out, sent);
            io::Error::new(ErrorKind::InvalidData, error)
        })?;
        if length == 0 && !secure.ended {
            flush(stream, out, sent)?;
            return Err(ErrorKind::Interrupted.into());
        }
        // Tickets that are still here go out with the answer.
        Ok(Got { length, more: total == buffer.len() || secure.ended })
    }

    /// Sends `parts` one after the other; what the socket does not take is kept.
    pub fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let Self { stream, guard, out, sent } = self;
        match guard {
            Guard::Secure(secure) => {
                let Phase::Traffic(traffic) = &mut secure.phase else {
                    return Err(ErrorKind::NotConnected.into());
                };
                traffic.seal(Kind::Data, parts, out).map_err(io::Error::other)?;
                flush(stream, out, sent).map(|_| ())
            }
            Guard::Plain => {
                let mut skip = 0;
                if out.is_empty() {
                    let slice = |index: usize| IoSlice::new(parts.get(index).copied().unwrap_or_default());
                    skip = match (&*stream).write_vectored(&[slice(0), slice(1)]) {
                        Ok(sent) => sent,
                        Err(error) if is_patient(&error) => 0,
                        Err(error) => return Err(error),
                    };
                }
                for part in parts {
                    let from = skip.min(part.len());
                    skip -= from;
                    out.extend_from_slice(&part[from..]);
                }
                Ok(())
            }
        }
    }

    /// True when something waits for the socket.
    pub fn has_unsent(&self) -> bool {
        !self.out.is_empty()
    }

    /// Sends what waits; false when the socket takes no more now.
    pub fn flush(&mut self) -> io::Result<bool> {
        flush(&self.stream, &mut self.out, &mut self.sent)
    }

    /// Bytes that still wait for the socket.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Says that nothing more will come, as far as the client hears it.
    pub fn farewell(&mut self) {
        if let Guard::Secure(secure) = &mut self.guard {
            if let Phase::Traffic(traffic) = &mut secure.phase {
                let _ = traffic.seal(Kind::Alert, &[&CLOSE_NOTIFY], &mut self.out);
                let _ = self.flush();
            }
        }
    }
}

fn is_patient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// See [`Wire::flush`].
fn flush(stream: &Stream, out: &mut Vec<u8>, sent: &mut usize) -> io::Result<bool> {
    while *sent < out.len() {
        match (&*stream).write(&out[*sent..]) {
            Ok(taken) => *sent += taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    *out = Vec::new();
    *sent = 0;
    Ok(true)
}

impl Secure {
    /// Takes received bytes, `partial` among them; leaves what they say at the front of `buffer` and returns how long that
    /// is. What the client is to hear is appended to `out`.
    fn take(&mut self, buffer: &mut [u8], out: &mut Vec<u8>) -> Result<usize, String> {
        let mut used = 0;
        let mut length = 0;
        let taken = self.handshake(buffer, &mut used, out).and_then(|()| {
            self.open(buffer, &mut used, &mut length).map_err(|fault| {
                self.say_fault(fault, out);
                fault.to_string()
            })
        });
        // What has been taken keeps no buffer.
        self.partial = Vec::new();
        match taken {
            Ok(()) => {
                if !self.ended {
                    self.partial = buffer[used..].to_vec();
                }
                Ok(length)
            }
            Err(error) => {
                self.phase = Phase::Closed;
                self.ended = true;
                Err(error)
            }
        }
    }

    /// Goes on with the handshake, record by record: the first one behind it is not for rustls.
    fn handshake(&mut self, buffer: &mut [u8], used: &mut usize, out: &mut Vec<u8>) -> Result<(), String> {
        let Phase::Handshake { session, offered, begun } = &mut self.phase else { return Ok(()) };
        *begun = true;
        loop {
            let next = record_length(&buffer[*used + *offered..]).map_err(|fault| fault.to_string())?;
            let Some(next) = next else {
                return if buffer.len() - *used > MOST_HANDSHAKE {
                    Err("a handshake that does not end".to_owned())
                } else {
                    Ok(())
                };
            };
            *offered += next;
            loop {
                let status = session.process_tls_records(&mut buffer[*used..*used + *offered]);
                let UnbufferedStatus { discard, state } = status;
                let mut blocked = false;
                let mut finished = false;
                match state {
                    Ok(ConnectionState::EncodeTlsData(mut data)) => encode(out, |room| data.encode(room))?,
                    Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                    Ok(ConnectionState::WriteTraffic(_)) => finished = true,
                    Ok(ConnectionState::BlockedHandshake) => blocked = true,
                    Ok(_) => return Err("the client left during the handshake".to_owned()),
                    Err(error) => {
                        // The alert that tells the client why. The same bytes again: rustls knows their number.
                        let again = session.process_tls_records(&mut buffer[*used..*used + *offered]);
                        if let Ok(ConnectionState::EncodeTlsData(mut data)) = again.state {
                            encode(out, |room| data.encode(room))?;
                        }
                        return Err(error.to_string());
                    }
                }
                *used += discard;
                *offered = offered.saturating_sub(discard);
                if finished {
                    return self.finish();
                }
                if blocked {
                    break;
                }
            }
        }
    }

    /// The handshake is over: from here on its keys are enough.
    fn finish(&mut self) -> Result<(), String> {
        let Phase::Handshake { session, .. } = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return Ok(());
        };
        let version = session.protocol_version().ok_or("a handshake without a version")?;
        let (secrets, _) = session.dangerous_into_kernel_connection().map_err(|error| error.to_string())?;
        self.phase = Phase::Traffic(Traffic::new(version, secrets).ok_or("a cipher without a name")?);
        Ok(())
    }

    /// Opens every whole record in `buffer[used..]` and gathers their content at the front.
    fn open(&mut self, buffer: &mut [u8], used: &mut usize, length: &mut usize) -> Result<(), Fault> {
        let Phase::Traffic(traffic) = &mut self.phase else { return Ok(()) };
        while let Some(size) = record_length(&buffer[*used..])? {
            let (kind, content) = traffic.open(&mut buffer[*used..*used + size])?;
            let content = content.start + *used..content.end + *used;
            *used += size;
            match kind {
                Kind::Data => {
                    let size = content.len();
                    self.empty = if size == 0 { self.empty + 1 } else { 0 };
                    if self.empty > MOST_EMPTY {
                        return Err(Fault::UnexpectedMessage);
                    }
                    buffer.copy_within(content, *length);
                    *length += size;
                }
                // Whatever the alert says, nothing follows. After a goodbye the client may wait for its answer.
                Kind::Alert => {
                    self.ended = true;
                    if buffer.get(content) != Some(&CLOSE_NOTIFY[..]) {
                        self.phase = Phase::Closed;
                    }
                    return Ok(());
                }
                // New keys or a new handshake: a client that wants those can connect anew.
                Kind::Handshake => return Err(Fault::UnexpectedMessage),
            }
        }
        Ok(())
    }

    /// Tells the client what is wrong with its bytes.
    fn say_fault(&mut self, fault: Fault, out: &mut Vec<u8>) {
        if let Phase::Traffic(traffic) = &mut self.phase {
            let _ = traffic.seal(Kind::Alert, &[&[2, fault as u8]], out);
        }
    }
}

/// Appends what `write` makes to `out`; it is asked again with as much room as it wants.
fn encode(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), String> {
    let start = out.len();
    let mut room = 1 << 10;
    loop {
        out.resize(start + room, 0);
        match write(&mut out[start..]) {
            Ok(length) => {
                out.truncate(start + length);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size;
            }
            Err(error) => {
                out.truncate(start);
                return Err(error.to_string());
            }
        }
    }
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl Source for Wire {
    fn register(&mut self, to: &Registry, token: Token, what: Interest) -> io::Result<()> {
        self.stream.register(to, token, what)
    }

    fn reregister(&mut self, to: &Registry, token: Token, what: Interest) -> io::Result<()> {
        self.stream.reregister(to, token, what)
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        self.stream.deregister(from)
    }
}
