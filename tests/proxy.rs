//! The PROXY protocol: who the client is when a balancer stands between.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::certs::Certs;
use common::{eventually, Client, Repo, Server};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x0a\x00\x00\x05\x0a\x00\x00\x01\x9c\x40\x00\x50";

fn serve(args: &[&str]) -> Server {
    Server::start(Repo::copy_of("driver_stats"), args)
}

/// Sends these bytes first, then asks for this path.
fn ask(server: &Server, first: &[u8], path: &str) -> (u16, Client) {
    let mut client = server.client();
    client.send(first);
    let status = client.get(path).status;
    (status, client)
}

fn logs(server: &Server, line: &str) {
    eventually(line, || server.log().contains(line));
}

#[test]
fn both_versions_name_the_client_for_the_life_of_the_connection() {
    let server = serve(&["-w", "2", "--proxy-protocol", "auto", "--max-requests", "2"]);
    let (status, mut client) = ask(&server, b"PROXY TCP4 192.0.2.7 10.0.0.1 1234 80\r\n", "/health?one");
    assert_eq!(status, 200);
    logs(&server, "192.0.2.7:1234 - \"GET /health?one ");
    for turn in 0..40 {
        assert_eq!(client.get(&format!("/health?turn={turn}")).status, 200);
    }
    logs(&server, "192.0.2.7:1234 - \"GET /health?turn=39 ");
    assert_eq!(ask(&server, V2, "/health?two").0, 200);
    logs(&server, "10.0.0.5:40000 - \"GET /health?two ");
    // Without an address, or without the balancer's word, it is who it is.
    assert_eq!(ask(&server, b"PROXY UNKNOWN\r\n", "/health?unknown").0, 200);
    logs(&server, "127.0.0.1:");
    assert_eq!(ask(&server, b"", "/health?nobody").0, 200);
    // In pieces.
    let mut client = server.client();
    client.stream.set_nodelay(true).unwrap();
    for byte in V2 {
        client.send(&[*byte]);
    }
    assert_eq!(client.get("/health?pieces").status, 200);
    logs(&server, "10.0.0.5:40000 - \"GET /health?pieces ");
}

#[test]
fn strangers_and_nonsense_are_refused() {
    let server = serve(&["--proxy-protocol", "v1", "--proxy-allow-ips", "192.0.2.0/24"]);
    assert_eq!(ask(&server, b"PROXY TCP4 192.0.2.7 10.0.0.1 1234 80\r\n", "/health").0, 403);
    assert_eq!(ask(&server, b"", "/health").0, 200);
    assert_eq!(ask(&server, V2, "/health").0, 400, "version 2 is not spoken here");
    let server = serve(&["--proxy-protocol", "auto"]);
    for first in ["PROXY TCP4 192.0.2.7 10.0.0.1 1234\r\n", "PROXY TCP4 x 10.0.0.1 1 2\r\n"] {
        assert_eq!(ask(&server, first.as_bytes(), "/health").0, 400, "{first}");
    }
    let off = serve(&[]);
    assert_eq!(ask(&off, b"PROXY TCP4 192.0.2.7 10.0.0.1 1234 80\r\n", "/health").0, 400);
}

#[test]
fn it_stands_in_front_of_a_handshake() {
    let certs = Certs::make();
    let (cert, key) = (certs.path("server.crt"), certs.path("server.key"));
    let server =
        serve(&["--proxy-protocol", "v2", "--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()]);
    let mut socket = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    socket.write_all(V2).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certs.path("ca.crt")).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(feast_prefork::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = rustls::ClientConnection::new(config.into(), "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream.write_all(b"GET /health?tls HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    logs(&server, "10.0.0.5:40000 - \"GET /health?tls ");
}

#[test]
fn a_unix_socket_needs_no_list() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("api.sock");
    let bind = format!("unix:{}", file.display());
    let server = serve(&["--proxy-protocol", "v2", "--bind", "127.0.0.1:0", "--bind", &bind]);
    let mut stream = std::os::unix::net::UnixStream::connect(&file).unwrap();
    stream.write_all(V2).unwrap();
    stream.write_all(b"GET /health?unix HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    logs(&server, "10.0.0.5:40000 - \"GET /health?unix ");
}

#[test]
fn mistakes_on_the_command_line() {
    for (args, text) in [
        (&["--proxy-protocol", "v3"][..], "--proxy-protocol 'v3': use off, v1, v2 or auto"),
        (
            &["--proxy-protocol", "v1", "--proxy-allow-ips", "x"],
            "--proxy-allow-ips: 'x' is not an IP address",
        ),
        (&["--proxy-allow-ips", "*"], "--proxy-allow-ips: add --proxy-protocol"),
    ] {
        let repo = Repo::copy_of("driver_stats");
        let mut command = std::process::Command::new(common::binary());
        let output = command.arg("-c").arg(repo.path()).arg("serve").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(text), "{output:?}");
    }
}
