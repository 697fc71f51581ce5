//! Whatever a client sends instead of a handshake, or on an encrypted connection: an error or nothing, never a panic.
#![no_main]

use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use feast_prefork::net::Stream;
use feast_prefork::tls::server::{config, ClientCerts, Wire};
use libfuzzer_sys::fuzz_target;
use rustls::ServerConfig;

static CONFIG: OnceLock<Arc<ServerConfig>> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let config = CONFIG.get_or_init(|| {
        let (cert, key) = (Path::new("fuzz/corpus/cert.pem"), Path::new("fuzz/corpus/key.pem"));
        Arc::new(config(cert, key, ClientCerts::None, None).expect("made by scripts/fuzz"))
    });
    let Some((&first, rest)) = input.split_first() else { return };
    let (mut client, server) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    let stream = Stream::from_fd(OwnedFd::from(server)).unwrap();
    let mut wire = if first & 1 == 0 {
        Wire::secure(stream, config).unwrap()
    } else {
        // Keys of one cipher or another, all zeros.
        let mut keys = vec![0; 106];
        keys[0] = first >> 1 & 3;
        keys[1] = first >> 3 & 1;
        match Wire::adopted(stream, &keys) {
            Ok(wire) => wire,
            Err(_) => return,
        }
    };
    let mut buffer = vec![0; 64 << 10];
    let pieces = 1 + usize::from(first >> 4);
    for piece in rest.chunks(rest.len().div_ceil(pieces).max(1)) {
        if client.write_all(piece).is_err() {
            return;
        }
        loop {
            match wire.read(&mut buffer) {
                Ok(got) if got.length == 0 => return,
                Ok(got) if got.more => {}
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return,
            }
        }
    }
});
