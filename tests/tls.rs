//! Encrypted clients' connections: what they are shown and asked for, and that they outlive workers like any other.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::certs::Certs;
use common::{eventually, Repo, Server};
use feast_prefork::tls;
use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

const BODY: &str = r#"{"features":["driver_stats:nickname"],"entities":{"driver_id":[1001]}}"#;
const ANSWER: &str = "\"Ann\"";

fn serve(certs: &Certs, args: &[&str]) -> Server {
    let (cert, key) = (certs.path("server.crt"), certs.path("server.key"));
    let own = ["--no-access-log", "--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()];
    Server::start(Repo::copy_of("kitchen_sink"), &[&own[..], args].concat())
}

/// How a client connects that trusts `certs`, with this one of them as its own.
fn client_config(certs: &Certs, own: Option<&str>, version: Option<&str>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certs.path("ca.crt")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(tls::provider());
    let builder = match version {
        Some("1.2") => builder.with_protocol_versions(&[&rustls::version::TLS12]),
        Some("1.3") => builder.with_protocol_versions(&[&rustls::version::TLS13]),
        _ => builder.with_safe_default_protocol_versions(),
    };
    let builder = builder.unwrap().with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let cert = CertificateDer::from_pem_file(certs.path(&format!("{name}.crt"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(certs.path(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    }
}

struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Client {
    fn connect(port: u16, config: &Arc<ClientConfig>) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.set_nodelay(true).unwrap();
        let session = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
        Self { stream: StreamOwned::new(session, socket) }
    }

    /// Sends a request and reads the whole answer: its head, and its body.
    fn exchange(&mut self, request: &[u8]) -> io::Result<(String, String)> {
        self.stream.write_all(request)?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
                let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
                if bytes.len() == end + 4 + length.parse::<usize>().unwrap() {
                    return Ok((head, String::from_utf8_lossy(&bytes[end + 4..]).into_owned()));
                }
            }
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => bytes.extend_from_slice(&buffer[..length]),
            }
        }
    }

    fn post(&mut self, body: &str) -> io::Result<(String, String)> {
        let headers = [("content-type", "application/json")];
        self.exchange(&common::encode("POST", "/get-online-features", &headers, body.as_bytes()))
    }

    fn asks(&mut self) -> bool {
        let (head, body) = self.post(BODY).unwrap();
        head.starts_with("HTTP/1.1 200") && !head.contains("connection: close") && body.contains(ANSWER)
    }

    /// What the server has shown.
    fn shown(&self) -> Vec<u8> {
        self.stream.conn.peer_certificates().unwrap()[0].to_vec()
    }
}

/// Reads what is left on a plain socket; an error if it is not closed in time.
fn rest(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
        _ => Ok(bytes),
    }
}

#[test]
fn every_suite_of_both_versions_carries_requests_and_answers() {
    let certs = Certs::make();
    certs.sign("server", "ec -pkeyopt ec_paramgen_curve:P-256");
    let ec = serve(&certs, &[]);
    certs.sign("server", "rsa:2048");
    let rsa = serve(&certs, &["--max-requests", "2", "--max-requests-jitter", "0"]);
    // Requests and answers of many records, which end where they like.
    let ids = vec!["1001"; 4000].join(",");
    let large = format!(r#"{{"features":["driver_stats:nickname"],"entities":{{"driver_id":[{ids}]}}}}"#);
    for suite in tls::provider().cipher_suites.clone() {
        let provider =
            rustls::crypto::CryptoProvider { cipher_suites: vec![suite], ..(*tls::provider()).clone() };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certs.path("ca.crt")).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let name = format!("{:?}", suite.suite());
        let server = if name.contains("ECDSA") { &ec } else { &rsa };
        let mut client = Client::connect(server.port, &Arc::new(config));
        for _ in 0..6 {
            assert!(client.asks(), "{name}");
        }
        assert_eq!(client.stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        for _ in 0..3 {
            let (head, body) = client.post(&large).unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "{name}: {head}");
            assert_eq!(body.matches(ANSWER).count(), 4000, "{name}");
        }
        let (head, _) = client.exchange(b"GET /health/?a=b HTTP/1.1\r\nhost: x:1\r\n\r\n").unwrap();
        assert!(head.contains("location: https://x:1/health?a=b"), "{head}");
        let (head, _) =
            client.exchange(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        assert!(head.contains("connection: close"));
        assert_eq!(client.stream.read(&mut [0; 1]).unwrap(), 0, "{name}: the end is announced");
    }
}

#[test]
fn connections_outlive_workers_and_certificates() {
    let certs = Certs::make();
    let server = serve(&certs, &["-w", "3", "--max-requests", "20", "--max-requests-jitter", "5"]);
    let configs: Vec<_> =
        ["1.2", "1.3"].map(|version| Arc::new(client_config(&certs, None, Some(version)))).into();
    let mut clients: Vec<Client> =
        (0..8).map(|number| Client::connect(server.port, &configs[number % 2])).collect();
    let before = server.workers();
    for _ in 0..150 {
        assert!(clients.iter_mut().all(Client::asks));
    }
    assert!(server.workers().iter().all(|pid| !before.contains(pid)), "workers were recycled");
    let old = clients[0].shown();
    certs.sign("server", "ec -pkeyopt ec_paramgen_curve:P-256");
    let workers = server.workers();
    server.signal(Signal::SIGHUP);
    eventually("a new certificate", || {
        assert!(clients.iter_mut().all(Client::asks), "old connections are served on");
        let gone = server.workers().iter().all(|pid| !workers.contains(pid));
        // A resumed session would not show it.
        let mut fresh = Client::connect(server.port, &Arc::new(client_config(&certs, None, None)));
        gone && fresh.asks() && fresh.shown() != old
    });
    // A file that is no certificate changes nothing.
    std::fs::write(certs.path("server.crt"), "nonsense").unwrap();
    server.signal(Signal::SIGHUP);
    eventually("the reload is refused", || server.log().contains("reload refused"));
    assert!(server.log().contains("server.crt: holds no certificate in PEM format"), "{}", server.log());
    assert!(clients.iter_mut().all(Client::asks));
    assert!(Client::connect(server.port, &configs[0]).asks());
}

#[test]
fn sessions_are_resumed_by_any_worker() {
    let certs = Certs::make();
    let server = serve(&certs, &["-w", "4", "--max-requests", "10"]);
    for version in ["1.2", "1.3"] {
        let config = Arc::new(client_config(&certs, None, Some(version)));
        assert!(Client::connect(server.port, &config).asks());
        for turn in 0..60 {
            let mut client = Client::connect(server.port, &config);
            assert!(client.asks());
            let kind = client.stream.conn.handshake_kind().unwrap();
            assert_eq!(kind, HandshakeKind::Resumed, "TLS {version}, turn {turn}");
        }
    }
}

#[test]
fn clients_show_certificates_when_asked() {
    let certs = Certs::make();
    let strangers = Certs::make();
    let ca = certs.path("ca.crt");
    let trusted = ["--ca-certs", ca.to_str().unwrap()];
    let required = serve(&certs, &[&trusted[..], &["--cert-reqs", "2"]].concat());
    let optional = serve(&certs, &[&trusted[..], &["--cert-reqs", "optional"]].concat());
    for version in ["1.2", "1.3"] {
        let known = Arc::new(client_config(&certs, Some("client"), Some(version)));
        let nobody = Arc::new(client_config(&certs, None, Some(version)));
        let mut stranger = client_config(&strangers, Some("client"), Some(version));
        stranger.dangerous().set_certificate_verifier(Arc::new(Anybody));
        let stranger = Arc::new(stranger);
        assert!(Client::connect(required.port, &known).asks());
        let mut again = Client::connect(required.port, &known);
        assert!(again.asks());
        let kind = again.stream.conn.handshake_kind().unwrap();
        assert_eq!(kind, HandshakeKind::Full, "a certificate is shown each time");
        let told = Client::connect(required.port, &nobody).post(BODY).unwrap_err().to_string();
        assert!(told.contains("CertificateRequired") || told.contains("HandshakeFailure"), "{told}");
        assert!(Client::connect(optional.port, &nobody).asks());
        assert!(Client::connect(optional.port, &known).asks());
        for port in [required.port, optional.port] {
            let told = Client::connect(port, &stranger).post(BODY).unwrap_err().to_string();
            assert!(told.contains("UnknownCA") || told.contains("DecryptError"), "{told}");
        }
    }
}

/// A client that trusts every server.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn clients_that_speak_something_else_hurt_nobody() {
    let certs = Certs::make();
    let server = serve(&certs, &["--header-timeout", "1"]);
    let config = Arc::new(client_config(&certs, None, None));
    let connect = || TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    // Plain HTTP is closed without a word.
    let mut plain = connect();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(rest(&mut plain).unwrap(), b"");
    // Nobody waits for ever: silence, half a handshake, one that never ends.
    let mut silent = connect();
    let mut half = connect();
    half.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
    assert_eq!(rest(&mut silent).unwrap(), b"");
    assert_eq!(rest(&mut half).unwrap(), b"");
    let mut endless = connect();
    endless.write_all(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff").unwrap();
    let told =
        endless.write_all(&b"\x16\x03\x01\x40\x00".iter().copied().chain([0; 0x4000]).collect::<Vec<_>>());
    assert!(told.is_err() || rest(&mut endless).unwrap().len() <= 7);
    // A record that was touched on its way: an alert, and the end.
    for junk in [
        &b"\x17\x03\x03\x00\x20"[..],
        b"\x17\x03\x03\xff\xff",
        b"\x14\x03\x03\x00\x01",
        b"\x63\x00\x00\x00\x01",
    ] {
        let mut client = Client::connect(server.port, &config);
        assert!(client.asks());
        let socket = &mut client.stream.sock;
        socket.write_all(junk).unwrap();
        socket.write_all(&[1; 32]).unwrap();
        let error = client.post(BODY).unwrap_err().to_string();
        assert!(
            error.contains("alert") || error.contains("reset") || error.contains("pipe"),
            "{junk:?}: {error}"
        );
    }
    // A handshake in pieces is slow, and no more than that.
    let session = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
    let mut client = Client { stream: StreamOwned::new(session, connect()) };
    let mut hello = Vec::new();
    client.stream.conn.write_tls(&mut hello).unwrap();
    for byte in hello {
        client.stream.sock.write_all(&[byte]).unwrap();
    }
    assert!(client.asks());
    assert!(!server.log().contains("panicked"));
}

/// Requests that are answered although the client has said goodbye, connections that wait for nothing, and those
/// that would wait for ever.
#[test]
fn ends_and_beginnings_are_where_they_belong() {
    let certs = Certs::make();
    let server = serve(&certs, &["-w", "1", "--max-requests", "10", "--max-requests-jitter", "0"]);
    let config = Arc::new(client_config(&certs, None, Some("1.3")));
    // A request and the goodbye arrive together.
    let mut client = Client::connect(server.port, &config);
    assert!(client.asks());
    let headers = [("content-type", "application/json")];
    let request = common::encode("POST", "/get-online-features", &headers, BODY.as_bytes());
    client.stream.conn.writer().write_all(&request).unwrap();
    client.stream.conn.send_close_notify();
    let mut bytes = Vec::new();
    while client.stream.conn.wants_write() {
        client.stream.conn.write_tls(&mut bytes).unwrap();
    }
    client.stream.sock.write_all(&bytes).unwrap();
    let mut answer = String::new();
    client.stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(ANSWER), "{answer}");
    // Connections that have not begun move on: workers are replaced at once, and the handshake is the next one's.
    let silent = || TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let (waiting, halfway) = (silent(), silent());
    (&halfway).write_all(b"\x16\x03\x01\x02").unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let mut client = Client::connect(server.port, &config);
    let begun = std::time::Instant::now();
    while seen.len() < 4 {
        assert!(client.asks());
        seen.extend(server.workers());
        assert!(begun.elapsed() < Duration::from_secs(15), "workers are replaced: {seen:?}");
    }
    waiting.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let session = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
    let mut late = Client { stream: StreamOwned::new(session, waiting.try_clone().unwrap()) };
    assert!(late.asks());
    waiting.shutdown(std::net::Shutdown::Both).unwrap();
    // Bytes and the end at once: the end is noticed.
    let mut gone = silent();
    gone.write_all(b"\x16\x03\x01").unwrap();
    gone.shutdown(std::net::Shutdown::Write).unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(rest(&mut gone).unwrap(), b"");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn records_without_content_are_not_taken_for_ever() {
    let certs = Certs::make();
    let server = serve(&certs, &["-w", "1"]);
    // Keys are taken out of a client, so that records can be made that no library sends.
    let mut config = client_config(&certs, None, Some("1.2"));
    config.enable_secret_extraction = true;
    let mut client = Client::connect(server.port, &Arc::new(config));
    assert!(client.asks());
    let (session, mut socket) = client.stream.into_parts();
    let (mut number, secrets) = session.dangerous_extract_secrets().unwrap().tx;
    let rustls::ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another suite") };
    let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, key.as_ref()).unwrap();
    let key = ring::aead::LessSafeKey::new(key);
    let mut records = Vec::new();
    for _ in 0..40 {
        let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
        for (byte, part) in nonce[4..].iter_mut().zip(u64::to_be_bytes(number)) {
            *byte ^= part;
        }
        let bound = [&number.to_be_bytes()[..], b"\x17\x03\x03\x00\x00"].concat();
        let sealing = ring::aead::Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(sealing, ring::aead::Aad::from(bound), &mut []).unwrap();
        records.extend_from_slice(b"\x17\x03\x03\x00\x18");
        records.extend_from_slice(&nonce[4..]);
        records.extend_from_slice(tag.as_ref());
        number += 1;
    }
    // As many as a library may send are taken, and then there is an end.
    socket.write_all(&records[..29 * 30]).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(socket.read(&mut [0; 1]).is_err(), "still open");
    socket.write_all(&records[29 * 30..]).unwrap();
    assert_eq!(rest(&mut socket).unwrap().len(), 5 + 8 + 2 + 16, "an alert, and the end");
}

#[test]
fn no_handshake_breaks_a_worker() {
    let certs = Certs::make();
    let ca = certs.path("ca.crt");
    let server = serve(&certs, &["--ca-certs", ca.to_str().unwrap(), "--cert-reqs", "1"]);
    let workers = server.workers();
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let configs =
        ["1.2", "1.3"].map(|version| Arc::new(client_config(&certs, Some("client"), Some(version))));
    for turn in 0..400 {
        let config = configs[turn % 2].clone();
        let mut session = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let mut socket = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        // The flight that arrives damaged.
        let damaged = random.u32(0..3);
        for flight in 0..=damaged {
            let mut bytes = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut bytes).unwrap();
            }
            if flight == damaged && !bytes.is_empty() {
                for _ in 0..random.u32(1..4) {
                    let place = random.usize(..bytes.len());
                    bytes[place] = random.u8(..);
                }
                if random.bool() {
                    bytes.truncate(random.usize(..=bytes.len()));
                }
            }
            while !bytes.is_empty() {
                let size = random.usize(1..=bytes.len());
                if socket.write_all(&bytes[..size]).is_err() {
                    break;
                }
                bytes.drain(..size);
            }
            if flight == damaged
                || session.read_tls(&mut socket).is_err()
                || session.process_new_packets().is_err()
            {
                break;
            }
        }
    }
    let mut client = Client::connect(server.port, &configs[0]);
    assert!(client.asks() && !server.log().contains("panicked"), "seed {seed}");
    assert_eq!(server.workers(), workers, "seed {seed}");
}

/// Runs `serve` where it cannot work; its exit code and its last line.
fn refused(args: &[&str]) -> (Option<i32>, String) {
    let repo = Repo::copy_of("driver_stats");
    let output = Command::new(common::binary())
        .arg("-c")
        .arg(repo.path())
        .args(["serve", "--port", "0"])
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("Booting worker"), "{text}");
    (output.status.code(), text.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn mistakes_show_before_the_first_fork() {
    let certs = Certs::make();
    certs.sign("other", "rsa:2048");
    certs.run("openssl pkey -in server.key -aes256 -passout pass:x -out locked.key");
    let file = |name: &str| certs.path(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("server.crt"), file("server.key"), file("ca.crt"));
    let pair =
        "Error: Invalid value: Please pass --cert and --key args to start the feature server in TLS mode.";
    assert_eq!(refused(&["--cert", &cert]), (Some(2), pair.to_owned()));
    assert_eq!(refused(&["-k", &key]), (Some(2), pair.to_owned()));
    let missing = |args: &[&str], text: &str| {
        let (code, line) = refused(args);
        assert_eq!(code, Some(1), "{line}");
        assert!(line.contains(text), "{line}");
    };
    missing(&["--cert", "/no/cert", "--key", "/no/key"], "certfile \"/no/cert\" does not exist");
    missing(&["--cert", &cert, "--key", "/no/key"], "keyfile \"/no/key\" does not exist");
    missing(
        &["--cert", &cert, "--key", &file("other.key")],
        "other.key: is not the key of the certificate in ",
    );
    missing(&["--cert", &key, "--key", &key], "server.key: holds no certificate in PEM format");
    missing(&["--cert", &cert, "--key", &cert], "server.crt: holds no private key in PEM format");
    missing(&["--cert", &cert, "--key", &file("locked.key")], "locked.key: the key is encrypted");
    let both = ["--cert", &cert, "--key", &key];
    missing(
        &[&both[..], &["--ca-certs", "/no/ca", "--cert-reqs", "2"]].concat(),
        "ca_certs \"/no/ca\" does not",
    );
    for (args, text) in [
        (&["--cert-reqs", "2"][..], "--cert-reqs: name the authorities"),
        (&["--ca-certs", &ca], "--ca-certs: add --cert-reqs"),
        (&["--cert-reqs", "3"], "--cert-reqs '3': use 0 (none), 1 (optional) or 2 (required)"),
    ] {
        let (code, line) = refused(&[&both[..], args].concat());
        assert_eq!(code, Some(2));
        assert!(line.contains(text), "{line}");
    }
    let (code, line) = refused(&["--ca-certs", &ca, "--cert-reqs", "1"]);
    assert!(code == Some(2) && line.contains("need TLS"), "{line}");
}

/// Feast's own client, with `cert` as its documentation tells.
#[test]
fn the_sdk_reads_and_writes_over_tls() {
    let certs = Certs::make();
    let server = serve(&certs, &["-w", "2", "--max-requests", "5"]);
    let client = tempfile::tempdir().unwrap();
    common::copy_tree(&common::fixture("kitchen_sink"), client.path());
    let yaml = format!(
        "project: kitchen_sink\nregistry: registry.db\nprovider: local\nentity_key_serialization_version: 3\n\
         offline_store: {{type: file}}\n\
         online_store: {{type: remote, path: 'https://localhost:{}', cert: '{}'}}\n",
        server.port,
        certs.path("ca.crt").display()
    );
    std::fs::write(client.path().join("feature_store.yaml"), yaml).unwrap();
    let script = "\
from feast import FeatureStore
store = FeatureStore('.')
for _ in range(30):
    got = store.get_online_features(features=['driver_stats:nickname'], entity_rows=[{'driver_id': 1001}]).to_dict()
    assert got['nickname'] == ['Ann'], got
print('fine')
";
    let output = Command::new(common::python())
        .args(["-W", "ignore", "-c", script])
        .current_dir(client.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("fine"));
}
