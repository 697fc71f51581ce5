//! The client's end: how servers are trusted, and connections to them.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{authorities, certificates, named, private_key, provider};
use crate::net::Stream;

/// How a client trusts servers, and shows who it is. All files are PEM. The error names the file.
///
/// Servers are trusted whose certificates the authorities in `ca` have signed, or those of the system. With
/// `accept_any` everybody is.
pub fn client_config(
    ca: Option<&Path>,
    certificate: Option<(&Path, &Path)>,
    accept_any: bool,
) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if accept_any {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
    } else {
        builder.with_root_certificates(roots(ca)?)
    };
    let config = match certificate {
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| named(cert, &error))?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    if let Some(path) = ca {
        return authorities(path);
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Ok(roots)
}

/// The client's end of a connection that may be encrypted.
#[derive(Debug)]
pub enum Wire {
    /// As it is.
    Plain(Stream),
    /// Encrypted.
    Tls(Stream, Box<ClientConnection>),
}

impl Wire {
    /// Encrypts `stream` to the server called `name`. The handshake goes on with reads and writes.
    pub fn tls(stream: Stream, config: &Arc<ClientConfig>, name: &str) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let client = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        Ok(Self::Tls(stream, Box::new(client)))
    }

    /// The socket.
    pub fn stream(&self) -> &Stream {
        match self {
            Self::Plain(stream) | Self::Tls(stream, _) => stream,
        }
    }

    /// True when a short read does not mean that nothing is left.
    pub fn holds_back(&self) -> bool {
        matches!(self, Self::Tls(..))
    }

    /// Sends what is encrypted and has not gone, as far as the socket takes it.
    pub fn push(&mut self) -> io::Result<()> {
        let Self::Tls(stream, client) = self else { return Ok(()) };
        while client.wants_write() {
            match client.write_tls(&mut &*stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (stream, client) = match self {
            Self::Plain(stream) => return (&*stream).read(buffer),
            Self::Tls(stream, client) => (stream, client),
        };
        loop {
            match client.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            if client.read_tls(&mut &*stream)? == 0 {
                return Ok(0);
            }
            let processed = client.process_new_packets();
            // An alert tells the server why, and the handshake goes on.
            while client.wants_write() && client.write_tls(&mut &*stream).is_ok() {}
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let client = match self {
            Self::Plain(stream) => return (&*stream).write(bytes),
            Self::Tls(_, client) => client,
        };
        let mut taken = client.writer().write(bytes)?;
        if taken == 0 && !bytes.is_empty() {
            // Full: what is in there goes first.
            self.push()?;
            if let Self::Tls(_, client) = self {
                taken = client.writer().write(bytes)?;
            }
        }
        self.push()?;
        if taken == 0 && !bytes.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}

/// Accepts every certificate; only the signatures of the handshake are checked.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
